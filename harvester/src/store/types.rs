//! What the store answers with, where the core has no type of its own for it.

use gleaner_harvester_core::event::Usage;
use gleaner_lease::state::EndReason;
use gleaner_proto::ids::{LeaseId, NodeName, Uid};

/// A lease that has ended, as it is listed.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct EndedLease {
    pub lease: LeaseId,
    pub node: NodeName,
    pub uid: Uid,
    pub user: String,
    pub account: String,
    pub cores: u32,
    pub memory_bytes: u64,
    pub created_unix_ms: i64,
    pub ended_unix_ms: i64,
    pub end_reason: Option<EndReason>,
    pub end_detail: String,
    pub usage: Usage,
}
