//! What a caller asks for: the leases' size and number, and how the pool over them behaves.

use std::{ops::RangeInclusive, time::Duration};

use gleaner_config::Config;
use gleaner_fabric::Geometry;
use gleaner_proto::{
    header::{BLOCK_ALIGN, GUARD_LEN, HEADER_LEN},
    v1::{self, AcquireRequest},
};

use crate::{dial::Transport, error::AcquireError};

/// How a waiting caller and its workers spend the time between calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// Spin: fastest, and billed for as long as the lease lasts.
    Hot,
    /// Sleep until woken.
    Warm,
    /// Spin for so long after the last call, then sleep.
    Adaptive(Duration),
}

impl Waiting {
    /// How long to spin after the last call.
    pub(crate) fn hot_for(self) -> Duration {
        match self {
            Self::Hot => Duration::MAX,
            Self::Warm => Duration::ZERO,
            Self::Adaptive(time) => time,
        }
    }

    /// The same for the executor, which may allow less.
    pub(crate) fn wire(self) -> (v1::Waiting, u64) {
        match self.hot_for() {
            Duration::ZERO => (v1::Waiting::Warm, 0),
            time => (v1::Waiting::Hot, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
        }
    }
}

/// Which transports a session may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transports {
    /// Shared memory on the executor's own node; from elsewhere RDMA where both ends have it, else TCP.
    Auto,
    /// This one or none.
    Only(Transport),
}

impl From<gleaner_config::Transport> for Transports {
    fn from(named: gleaner_config::Transport) -> Self {
        match named {
            gleaner_config::Transport::Auto => Self::Auto,
            gleaner_config::Transport::Shm => Self::Only(Transport::Shm),
            gleaner_config::Transport::Rdma => Self::Only(Transport::Rdma),
            gleaner_config::Transport::Tcp => Self::Only(Transport::Tcp),
        }
    }
}

/// Who renews the leases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAlive {
    /// Each call that finds less than half of the time left renews on its way.
    OnCall,
    /// A thread of the library's own.
    Background,
    /// Nobody: the caller calls [`crate::Pool::renew`].
    Manual,
}

/// A request for leases. Build it with the methods; what is not said takes the default given there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub(crate) nodes: RangeInclusive<u32>,
    pub(crate) cores: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) ttl: Duration,
    pub(crate) partition: String,
    pub(crate) account: String,
    pub(crate) waiting: Waiting,
    pub(crate) transport: Transports,
    pub(crate) keep_alive: KeepAlive,
    pub(crate) window: u16,
    pub(crate) slot_bytes: u32,
    pub(crate) arena_bytes: u64,
    pub(crate) local_fallback: bool,
    pub(crate) patience: Duration,
}

impl Default for Request {
    fn default() -> Self {
        Self::from(&Config::default())
    }
}

impl From<&Config> for Request {
    /// One core of one node, and everything else as the configuration's `[client]` says.
    fn from(config: &Config) -> Self {
        let client = &config.client;
        Self {
            nodes: 1..=1,
            cores: 1,
            memory_bytes: client.memory.0,
            ttl: client.ttl,
            partition: String::new(),
            account: client.account.clone().unwrap_or_default(),
            waiting: match client.waiting {
                gleaner_config::Waiting::Hot => Waiting::Hot,
                gleaner_config::Waiting::Warm => Waiting::Warm,
                gleaner_config::Waiting::Adaptive => Waiting::Adaptive(client.hot_timeout),
            },
            transport: client.transport.into(),
            keep_alive: match client.keep_alive {
                gleaner_config::KeepAlive::OnCall => KeepAlive::OnCall,
                gleaner_config::KeepAlive::Background => KeepAlive::Background,
                gleaner_config::KeepAlive::Manual => KeepAlive::Manual,
            },
            window: client.window.try_into().unwrap_or(u16::MAX),
            slot_bytes: client.slot.0.try_into().unwrap_or(u32::MAX),
            arena_bytes: client.arena.0,
            local_fallback: client.local_fallback,
            patience: client.patience,
        }
    }
}

impl Request {
    /// One core of one node, and everything else as by default.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many nodes: refused below the least. Default 1 to 1.
    pub fn nodes(mut self, nodes: RangeInclusive<u32>) -> Self {
        self.nodes = nodes;
        self
    }

    /// Cores on each node: each is one lane with a pinned worker thread. Default 1.
    pub fn cores(mut self, cores: u32) -> Self {
        self.cores = cores;
        self
    }

    /// Memory on each node, in bytes. Default 256 MiB.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// For how long the leases are wanted at a time; renewing asks for as much again. Default one minute.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Only nodes of this Slurm partition. Default any.
    pub fn partition(mut self, partition: impl Into<String>) -> Self {
        self.partition = partition.into();
        self
    }

    /// The Slurm account that is charged. Default the caller's.
    pub fn account(mut self, account: impl Into<String>) -> Self {
        self.account = account.into();
        self
    }

    /// How workers wait for calls and the caller for replies; [`crate::Pool::set_waiting`] changes it. Default
    /// [`Waiting::Adaptive`], a tenth of a second.
    pub fn waiting(mut self, waiting: Waiting) -> Self {
        self.waiting = waiting;
        self
    }

    /// How calls travel. Default [`Transports::Auto`].
    pub fn transport(mut self, transport: Transports) -> Self {
        self.transport = transport;
        self
    }

    /// Who renews. Default [`KeepAlive::OnCall`].
    pub fn keep_alive(mut self, keep_alive: KeepAlive) -> Self {
        self.keep_alive = keep_alive;
        self
    }

    /// The most calls outstanding on one core: what is submitted beyond it waits. Default 16.
    pub fn window(mut self, slots: u16) -> Self {
        self.window = slots;
        self
    }

    /// Bytes of one slot: calls whose input and reply fit need no arena. Default 8 KiB.
    pub fn slot_bytes(mut self, bytes: u32) -> Self {
        self.slot_bytes = bytes;
        self
    }

    /// Bytes of each core's arena for larger inputs and replies, each direction. Default 0: none.
    pub fn arena_bytes(mut self, bytes: u64) -> Self {
        self.arena_bytes = bytes;
        self
    }

    /// Runs calls in this process when no node can be had, now or after an eviction. Default false.
    pub fn local_fallback(mut self, local: bool) -> Self {
        self.local_fallback = local;
        self
    }

    /// How long a call waits for another lease after its node was taken back. Default 30 s.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Room for payloads of so many bytes, one at a time on each core: an arena that just holds one.
    pub fn payload_max(mut self, bytes: u64) -> Self {
        let block = bytes.saturating_add((HEADER_LEN + GUARD_LEN) as u64);
        self.arena_bytes = self.arena_bytes.max(block.next_multiple_of(BLOCK_ALIGN as u64));
        self
    }

    /// What each of its leases is to be, for the harvester: on which nodes and by whom is not said here.
    pub(crate) fn wanted(&self) -> AcquireRequest {
        AcquireRequest {
            cores: self.cores,
            memory_bytes: self.memory_bytes,
            ttl_ms: self.ttl.as_millis() as u64,
            partition: self.partition.clone(),
            account: self.account.clone(),
            ..Default::default()
        }
    }

    /// The same way of calling, on leases as these.
    pub(crate) fn wanting(self, leases: &AcquireRequest) -> Self {
        Self {
            cores: leases.cores,
            memory_bytes: leases.memory_bytes,
            ttl: Duration::from_millis(leases.ttl_ms),
            partition: leases.partition.clone(),
            account: leases.account.clone(),
            ..self
        }
    }

    /// What each lane is asked to be.
    pub(crate) fn geometry(&self) -> Geometry {
        let Self { window, slot_bytes, arena_bytes, .. } = *self;
        Geometry { window, slot_bytes, arena_bytes }
    }

    /// Refuses what no node could ever give.
    pub(crate) fn check(&self) -> Result<(), AcquireError> {
        let refuse = |why: String| Err(AcquireError::Request(why));
        if *self.nodes.start() == 0 || self.nodes.is_empty() {
            return refuse(format!("{} to {} nodes", self.nodes.start(), self.nodes.end()));
        }
        if self.cores == 0 {
            return refuse("no core on each node".into());
        }
        match self.geometry().check() {
            Ok(_) => Ok(()),
            Err(error) => refuse(error.to_string()),
        }
    }
}
