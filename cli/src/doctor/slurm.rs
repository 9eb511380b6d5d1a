//! Slurm's commands, and whether its configuration calls Gleaner's hook.

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use gleaner_config::Slurm;

use super::Finding;

const COMMANDS: &str = "slurm commands";
const HOOK: &str = "prolog and epilog";

/// The hook's program, as Prolog and Epilog name it or call it from a script.
const HOOK_PROGRAM: &str = "gleaner-hook";

/// How often a command that runs is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// What one command printed, or why not.
fn output_of(slurm: &Slurm, program: &str, arguments: &[&str]) -> Result<String, String> {
    let path = slurm
        .commands
        .as_ref()
        .map_or_else(|| PathBuf::from(program), |directory| directory.join(program));
    let mut command = Command::new(&path);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(conf) = &slurm.slurm_conf {
        command.env("SLURM_CONF", conf);
    }
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", path.display()))?;
    // Read aside: a child whose pipe is full would never end.
    let stdout = child.stdout.take().map(read_aside);
    let stderr = child.stderr.take().map(read_aside);
    let ended = wait(&mut child, slurm.timeout);
    let text = |reader: Option<std::thread::JoinHandle<String>>| {
        reader.and_then(|r| r.join().ok()).unwrap_or_default()
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    match ended {
        Some(true) => Ok(stdout),
        Some(false) => Err(format!("{program} failed: {}", stderr.trim())),
        None => Err(format!("{program} did not end within {:?}", slurm.timeout)),
    }
}

fn read_aside(mut pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        // What could be read before an error is what there is to say.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Whether it succeeded; `None` if it had to be killed at its deadline.
fn wait(child: &mut Child, bound: Duration) -> Option<bool> {
    let deadline = Instant::now() + bound;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Ok(None) | Err(_) => {
                // Already gone is as good as killed.
                let _ = child.kill();
                let _ = child.wait();
                return None;
            }
        }
    }
}

/// Commands and hook.
pub(super) fn examine(slurm: &Slurm) -> Vec<Finding> {
    let remedy = "install slurm-client here, or set slurm.commands; the harvester's own machine needs them, others do not";
    let version = match output_of(slurm, "scontrol", &["--version"]) {
        Ok(version) => version.trim().to_owned(),
        Err(error) => return vec![Finding::warning(COMMANDS, error, remedy)],
    };
    let settings = match output_of(slurm, "scontrol", &["show", "config"]) {
        Ok(settings) => settings,
        Err(error) => {
            let remedy =
                "see that slurmctld answers (`scontrol ping`) and that slurm.slurm_conf is right";
            return vec![Finding::bad(COMMANDS, format!("{version}; {error}"), remedy)];
        }
    };
    let version = Finding::good(COMMANDS, format!("{version}, slurmctld answers"));
    vec![version, hook(&settings)]
}

/// `Key = value` of `scontrol show config`; `(null)` is no value. Newer releases number them (`Prolog[0]`).
fn values<'t>(settings: &'t str, key: &str) -> Vec<&'t str> {
    let matching = settings.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        let name = name.trim();
        (name == key || name.strip_prefix(key).is_some_and(|rest| rest.starts_with('[')))
            .then_some(value.trim())
    });
    matching.filter(|value| !value.is_empty() && *value != "(null)").collect()
}

fn hook(settings: &str) -> Finding {
    let mut missing = Vec::new();
    let flags = values(settings, "PrologFlags").join(",");
    if !flags.split(',').any(|flag| flag.trim().eq_ignore_ascii_case("alloc")) {
        missing.push("PrologFlags=Alloc".to_owned());
    }
    let mut unread = Vec::new();
    for key in ["Prolog", "Epilog"] {
        let paths = values(settings, key);
        if paths.is_empty() {
            missing.push(format!("{key}=/path/to/{HOOK_PROGRAM}"));
        } else if !paths.iter().any(|path| calls_hook(Path::new(path))) {
            unread.push(format!("{key}={}", paths.join(",")));
        }
    }
    match (missing.as_slice(), unread.as_slice()) {
        ([], []) => Finding::good(HOOK, format!("call {HOOK_PROGRAM}, with PrologFlags={flags}")),
        ([], unread) => Finding::warning(
            HOOK,
            format!("{} cannot be seen from here to call {HOOK_PROGRAM}", unread.join(" and ")),
            format!("see on a node that it runs {HOOK_PROGRAM}"),
        ),
        (missing, _) => Finding::bad(
            HOOK,
            "a starting job would not make Gleaner leave at once, only at the harvester's next look",
            format!("put {} into slurm.conf, then `scontrol reconfigure`", missing.join(" ")),
        ),
    }
}

/// Whether the program is the hook, or a script that names it.
fn calls_hook(path: &Path) -> bool {
    let named = path.file_name().is_some_and(|name| name == HOOK_PROGRAM);
    named || std::fs::read_to_string(path).is_ok_and(|script| script.contains(HOOK_PROGRAM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    const WITHOUT: &str = "Epilog                  = (null)\nProlog                  = (null)\nPrologFlags             = \n";

    #[test]
    fn a_slurm_without_the_hook_is_told_what_to_add() {
        let finding = hook(WITHOUT);
        assert_eq!(finding.health, Health::Bad);
        let remedy = finding.remedy.expect("a remedy");
        for part in ["PrologFlags=Alloc", "Prolog=", "Epilog="] {
            assert!(remedy.contains(part), "{remedy}");
        }
    }

    #[test]
    fn a_hook_by_name_or_in_a_script_is_found() {
        let directory = tempfile::tempdir().expect("a directory");
        let script = directory.path().join("epilog.sh");
        std::fs::write(&script, "#!/bin/sh\n/usr/sbin/gleaner-hook\n").expect("written");
        let settings = format!(
            "Prolog[0]  = /usr/sbin/gleaner-hook\nEpilog = {}\nPrologFlags = Alloc,Contain\nPrologEpilogTimeout = 65534\n",
            script.display()
        );
        assert_eq!(hook(&settings).health, Health::Good);
        let foreign = settings.replace("/usr/sbin/gleaner-hook\nEpilog", "/usr/sbin/other\nEpilog");
        assert_eq!(hook(&foreign).health, Health::Warning);
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let directory = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::symlink("/bin/sleep", directory.path().join("scontrol"))
            .expect("linked");
        let slurm = Slurm {
            commands: Some(directory.path().into()),
            timeout: Duration::from_millis(50),
            ..Slurm::default()
        };
        let error = output_of(&slurm, "scontrol", &["1000"]).expect_err("ended");
        assert!(error.contains("did not end within"), "{error}");
    }
}
