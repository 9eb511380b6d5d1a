//! The keeper: parents the agent and every worker, owns their cgroups and deadlines, and clears the node when asked.
//!
//! One thread decides and does, with fixed tables, memory locked, in the lowest real-time priority; a second one, in the
//! ordinary class, buries the dead. It reads no network and no format
//! but fixed records, and after its start it neither allocates nor blocks beyond the bound of one vacate. What it may
//! run, the agent decides within the bounds that the keeper checks; whether the node is vacated, it decides alone.
//!
//! ```text
//!   setup ──▶ run (the loop) ──▶ vacate
//!              │  │  │  └ agent_process ── ipc ──▶ agent
//!              │  │  └ hooks, holds ◀── hook
//!              │  └ workers ── cgroup, cores, table, handover ──▶ worker
//!              └ journal, log, reaper
//! ```

mod agent_process;
mod cgroup;
mod cores;
pub mod handover;
mod holds;
mod hooks;
mod idle_group;
pub mod ipc;
pub mod journal;
mod leftovers;
mod log;
mod reaper;
mod run;
mod setup;
mod slot;
mod table;
mod users;
mod vacate;
mod workers;

use std::{io, path::PathBuf};

use gleaner_config::Config;
use gleaner_proto::ids::NodeName;

pub use run::LEASES_MAX;
pub use setup::{AGENT_SOCKET, SWITCH_FILE, group_name};

/// How workers are kept together: less than the machine offers only to try what a lesser machine would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// The best that this machine has.
    Auto,
    /// PID namespaces, though there may be cgroup v2.
    Namespace,
    /// One process that cannot fork.
    Single,
}

/// What the keeper is started with.
#[derive(Debug)]
pub struct Arguments {
    /// The configuration.
    pub config: Config,
    /// Where it was read from: the agent reads it again.
    pub config_path: Option<PathBuf>,
    /// Keys set on the command line, as `section.key=value`: the agent gets them too.
    pub set: Vec<String>,
    /// The node that this executor serves.
    pub node: NodeName,
    /// How workers are kept together.
    pub isolation: Isolation,
}

/// Why the keeper does not start.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The runtime directory cannot be made.
    #[error(
        "the runtime directory {path} cannot be used: {source}; \
         set executor.run_dir to a directory that this user may write"
    )]
    RunDir {
        /// Where.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Others may write there.
    #[error(
        "others may write to {path}, and could have processes killed by it: give it to this user, mode 0755"
    )]
    RunDirOpen {
        /// Where.
        path: PathBuf,
    },
    /// One keeper a node.
    #[error(
        "node {node} has a keeper already, pid {pid}: stop that one first, or set another executor.run_dir"
    )]
    Running {
        /// The node.
        node: String,
        /// Its keeper.
        pid: String,
    },
    /// A configured user is of no use.
    #[error("executor.{key}: there is no user {name:?} beside root: create one, or name another")]
    User {
        /// The key.
        key: &'static str,
        /// The name.
        name: String,
    },
    /// A step of the start failed.
    #[error("keeper: {step}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// Runs the keeper of one node until it is asked to stop. The process must have one thread.
pub fn run(arguments: &Arguments) -> Result<(), KeeperError> {
    let mut ready = setup::prepare(arguments)?;
    for limitation in &ready.limitations {
        log::say(format_args!("{limitation}"));
    }
    if let Err(error) = setup::notify_systemd() {
        log::say(format_args!("systemd was not told that the keeper is ready: {error}"));
    }
    ready.keeper.run();
    setup::clean_up(&arguments.config.executor.run_dir.join(arguments.node.as_str()));
    Ok(())
}
