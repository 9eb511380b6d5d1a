//! Counts what a lane uses: calls, time inside functions, time spent looking for calls. Written to the board, where the agent
//! reads it at any time. Reads the clock, decides nothing.
#![forbid(unsafe_code)]

use gleaner_fabric::clock::{self, Clock};

use super::call::Ran;
use crate::board::{Counters, Usage};

pub(super) struct Meter {
    counters: Counters<'static>,
    clock: Clock,
    calls: u64,
    executing: u64,
    polling: u64,
    /// Since when, in ticks, the lane has been looking for calls.
    since: u64,
    /// When the last call ended: long ago, before the first.
    active: u64,
}

impl Meter {
    pub(super) fn new(counters: Counters<'static>, clock: Clock) -> Self {
        let now = clock::ticks();
        let (calls, executing, polling) = (0, 0, 0);
        Self { counters, clock, calls, executing, polling, since: now, active: 0 }
    }

    /// A function ran.
    #[inline]
    pub(super) fn call(&mut self, Ran { ticks, until }: Ran) {
        let looked = until.wrapping_sub(self.since).saturating_sub(ticks);
        self.calls += 1;
        self.executing = self.executing.wrapping_add(ticks);
        self.polling = self.polling.wrapping_add(looked);
        (self.since, self.active) = (until, until);
        self.publish();
    }

    /// Still looking. Returns the ticks since the last call.
    pub(super) fn idle(&mut self) -> u64 {
        let now = clock::ticks();
        self.polling = self.polling.wrapping_add(now.wrapping_sub(self.since));
        self.since = now;
        self.publish();
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

    #[inline]
    fn publish(&self) {
        let usage = Usage {
            calls: self.calls,
            executing_ns: self.clock.ns(self.executing),
            polling_ns: self.clock.ns(self.polling),
        };
        self.counters.set(usage);
    }
}
