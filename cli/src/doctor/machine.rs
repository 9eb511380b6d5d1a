//! This machine: its executors, its cgroups, its clocks.

use std::{fs, io, os::unix::fs::FileTypeExt, path::Path, time::Duration};

use nix::time::{ClockId, clock_gettime};

use super::Finding;

const EXECUTORS: &str = "executors here";
const CGROUP: &str = "cgroups";
const CLOCK: &str = "clock source";
const RATE: &str = "clock rate";
const HUGE_PAGES: &str = "huge pages";

/// Where the kernel is told who gets them.
pub(super) const HUGE_PAGES_DIR: &str = "/sys/kernel/mm/transparent_hugepage";

/// Most that a clock may run off its oscillator, in millionths: what leases allow for (ADR 2).
const DRIFT_PPM_MAX: f64 = 500.0;

/// Each node's directory below `run_dir` has its sockets.
pub(super) fn executors(run_dir: &Path) -> Vec<Finding> {
    let nodes = match fs::read_dir(run_dir) {
        Ok(entries) => {
            entries.filter_map(Result::ok).filter(|entry| entry.path().is_dir()).collect::<Vec<_>>()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            let remedy = "run doctor as root, or see executor.run_dir";
            return vec![Finding::warning(
                EXECUTORS,
                format!("{}: {error}", run_dir.display()),
                remedy,
            )];
        }
    };
    if nodes.is_empty() {
        return vec![Finding::absent(
            EXECUTORS,
            format!("none has a directory in {}", run_dir.display()),
        )];
    }
    nodes.iter().map(|node| executor(&node.path())).collect()
}

fn executor(directory: &Path) -> Finding {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let missing: Vec<&str> = ["hook.sock", "agent.sock"]
        .into_iter()
        .filter(|socket| {
            !fs::metadata(directory.join(socket)).is_ok_and(|meta| meta.file_type().is_socket())
        })
        .collect();
    let pid = fs::read_to_string(directory.join("keeper.pid")).unwrap_or_default();
    let pid = pid.split_whitespace().next().unwrap_or_default();
    let alive = !pid.is_empty() && Path::new("/proc").join(pid).is_dir();
    let remedy = format!(
        "start it again (`systemctl restart gleaner-executor`), or remove {}",
        directory.display()
    );
    match (alive, missing.as_slice()) {
        (true, []) => Finding::good(EXECUTORS, format!("{name}: keeper {pid}, both sockets")),
        (true, missing) => Finding::bad(
            EXECUTORS,
            format!("{name}: keeper {pid} has no {}", missing.join(", ")),
            remedy,
        ),
        (false, _) => Finding::bad(EXECUTORS, format!("{name}: no keeper runs"), remedy),
    }
}

/// Which cgroups there are: how a lease's processes are killed, and whether memory is bounded by the kernel.
pub(super) fn cgroup() -> Finding {
    const UNIFIED: &str = "/sys/fs/cgroup/cgroup.controllers";
    let degraded = "executors then kill by process, and bound memory less exactly; boot with systemd.unified_cgroup_hierarchy=1";
    match fs::read_to_string(UNIFIED) {
        Ok(controllers) => {
            let missing: Vec<&str> = ["cpuset", "cpu", "memory", "pids"]
                .into_iter()
                .filter(|wanted| !controllers.split_whitespace().any(|found| found == *wanted))
                .collect();
            match missing.as_slice() {
                [] => Finding::good(CGROUP, "version 2, with cpuset, cpu, memory and pids"),
                missing => Finding::warning(
                    CGROUP,
                    format!("version 2 without {}", missing.join(", ")),
                    degraded,
                ),
            }
        }
        Err(_) if Path::new("/sys/fs/cgroup").join("memory").is_dir() => {
            Finding::warning(CGROUP, "version 1", degraded)
        }
        Err(_) => Finding::warning(CGROUP, "none is mounted", degraded),
    }
}

/// Huge pages for what functions allocate and for what is shared with their callers: a vacate waits until memory is free, and
/// small pages take some ten times as long.
pub(super) fn huge_pages(directory: &Path) -> Vec<Finding> {
    let kinds =
        [("enabled", "functions' memory", "madvise"), ("shmem_enabled", "arenas", "advise")];
    kinds.map(|(file, what, advised)| huge_pages_of(&directory.join(file), what, advised)).into()
}

fn huge_pages_of(setting: &Path, what: &str, advised: &str) -> Finding {
    let Ok(choices) = fs::read_to_string(setting) else {
        return Finding::absent(HUGE_PAGES, format!("{what}: this kernel has none"));
    };
    match choices.split(['[', ']']).nth(1).unwrap_or_default() {
        chosen @ ("never" | "deny" | "") => {
            let remedy = format!(
                "vacates take longer; `echo {advised} > {path}`, at each boot by a line `w {path} - - - - {advised}` in /etc/tmpfiles.d",
                path = setting.display()
            );
            Finding::warning(HUGE_PAGES, format!("{what}: {chosen}"), remedy)
        }
        chosen => Finding::good(HUGE_PAGES, format!("{what}: {chosen}")),
    }
}

/// A clock source that is read without a system call.
pub(super) fn clock_source() -> Finding {
    const CURRENT: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let remedy = "each look at the clock is then a system call, and hot calls are slower; boot with clocksource=tsc if the CPU's is invariant";
    match fs::read_to_string(CURRENT) {
        Ok(source) if ["tsc", "kvm-clock", "arch_sys_counter"].contains(&source.trim()) => {
            Finding::good(CLOCK, source.trim())
        }
        Ok(source) => Finding::warning(CLOCK, source.trim(), remedy),
        Err(error) => Finding::absent(CLOCK, format!("not told: {error}")),
    }
}

/// The clock that leases are counted on runs as fast as its oscillator, within what leases allow for.
pub(super) fn clock_rate() -> Finding {
    const WATCHED: Duration = Duration::from_millis(200);
    let both = || {
        Some((nanoseconds(ClockId::CLOCK_BOOTTIME)?, nanoseconds(ClockId::CLOCK_MONOTONIC_RAW)?))
    };
    let begun = both();
    std::thread::sleep(WATCHED);
    let (Some(begun), Some(ended)) = (begun, both()) else {
        return Finding::bad(
            RATE,
            "CLOCK_BOOTTIME cannot be read",
            "use a kernel of 2.6.39 or later",
        );
    };
    let (counted, raw) = (ended.0 - begun.0, ended.1 - begun.1);
    let ppm = (counted - raw) as f64 / raw as f64 * 1e6;
    if ppm.abs() <= DRIFT_PPM_MAX {
        Finding::good(
            RATE,
            format!(
                "CLOCK_BOOTTIME is slewed by {ppm:+.0} ppm; leases allow for ±{DRIFT_PPM_MAX:.0}"
            ),
        )
    } else {
        let remedy =
            "see the NTP daemon (`chronyc tracking`): leases allow for no more than ±500 ppm";
        Finding::bad(RATE, format!("CLOCK_BOOTTIME is slewed by {ppm:+.0} ppm"), remedy)
    }
}

fn nanoseconds(clock: ClockId) -> Option<i64> {
    let now = clock_gettime(clock).ok()?;
    Some(now.tv_sec() * 1_000_000_000 + now.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    #[test]
    fn a_directory_without_a_living_keeper_is_bad() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(executors(&directory.path().join("none"))[0].health, Health::Absent);
        fs::create_dir(directory.path().join("n1")).expect("made");
        assert_eq!(executors(directory.path())[0].health, Health::Bad);
        fs::write(directory.path().join("n1/keeper.pid"), std::process::id().to_string())
            .expect("written");
        let finding = &executors(directory.path())[0];
        assert!(finding.detail.contains("has no hook.sock, agent.sock"), "{finding:?}");
        for socket in ["hook.sock", "agent.sock"] {
            std::os::unix::net::UnixListener::bind(directory.path().join("n1").join(socket))
                .expect("bound");
        }
        assert_eq!(executors(directory.path())[0].health, Health::Good);
    }

    #[test]
    fn huge_pages_that_are_switched_off_are_told_with_the_remedy() {
        let directory = tempfile::tempdir().expect("a directory");
        let healths =
            || huge_pages(directory.path()).iter().map(|found| found.health).collect::<Vec<_>>();
        assert_eq!(healths(), [Health::Absent; 2]);
        fs::write(directory.path().join("enabled"), "always [madvise] never\n").expect("written");
        let shared = "always within_size advise [never] deny force\n";
        fs::write(directory.path().join("shmem_enabled"), shared).expect("written");
        assert_eq!(healths(), [Health::Good, Health::Warning]);
        let remedy = huge_pages(directory.path())[1].remedy.clone().expect("a remedy");
        assert!(remedy.contains("echo advise > "), "{remedy}");
    }
}
