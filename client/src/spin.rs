//! How long a waiting caller spins, and when it looks at the rest of the world meanwhile: by the time stamp counter alone.

use std::time::Duration;

use gleaner_fabric::clock::{self, Calibration};

use crate::tune::{LOOKS_PER_CLOCK, SERVICE_PERIOD};

/// The state of one pool's waiting.
pub(crate) struct Spin {
    calibration: Option<Calibration>,
    hot: Duration,
    /// It is not zero.
    spins: bool,
    /// Both in ticks, once the clock is known: [`Self::hot`], and the time between two services.
    bounds: (u64, u64),
    /// Since when nothing has come; `None` while something does.
    idle_since: Option<u64>,
    serviced: u64,
    /// Since the clock was last read.
    looks: u32,
    /// A short sleep since the last answer was in vain.
    dozed: bool,
}

/// What a caller does that has found nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Looks again at once.
    Look,
    /// Sees to everything else first: about once a millisecond.
    Service,
    /// Sleeps: it has spun for long enough.
    Sleep,
}

impl Spin {
    /// Spins for `hot` after the last answer.
    pub(crate) fn new(hot: Duration) -> Self {
        let calibration = Some(Calibration::begin());
        let (spins, bounds) = (!hot.is_zero(), (0, 0));
        Self {
            calibration,
            hot,
            spins,
            bounds,
            idle_since: None,
            serviced: 0,
            looks: 0,
            dozed: false,
        }
    }

    /// Spins for another time from now on.
    pub(crate) fn set(&mut self, hot: Duration) {
        *self = Self::new(hot);
    }

    /// An answer has come.
    pub(crate) fn answered(&mut self) {
        self.idle_since = None;
        self.dozed = false;
    }

    /// Whether a caller that finds nothing sleeps without having spun.
    pub(crate) fn is_warm(&self) -> bool {
        !self.spins
    }

    /// Whether the next sleep is a short one: an answer is likely to come soon.
    pub(crate) fn dozes(&self) -> bool {
        !self.dozed
    }

    /// A short sleep was in vain.
    pub(crate) fn dozed(&mut self) {
        self.dozed = true;
    }

    /// How often to look before [`next`](Self::next): once, or as often as the clock is not read anyway.
    pub(crate) fn looks(&self) -> u32 {
        if self.spins { LOOKS_PER_CLOCK - self.looks } else { 1 }
    }

    /// So many looks found nothing; `next` follows, and counts as the last of them.
    pub(crate) fn looked(&mut self, looks: u32) {
        self.looks += looks - 1;
    }

    /// As many as there may be between two looks at the clock, or more.
    pub(crate) fn looked_often(&mut self) {
        self.looks = LOOKS_PER_CLOCK - 1;
    }

    /// Nothing was found: what now?
    pub(crate) fn next(&mut self) -> Next {
        if !self.spins {
            return Next::Sleep;
        }
        let Some(now) = self.clock() else { return Next::Look };
        if now.saturating_sub(*self.idle_since.get_or_insert(now)) >= self.bounds.0 {
            Next::Sleep
        } else if now.saturating_sub(self.serviced) >= self.bounds.1 {
            Next::Service
        } else {
            // Who waits for longer leaves the processor's other thread more room.
            std::hint::spin_loop();
            Next::Look
        }
    }

    /// Whether to see to everything else: true about once a millisecond.
    pub(crate) fn due(&mut self) -> bool {
        self.clock().is_some_and(|now| now.saturating_sub(self.serviced) >= self.bounds.1)
    }

    /// The same where a look at the clock costs little beside what was done.
    pub(crate) fn overdue(&mut self) -> bool {
        self.looks = LOOKS_PER_CLOCK;
        self.due()
    }

    /// It was seen to now.
    pub(crate) fn serviced(&mut self) {
        self.serviced = clock::ticks();
    }

    /// The time, at one of many looks.
    fn clock(&mut self) -> Option<u64> {
        self.looks += 1;
        if self.looks < LOOKS_PER_CLOCK {
            return None;
        }
        self.looks = 0;
        self.calibrate();
        Some(clock::ticks())
    }

    /// Ends the comparison of clocks that began with the pool; getting a lease has taken longer than it needs.
    fn calibrate(&mut self) {
        if let Some(calibration) = self.calibration.take() {
            let clock = calibration.end();
            let hot_ns = u64::try_from(self.hot.as_nanos()).unwrap_or(u64::MAX);
            self.bounds = (clock.ticks(hot_ns), clock.ticks(SERVICE_PERIOD.as_nanos() as u64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_many_looks_the_clock_is_read_at_the_next() {
        let mut spin = Spin::new(Duration::from_secs(1));
        spin.looked_often();
        assert_eq!(spin.looks(), 1);
        spin.next();
        assert_eq!(spin.looks(), LOOKS_PER_CLOCK);
    }
}
