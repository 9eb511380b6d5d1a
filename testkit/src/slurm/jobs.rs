//! What a user or an admin does on the private Slurm: jobs, states, and waiting for them.

use std::{
    ffi::OsStr,
    process::{Command, Output},
    time::Duration,
};

use super::{Cluster, ClusterError};
use crate::{
    process::{Daemon, run_bounded},
    wait_until,
};

/// The most time of one command that waits for no job.
const COMMAND_BOUND: Duration = Duration::from_secs(10);
/// The most time of a job that a test waits for.
const JOB_BOUND: Duration = Duration::from_secs(60);

impl Cluster {
    /// One of Slurm's commands, or any other, in this cluster's environment.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        self.set_environment(&mut command);
        command.current_dir(self.dir());
        command
    }

    /// Runs `srun` with these arguments to its end.
    pub fn srun(&self, arguments: &[&str]) -> Result<String, ClusterError> {
        self.run("srun", arguments, JOB_BOUND)
    }

    /// Starts `srun` in the background; dropping it cancels its job.
    pub fn spawn_srun(&self, arguments: &[&str]) -> Result<Daemon, ClusterError> {
        let mut command = self.command("srun");
        command.args(arguments).stdout(std::process::Stdio::null());
        Daemon::start("srun", command, None).map_err(ClusterError::io("start srun"))
    }

    /// Allocates nodes to a job that runs nothing (`salloc --no-shell`), until [`scancel`](Self::scancel); returns its
    /// number. At once, where a batch job waits for the scheduler's next pass.
    pub fn allocate(&self, arguments: &[&str]) -> Result<u32, ClusterError> {
        let mut command = self.command("salloc");
        command.arg("--no-shell").args(arguments);
        let output = run_bounded(command, JOB_BOUND).map_err(ClusterError::io("run salloc"))?;
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        text_of("salloc", arguments, output)?;
        let (_, after) = complaint.split_once("Granted job allocation ").unwrap_or_default();
        let job = after.split_whitespace().next().and_then(|job| job.parse().ok());
        let status = "no job number".to_owned();
        job.ok_or(ClusterError::Command { command: "salloc".into(), status, complaint })
    }

    /// Submits `script` as the body of a batch job; returns the job's number.
    pub fn sbatch(&self, arguments: &[&str], script: &str) -> Result<u32, ClusterError> {
        let wrap = format!("--wrap={script}");
        let mut all = vec!["--parsable", "--output=/dev/null"];
        all.extend(arguments);
        all.push(&wrap);
        let answer = self.run("sbatch", &all, COMMAND_BOUND)?;
        let job = answer.trim().split(';').next().and_then(|job| job.parse().ok());
        job.ok_or_else(|| ClusterError::Command {
            command: "sbatch".into(),
            status: "no job number".into(),
            complaint: answer,
        })
    }

    /// Runs `scontrol` with these arguments.
    pub fn scontrol(&self, arguments: &[&str]) -> Result<String, ClusterError> {
        self.run("scontrol", arguments, COMMAND_BOUND)
    }

    /// Runs `squeue` without its header, with these arguments.
    pub fn squeue(&self, arguments: &[&str]) -> Result<String, ClusterError> {
        let mut all = vec!["--noheader"];
        all.extend(arguments);
        self.run("squeue", &all, COMMAND_BOUND)
    }

    /// Cancels a job.
    pub fn scancel(&self, job: u32) -> Result<(), ClusterError> {
        self.run("scancel", &[&job.to_string()], COMMAND_BOUND).map(drop)
    }

    /// A node's state as `scontrol` writes it, such as `IDLE`, `MIXED+DRAIN` or `ALLOCATED+COMPLETING`.
    pub fn node_state(&self, node: &str) -> Result<String, ClusterError> {
        let states = self.states()?;
        let state = states.into_iter().find(|(name, _)| name == node).map(|(_, state)| state);
        state.ok_or_else(|| ClusterError::Command {
            command: "scontrol show nodes".into(),
            status: "no such node".into(),
            complaint: node.to_owned(),
        })
    }

    /// All nodes' states.
    pub fn states(&self) -> Result<Vec<(String, String)>, ClusterError> {
        let text = self.scontrol(&["--oneliner", "show", "nodes"])?;
        let field = |line: &str, key: &str| {
            line.split(' ').find_map(|word| word.strip_prefix(key)).map(str::to_owned)
        };
        Ok(text
            .lines()
            .filter_map(|line| Some((field(line, "NodeName=")?, field(line, "State=")?)))
            .collect())
    }

    /// A job's state, such as `PENDING`, `RUNNING` or `COMPLETED`; `None` when Slurm has forgotten it.
    pub fn job_state(&self, job: u32) -> Option<String> {
        let job = job.to_string();
        let text = self.squeue(&["--states=all", "--format=%T", "--jobs", &job]).ok()?;
        text.lines().next().map(|state| state.trim().to_owned())
    }

    /// Waits until a job is in a state.
    #[track_caller]
    pub fn wait_job(&self, job: u32, state: &str, bound: Duration) -> Duration {
        wait_until(format_args!("job {job} is {state}"), bound, || {
            self.job_state(job).as_deref() == Some(state)
        })
    }

    /// Waits until a node is wholly idle.
    #[track_caller]
    pub fn wait_idle(&self, node: &str, bound: Duration) -> Duration {
        self.wait_state(node, "IDLE", bound)
    }

    /// Waits until a node is in a state.
    #[track_caller]
    pub fn wait_state(&self, node: &str, state: &str, bound: Duration) -> Duration {
        wait_until(format_args!("{node} is {state}"), bound, || {
            self.node_state(node).is_ok_and(|now| now == state)
        })
    }

    /// Waits until no job is known to be pending, running or completing.
    #[track_caller]
    pub fn wait_no_jobs(&self, bound: Duration) -> Duration {
        wait_until("no job is left in the queue", bound, || {
            self.squeue(&["--format=%A"]).is_ok_and(|jobs| jobs.trim().is_empty())
        })
    }

    fn run(
        &self,
        program: &str,
        arguments: &[&str],
        bound: Duration,
    ) -> Result<String, ClusterError> {
        let mut command = self.command(program);
        command.args(arguments);
        let output = run_bounded(command, bound)
            .map_err(ClusterError::io(format!("run {program} {}", arguments.join(" "))))?;
        text_of(program, arguments, output)
    }
}

fn text_of(program: &str, arguments: &[&str], output: Output) -> Result<String, ClusterError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(ClusterError::Command {
        command: format!("{program} {}", arguments.join(" ")),
        status: output.status.to_string(),
        complaint: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
