//! The hook's program, started as slurmd starts it.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use gleaner_testkit::Service;

/// The hook of one node.
pub struct Hook {
    program: PathBuf,
    run_dir: PathBuf,
    node: String,
    bound_ms: Option<u64>,
}

/// Before the job, or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The node is wanted.
    Prolog,
    /// It is no longer.
    Epilog,
}

/// A hook under way.
pub struct Running(Child);

impl Hook {
    /// That of a service's node.
    pub fn new(service: &Service, node: &str) -> Self {
        Self {
            program: service.programs().path("gleaner-hook"),
            run_dir: service.config().executor.run_dir.clone(),
            node: node.into(),
            bound_ms: None,
        }
    }

    /// The longest that it may take, where that is not its default.
    pub fn bound_ms(mut self, bound_ms: u64) -> Self {
        self.bound_ms = Some(bound_ms);
        self
    }

    /// Starts it. The standard library does so by posix_spawn, as nothing is asked of the child before it executes.
    pub fn start(&self, when: When, job: u32) -> Result<Running> {
        let context = match when {
            When::Prolog => "prolog_slurmd",
            When::Epilog => "epilog_slurmd",
        };
        let mut command = Command::new(&self.program);
        command.arg("--run-dir").arg(&self.run_dir).env_clear().stdin(Stdio::null());
        if let Some(bound_ms) = self.bound_ms {
            command.args(["--bound-ms", &bound_ms.to_string()]);
        }
        command.env("SLURM_JOB_ID", job.to_string()).env("SLURM_JOB_UID", "1000");
        command.env("SLURMD_NODENAME", &self.node).env("SLURM_SCRIPT_CONTEXT", context);
        command.spawn().map(Running).context("start the hook")
    }
}

impl Running {
    /// Waits for its end.
    pub fn finish(mut self) -> Result<()> {
        let status = self.0.wait().context("wait for the hook")?;
        ensure!(status.success(), "the hook failed: {status}");
        Ok(())
    }
}
