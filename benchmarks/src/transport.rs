//! The transports that a client can be made to use, and what each is held against. A new one is one line of the table.

use gleaner::{Request, Transports, Waiting};

use crate::{goal::Goal, raw::Raw};

/// A transport.
#[derive(Debug, Clone, Copy)]
pub struct Transport {
    /// Its name in results.
    pub name: &'static str,
    /// How a client is made to use it.
    pub wanted: gleaner::Transport,
    /// Beside what a hot call stands.
    pub hot: Raw,
    /// What the design asks of it.
    pub hot_goal: Goal,
    /// Beside what a warm call stands.
    pub warm: Raw,
    /// What the design asks of large payloads' bandwidth: 90 % of the baseline's.
    pub bandwidth_goal: Option<Goal>,
    /// Calls a second that the design asks for, by how many are under way.
    pub throughput_goal: fn(usize) -> Option<Goal>,
}

/// All of them.
#[rustfmt::skip] // a table
pub const TRANSPORTS: &[Transport] = &[
    Transport { name: "shm", wanted: gleaner::Transport::Shm, hot: Raw::Shm, hot_goal: Goal::Added(150, 2.0), warm: Raw::Futex, bandwidth_goal: Some(Goal::Ratio(1.11)), throughput_goal: shm_throughput },
    Transport { name: "tcp", wanted: gleaner::Transport::Tcp, hot: Raw::TcpBusy, hot_goal: Goal::Ratio(1.05), warm: Raw::TcpBlocking, bandwidth_goal: None, throughput_goal: |_| None },
];

/// What the design asks of warm calls over any transport.
pub const WARM_GOAL: Goal = Goal::Ratios(1.15, 1.25);

impl Transport {
    /// A request for a lease that is reached by this transport and no other.
    pub fn request(&self, waiting: Waiting) -> Request {
        Request::new().transport(Transports::Only(self.wanted)).waiting(waiting)
    }
}

fn shm_throughput(depth: usize) -> Option<Goal> {
    match depth {
        1 => Some(Goal::Throughput(2e6)),
        32 => Some(Goal::Throughput(8e6)),
        _ => None,
    }
}
