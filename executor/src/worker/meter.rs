//! Counts what a lane uses: calls, time inside functions, time spent looking for calls. Written to the board, where the agent
//! reads it at any time. Reads the clock, decides nothing.
#![forbid(unsafe_code)]

use gleaner_fabric::clock::{self, Clock};

use super::call::Ran;
use crate::board::Counters;

pub(super) struct Meter {
    counters: Counters<'static>,
    /// Since when, in ticks, the lane has been looking for calls.
    since: u64,
    /// When the last call ended: long ago, before the first.
    active: u64,
}

impl Meter {
    pub(super) fn new(counters: Counters<'static>, clock: Clock) -> Self {
        counters.begin(clock);
        Self { counters, since: clock::ticks(), active: 0 }
    }

    /// A function ran.
    #[inline]
    pub(super) fn call(&mut self, Ran { begun, until }: Ran) {
        let looked = begun.saturating_sub(self.since);
        self.counters.add(1, until.wrapping_sub(begun), looked);
        (self.since, self.active) = (until, until);
    }

    /// Still looking. Returns the ticks since the last call.
    pub(super) fn idle(&mut self) -> u64 {
        let now = clock::ticks();
        self.counters.add(0, 0, now.wrapping_sub(self.since));
        self.since = now;
        now.wrapping_sub(self.active)
    }

    /// The lane goes to sleep.
    pub(super) fn pause(&mut self) {
        self.idle();
    }

    /// The lane was woken.
    pub(super) fn resume(&mut self) {
        self.since = clock::ticks();
    }
}
