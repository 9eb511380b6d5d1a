//! What the core shows: the CLI's tables and any program's, made on demand. Mirrors `proto/cluster.proto`.

use gleaner_lease::state::EndReason;
use gleaner_proto::ids::{Epoch, JobId, LeaseId, NodeName, Term, Uid};

use crate::event::Usage;

/// The whole cluster in figures. The driver adds name, version, uptime and the store's error.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Status {
    pub mode: &'static str,
    pub switched_off: bool,
    pub term: Term,
    pub nodes_total: u32,
    pub nodes_idle: u32,
    pub nodes_opted_in: u32,
    pub nodes_granted: u32,
    pub nodes_leased: u32,
    pub cores_granted: u32,
    pub cores_leased: u32,
    pub leases_live: u32,
    pub executors: u32,
    /// `None`: Slurm has not been seen.
    pub picture_age_ms: Option<u64>,
    pub picture_took_us: u64,
    /// `None`: the last look succeeded.
    pub slurm_error: Option<String>,
    pub vacates: u64,
    /// What the policy names and Slurm does not have.
    pub warnings: Vec<String>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct NodeInfo {
    pub name: NodeName,
    pub slurm_state: String,
    pub partitions: Vec<String>,
    pub opted_in: bool,
    /// What Gleaner does with it, one word.
    pub state: &'static str,
    /// Why it is not harvested; empty if it is.
    pub reason: String,
    pub cores: u32,
    pub memory_bytes: u64,
    pub cores_granted: u32,
    pub cores_leased: u32,
    pub epoch: Epoch,
    pub idle_ms: Option<u64>,
    pub executor: bool,
    pub executor_version: String,
    pub limitations: Vec<String>,
    /// When its jobs' time limits say that it is idle again, from now.
    pub expected_idle_in_ms: Option<u64>,
    pub hold_job: JobId,
}

/// One lease. Ended ones come from the store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LeaseInfo {
    pub lease: LeaseId,
    pub node: NodeName,
    pub uid: Uid,
    pub user: String,
    pub account: String,
    pub cores: u32,
    pub memory_bytes: u64,
    pub state: &'static str,
    pub created_unix_ms: i64,
    pub expires_in_ms: u64,
    pub end_reason: Option<EndReason>,
    pub usage: Usage,
}
