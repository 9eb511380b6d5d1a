//! What happened to a pool's leases: read by the CLI and the demo, kept in a bounded list.

use std::time::{Duration, Instant, SystemTime};

/// Most events that a pool keeps; older ones are dropped.
pub const EVENTS_MAX: usize = 1024;

/// One thing that happened to a pool.
#[derive(Debug, Clone)]
pub struct PoolEvent {
    /// When, on this process's clock.
    pub at: Instant,
    /// When, on the wall clock, for people.
    pub wall: SystemTime,
    /// The node.
    pub node: String,
    /// The lease.
    pub lease_id: u64,
    /// What.
    pub kind: PoolEventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolEventKind {
    /// A session began; it took this long from the request for the lease to the first free slot.
    Leased {
        /// From the request to the harvester's answer, by which the grant is durable.
        granted: Duration,
        /// From the request to ready.
        took: Duration,
    },
    /// The lease is over, against the client's will.
    Evicted {
        /// Why, in one word: the protocol's name of the reason.
        reason: String,
        /// The executor's own words.
        detail: String,
        /// Calls that had not started, or are idempotent, and run elsewhere: by their number in the pool.
        moved: Vec<u64>,
        /// Calls that ended here as EVICTED, FAILED or UNKNOWN.
        lost: Vec<u64>,
    },
    /// The client gave it back.
    Released,
    /// No node could be had: calls run in this process from now on.
    FellBack {
        /// Why.
        why: String,
    },
}

/// What one call went through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CallStats {
    /// Its number in the pool.
    pub number: u64,
    /// How often it was sent again after an eviction.
    pub reruns: u32,
    /// Time inside the function, as the worker says; over RDMA, from 4.1 us on, rounded down by less than 0.05 %.
    pub executing: Duration,
}

/// What a pool has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolStats {
    /// Calls that ended OK.
    pub ok: u64,
    /// Calls that ended FAILED.
    pub failed: u64,
    /// Calls that ended EVICTED.
    pub evicted: u64,
    /// Calls that ended UNKNOWN.
    pub unknown: u64,
    /// Times that a call was sent again after an eviction.
    pub reruns: u64,
    /// Calls that ran in this process.
    pub local: u64,
    /// Leases that ended against the client's will.
    pub evictions: u64,
}
