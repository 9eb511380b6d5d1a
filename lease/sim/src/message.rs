//! Who there is, and what they tell each other. The names follow the wire's.

use std::time::Duration;

use gleaner_lease::{
    clock::{Instance, Stamp},
    holder::GrantMessage,
    issuer::Join,
    state::EndReason,
    token::Claims,
};
use gleaner_proto::ids::{Epoch, LeaseId, Term};

use crate::{
    harvester::StoreOp,
    world::{CLIENTS, NODES},
};

/// A process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    Harvester,
    Agent(usize),
    Keeper(usize),
    Client(usize),
}

impl Who {
    /// Its place in the table of processes.
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Harvester => 0,
            Self::Agent(node) => 1 + node,
            Self::Keeper(node) => 1 + NODES + node,
            Self::Client(client) => 1 + 2 * NODES + client,
        }
    }

    /// The machine that it runs on.
    pub(crate) fn machine(self) -> usize {
        match self {
            Self::Harvester => 0,
            Self::Agent(node) | Self::Keeper(node) => 1 + node,
            Self::Client(client) => 1 + NODES + client,
        }
    }

    /// Every process.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let nodes = (0..NODES).flat_map(|node| [Self::Agent(node), Self::Keeper(node)]);
        std::iter::once(Self::Harvester).chain(nodes).chain((0..CLIENTS).map(Self::Client))
    }
}

/// What the executor knows of a call when its session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallState {
    NotStarted,
    Started,
    Finished,
    Faulted,
}

/// An event that an agent reports until it is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    LeaseEnded { lease: LeaseId, reason: EndReason, allocated: Duration, executing: Duration },
    LeaseRenewed { lease: LeaseId, expires: Stamp },
    Vacated { epoch: Epoch },
    JobStarted { job: u32 },
    JobEnded { job: u32 },
}

/// What a process can be told.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    // Agent to harvester, on connection `conn` of one life of the agent.
    Register {
        node: usize,
        conn: u64,
        join: Join,
        hold: Option<u32>,
    },
    Heartbeat {
        node: usize,
        conn: u64,
        instance: Instance,
        seq: u64,
        stamp: Stamp,
        held: Vec<(LeaseId, Stamp)>,
    },
    Report {
        node: usize,
        conn: u64,
        seq: u64,
        report: Report,
    },
    // Harvester to agent.
    Registered {
        conn: u64,
        epoch: Epoch,
        term: Term,
    },
    Grant {
        conn: u64,
        grant: GrantMessage,
    },
    Vacate {
        conn: u64,
        epoch: Epoch,
        reason: EndReason,
    },
    Revoke {
        conn: u64,
        lease: LeaseId,
        reason: EndReason,
    },
    Ack {
        conn: u64,
        seq: u64,
    },
    // Client and harvester.
    Acquire {
        client: usize,
        request: u64,
        cores: u32,
        ttl: Duration,
    },
    Release {
        lease: LeaseId,
    },
    Leased {
        request: u64,
        node: usize,
        claims: Claims,
    },
    Refused {
        request: u64,
    },
    // The database to the harvester.
    Stored {
        op: StoreOp,
        ok: bool,
    },
    // Client and agent, on a session.
    Attach {
        session: usize,
        claims: Claims,
    },
    Renew {
        session: usize,
        lease: LeaseId,
        ttl: Duration,
    },
    Detach {
        session: usize,
        lease: LeaseId,
    },
    Attached {
        session: usize,
        safe_for: Duration,
    },
    AttachRefused {
        session: usize,
    },
    Renewed {
        session: usize,
        safe_for: Duration,
    },
    Evicted {
        session: usize,
        verdicts: Vec<(usize, CallState)>,
    },
    SessionCut {
        session: usize,
    },
    // Worker to client, on a session's lane.
    Reply {
        session: usize,
        call: usize,
    },
    Stale {
        session: usize,
        call: usize,
    },
    // A client's program.
    NewCall {
        call: usize,
    },
    // Agent to keeper.
    KeepGrant {
        epoch: Epoch,
        until: Stamp,
    },
    StartWorker {
        lease: LeaseId,
        epoch: Epoch,
        cores: u32,
        deadline: Stamp,
    },
    Extend {
        lease: LeaseId,
        deadline: Stamp,
    },
    StopWorker {
        lease: LeaseId,
    },
    // Keeper to agent.
    Started {
        lease: LeaseId,
    },
    StartFailed {
        lease: LeaseId,
    },
    Gone {
        lease: LeaseId,
        allocated: Duration,
        executing: Duration,
    },
    Fenced {
        job: u32,
    },
    JobOver {
        job: u32,
    },
    // The kernel, and hooks, to the keeper.
    AgentDied,
    WorkerDied {
        lease: LeaseId,
        allocated: Duration,
        executing: Duration,
    },
    Prolog {
        job: u32,
    },
    Epilog {
        job: u32,
    },
}

impl Input {
    /// Whether it comes from a hook: a keeper that was stopped reads those first.
    pub(crate) fn is_of_a_hook(&self) -> bool {
        matches!(self, Self::Prolog { .. } | Self::Epilog { .. })
    }
}
