//! What goes into and comes out of [`super::Issuer`]: plain values, no rules.

use std::time::Duration;

use gleaner_proto::ids::{Epoch, LeaseId, NodeName, Uid};

use crate::{
    clock::{BootId, Instance, Stamp},
    state::{EndReason, State},
    token::Claims,
};

/// The site's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest grant that this harvester, or one before it, ever gives.
    pub grant_ttl_max: Duration,
}

/// The first lease id and epoch that are not reserved on disk. Both counters are the whole cluster's, so a node's epochs
/// only grow; neither ever goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Numbers {
    /// Lease ids from here on are unused.
    pub lease: u64,
    /// Epochs from here on are unused.
    pub epoch: u64,
}

/// An executor's registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Join {
    /// The boot whose clock its stamps are of.
    pub boot: BootId,
    /// This life of the agent.
    pub instance: Instance,
    /// When it sent the registration, on its own clock.
    pub stamp: Stamp,
    /// The epoch of which it still serves or still holds something; 0 if nothing is left there.
    pub resume_epoch: Epoch,
    /// Cores that it can lease out.
    pub cores: u32,
    /// Memory that it can lease out.
    pub memory_bytes: u64,
}

/// The answer to a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// The epoch from now on.
    pub epoch: Epoch,
    /// True if it is the one that the executor asked to resume: its leases go on.
    pub resumed: bool,
    /// Leases of a resumed epoch that shall end: tell the executor again.
    pub revoke: Vec<LeaseEnding>,
    /// Leases that are over, because the executor restarted or holds nothing of them.
    pub ended: Vec<Ended>,
}

/// Why a registration is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// It is older than what the same boot has sent since.
    #[error(
        "registration of {node} is older than what the node has sent since: it came late or twice"
    )]
    Replayed {
        /// The node.
        node: NodeName,
    },
    /// No epoch can be given before more are stored.
    #[error(
        "no grant epoch is left: the database has not stored the next ones; see the harvester's store error"
    )]
    Numbers,
}

/// A heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The life of the agent whose stream it came on.
    pub instance: Instance,
    /// Its number.
    pub seq: u64,
    /// When it was made, on the executor's clock.
    pub stamp: Stamp,
}

/// What to tell the executor, and what to remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// The grant.
    pub epoch: Epoch,
    /// The heartbeat that it answers.
    pub answers_seq: u64,
    /// For how long from that heartbeat's stamp.
    pub ttl: Duration,
    /// Cores of the node's share.
    pub cores: u32,
    /// Memory of the node's share.
    pub memory_bytes: u64,
    /// Until when it counts as held, on the harvester's clock.
    pub held_until: Stamp,
}

/// Why no grant can be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// Nobody to give it to.
    #[error("no executor of {0} is joined")]
    NoExecutor(NodeName),
    /// No stamp from which a grant could count.
    #[error("the executor of {0} has not sent a heartbeat since it joined")]
    NoHeartbeat(NodeName),
    /// No epoch can be given before more are stored.
    #[error(
        "no grant epoch is left: the database has not stored the next ones; see the harvester's store error"
    )]
    Numbers,
}

/// A slice that a client wants on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Whom the worker runs as.
    pub uid: Uid,
    /// And in which group.
    pub gid: u32,
    /// Cores wanted, at least 1.
    pub cores: u32,
    /// Memory wanted.
    pub memory_bytes: u64,
    /// For how long, unless renewed.
    pub ttl: Duration,
    /// The client's Ed25519 key.
    pub client_key: [u8; 32],
}

/// A lease, as the book has it and as it is stored: restoring takes the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Its number.
    pub id: LeaseId,
    /// Its node.
    pub node: NodeName,
    /// Its grant.
    pub epoch: Epoch,
    /// The boot whose clock `expires` is of.
    pub boot: BootId,
    /// The life of the agent that it was issued to.
    pub instance: Instance,
    /// Whom its worker runs as.
    pub uid: Uid,
    /// And in which group.
    pub gid: u32,
    /// Cores of the slice.
    pub cores: u32,
    /// Memory of the slice.
    pub memory_bytes: u64,
    /// When it ends unless renewed, on the executor's clock, as far as the harvester knows.
    pub expires: Stamp,
    /// Where it stands.
    pub state: State,
    /// Why it shall end, once somebody has said so.
    pub ending: Option<EndReason>,
}

/// A reserved lease and the claims to sign once it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What to store.
    pub lease: Lease,
    /// What the token says.
    pub claims: Claims,
}

/// Why a slice cannot be reserved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// The node serves no grant now.
    #[error("{0} has no executor with a live grant")]
    NoGrant(NodeName),
    /// The grant has less left.
    #[error("{node} has {} cores and {} bytes free, and {cores} cores and {memory_bytes} bytes are wanted", free.cores, free.memory_bytes)]
    Room {
        /// The node.
        node: NodeName,
        /// Cores wanted.
        cores: u32,
        /// Memory wanted.
        memory_bytes: u64,
        /// What is left.
        free: Free,
    },
    /// No lease id can be given before more are stored.
    #[error(
        "no lease id is left: the database has not stored the next ones; see the harvester's store error"
    )]
    Numbers,
}

/// The lease ended while it was being stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("lease {0} ended before it was stored: its node was taken back; acquire another")]
pub struct PersistedError(pub LeaseId);

/// What is free on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// Cores.
    pub cores: u32,
    /// Memory.
    pub memory_bytes: u64,
}

/// A lease whose executor must be told to end it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseEnding {
    /// The lease.
    pub lease: LeaseId,
    /// Whom to tell.
    pub node: NodeName,
    /// Why: what was first given.
    pub reason: EndReason,
}

/// A node whose executor must be told to leave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vacating {
    /// Everything of epochs up to this one.
    pub epoch: Epoch,
    /// The leases that are thereby ending, or were only reserved and are over.
    pub leases: Vec<LeaseId>,
}

/// A lease that is over: its slice is free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The lease.
    pub lease: LeaseId,
    /// Its node.
    pub node: NodeName,
    /// Its grant.
    pub epoch: Epoch,
    /// Why.
    pub reason: EndReason,
}

/// What the book says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeView {
    /// Whether its executor's stream is there.
    pub joined: bool,
    /// Where its newest grant stands; [`State::Ended`] without one.
    pub state: State,
    /// The newest grant's epoch; 0 without one.
    pub epoch: Epoch,
    /// Until when something may run there at the latest, on the harvester's clock.
    pub held_until: Option<Stamp>,
    /// Cores granted.
    pub cores: u32,
    /// Memory granted.
    pub memory_bytes: u64,
    /// Leases that are not over.
    pub leases: usize,
}
