//! A private Slurm: real munged, slurmctld and one slurmd a node, in a temporary directory, on free ports.
//!
//! ```text
//! Builder ──start()──▶ munged ─▶ slurmctld ─▶ slurmd n1..nN ─▶ all idle ─▶ Cluster ──drop──▶ nothing left
//! ```
//!
//! Several run side by side, also from parallel test processes. Each slurmd has its own UTS namespace when we
//! are root, so that each node has its own host name. Nothing outside the directory is written.

mod cluster;
mod conf;
mod jobs;

pub use cluster::Cluster;
pub use conf::Builder;

use std::{io, path::PathBuf};

/// Why a private Slurm did not come up, or one of its commands failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A Slurm program is not installed.
    #[error(
        "{program} is not installed: on Debian, install slurmctld, slurmd, slurm-client and munge, \
         with a policy-rc.d that keeps their services from starting"
    )]
    Missing {
        /// The program.
        program: &'static str,
    },
    /// The operating system refused.
    #[error("private Slurm: {step}: {source}")]
    Io {
        /// What was tried.
        step: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A daemon did not come up, or not in time.
    #[error("private Slurm: {what} was not reached in time; the log's end:\n{log}")]
    NotUp {
        /// What was waited for.
        what: String,
        /// The last lines of the daemon's log.
        log: String,
    },
    /// The directory's name is too long for Unix sockets.
    #[error("private Slurm: {0:?} is too long for a socket's path: set TMPDIR to a shorter one")]
    LongPath(PathBuf),
    /// A command's answer was not what it should be.
    #[error("private Slurm: {command} failed ({status}): {complaint}")]
    Command {
        /// The command with its arguments.
        command: String,
        /// How it ended.
        status: String,
        /// What it wrote to standard error.
        complaint: String,
    },
}

impl ClusterError {
    fn io(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Io { step, source }
    }
}
