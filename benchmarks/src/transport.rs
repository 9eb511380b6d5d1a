//! The transports that a client can be made to use, and what each is held against. A new one is one line of the table.

use gleaner::Options;

use crate::{goal::Goal, raw::Raw};

/// A transport.
#[derive(Debug, Clone, Copy)]
pub struct Transport {
    /// Its name in results.
    pub name: &'static str,
    /// Makes a client use it.
    pub choose: fn(&mut Options),
    /// Beside what a hot call stands.
    pub hot: Raw,
    /// What the design asks of it.
    pub hot_goal: Goal,
    /// Beside what a warm call stands.
    pub warm: Raw,
    /// Calls a second that the design asks for, by how many are under way.
    pub throughput_goal: fn(usize) -> Option<Goal>,
}

/// All of them.
#[rustfmt::skip] // a table
pub const TRANSPORTS: &[Transport] = &[
    Transport { name: "tcp", choose: |_| {}, hot: Raw::TcpBusy, hot_goal: Goal::Ratio(1.05), warm: Raw::TcpBlocking, throughput_goal: |_| None },
];

/// What the design asks of warm calls over any transport.
pub const WARM_GOAL: Goal = Goal::Ratios(1.15, 1.25);
