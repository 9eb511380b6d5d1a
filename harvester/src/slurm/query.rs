//! One bounded run of one of Slurm's commands: time, output and environment are limited here and nowhere else.
//!
//! Called by [`super::commands`]. Slurm's clients block for minutes when slurmctld is down, so a query that is
//! late, or that nobody waits for any more, takes its whole process group with it. Knows no output format.

use std::{ffi::OsString, io, path::PathBuf, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
};

use super::SlurmError;

/// Most bytes of one answer: 10,000 nodes are 8 MB.
const OUTPUT_MAX_BYTES: u64 = 128 << 20;
/// Most bytes of a command's complaint that are kept.
const COMPLAINT_MAX_BYTES: u64 = 4 << 10;
/// What passes from the daemon's environment to the command: nothing that could change a format.
const ENVIRONMENT_KEPT: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "TZ"];

/// How commands are found and bounded.
#[derive(Debug, Clone)]
pub(super) struct Runner {
    /// Where the commands are; `None`: on `PATH`.
    pub(super) directory: Option<PathBuf>,
    /// `SLURM_CONF` for the commands; `None`: Slurm's own default.
    pub(super) slurm_conf: Option<PathBuf>,
    /// The most time of one query.
    pub(super) bound: Duration,
}

/// Kills the command's process group unless the command was waited for.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // The leader is not reaped yet, so the group's number is still its own; it may have ended by itself.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

impl Runner {
    /// The command's standard output. A status other than success is an error with the command's own complaint.
    pub(super) async fn run(
        &self,
        command: &'static str,
        arguments: &[&str],
    ) -> Result<String, SlurmError> {
        let mut child = self
            .prepare(command, arguments)
            .spawn()
            .map_err(|source| SlurmError::Start { program: self.program(command), source })?;
        let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        let answer = tokio::time::timeout(self.bound, collect(command, &mut child)).await;
        if let Ok(Ok(_)) = answer {
            group.0 = None;
        }
        drop(group);
        let Ok(answer) = answer else {
            return Err(SlurmError::Late { command, bound_ms: self.bound.as_millis() });
        };
        let Collected { status, output, complaint } = answer?;
        if !status.success() {
            let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
            return Err(SlurmError::Failed { command, status, complaint });
        }
        // A comment in Latin-1 must not blind us to the whole cluster.
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    fn program(&self, command: &str) -> OsString {
        self.directory.as_ref().map_or_else(|| command.into(), |dir| dir.join(command).into())
    }

    fn prepare(&self, command: &str, arguments: &[&str]) -> Command {
        let mut prepared = Command::new(self.program(command));
        prepared.args(arguments).env_clear();
        for name in ENVIRONMENT_KEPT {
            if let Some(value) = std::env::var_os(name) {
                prepared.env(name, value);
            }
        }
        if let Some(path) = &self.slurm_conf {
            prepared.env("SLURM_CONF", path);
        }
        prepared
            .envs([("LC_ALL", "C"), ("SLURM_TIME_FORMAT", "%s")])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        prepared
    }
}

struct Collected {
    status: std::process::ExitStatus,
    output: Vec<u8>,
    complaint: Vec<u8>,
}

async fn collect(command: &'static str, child: &mut Child) -> Result<Collected, SlurmError> {
    let io = |source| SlurmError::Read { command, source };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (output, complaint) =
        tokio::try_join!(read(stdout, OUTPUT_MAX_BYTES + 1), read(stderr, COMPLAINT_MAX_BYTES))
            .map_err(io)?;
    if output.len() as u64 > OUTPUT_MAX_BYTES {
        return Err(SlurmError::TooLong { command, max_bytes: OUTPUT_MAX_BYTES });
    }
    let status = child.wait().await.map_err(io)?;
    Ok(Collected { status, output, complaint })
}

/// Keeps up to `max` bytes of all that comes.
async fn read(pipe: Option<impl AsyncRead + Unpin>, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(max).read_to_end(&mut bytes).await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}
