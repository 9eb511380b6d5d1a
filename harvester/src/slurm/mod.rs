//! Reading Slurm: the whole cluster in one bounded query a period, behind a trait.
//!
//! The driver asks; [`commands`] answers by running Slurm's own commands, [`fake`] from memory for unit tests; both
//! pass one conformance suite (`harvester/tests/slurm.rs`). Nothing here decides anything, and nothing here ever
//! changes Slurm: it reads.

pub mod commands;
pub mod fake;
pub mod parse;
mod query;

use std::{ffi::OsString, future::Future, io, process::ExitStatus};

pub use commands::Commands;
use gleaner_harvester_core::picture::{JobView, Picture};

/// Where the cluster's state is read from.
pub trait Slurm: Send + Sync + 'static {
    /// All nodes: one query for the whole cluster.
    fn nodes(&self) -> impl Future<Output = Result<Picture, SlurmError>> + Send;

    /// Jobs that run, and pending ones whose start and nodes Slurm has planned already.
    fn jobs(&self) -> impl Future<Output = Result<Vec<JobView>, SlurmError>> + Send;
}

/// Why Slurm could not be read. Each is worth another try at the next period.
#[derive(Debug, thiserror::Error)]
pub enum SlurmError {
    /// The command could not be started.
    #[error(
        "cannot start {program:?}: {source}; set `commands` in [slurm] to the directory of Slurm's commands"
    )]
    Start {
        /// What was tried.
        program: OsString,
        /// The system's answer.
        source: io::Error,
    },
    /// The command did not answer in time; it was killed.
    #[error(
        "{command} gave no answer within {bound_ms} ms: slurmctld is down or overloaded (see `scontrol ping`), \
         or `timeout` in [slurm] is too short for this cluster"
    )]
    Late {
        /// The command.
        command: &'static str,
        /// The bound.
        bound_ms: u128,
    },
    /// The command said no.
    #[error("{command} failed ({status}): {complaint}")]
    Failed {
        /// The command.
        command: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to standard error.
        complaint: String,
    },
    /// The command's output could not be read.
    #[error("cannot read the answer of {command}: {source}")]
    Read {
        /// The command.
        command: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// More output than any cluster has.
    #[error("{command} answered more than {max_bytes} bytes")]
    TooLong {
        /// The command.
        command: &'static str,
        /// The bound.
        max_bytes: u64,
    },
    /// An answer that does not have the expected form.
    #[error(
        "{command} line {line}: {problem}; this release reads the output of Slurm 20.11 to 25.05, \
         please report the line with the output of `{command} --version`"
    )]
    Unreadable {
        /// The command.
        command: &'static str,
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}
