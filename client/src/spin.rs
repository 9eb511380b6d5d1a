//! How long a waiting caller spins, and when it looks at the rest of the world meanwhile: by the time stamp counter alone.

use std::time::Duration;

use gleaner_fabric::clock::{self, Calibration};

use crate::tune::{LOOKS_PER_CLOCK, SERVICE_PERIOD};

/// The state of one pool's waiting.
pub(crate) struct Spin {
    calibration: Option<Calibration>,
    hot: Duration,
    /// Both in ticks, once the clock is known: [`Self::hot`], and the time between two services.
    bounds: (u64, u64),
    /// Since when nothing has come; `None` while something does.
    idle_since: Option<u64>,
    serviced: u64,
    looks: u32,
}

impl Spin {
    /// Spins for `hot` after the last answer.
    pub(crate) fn new(hot: Duration) -> Self {
        let calibration = Some(Calibration::begin());
        Self { calibration, hot, bounds: (0, 0), idle_since: None, serviced: 0, looks: 0 }
    }

    /// Spins for another time from now on.
    pub(crate) fn set(&mut self, hot: Duration) {
        *self = Self::new(hot);
    }

    /// An answer has come.
    pub(crate) fn answered(&mut self) {
        self.idle_since = None;
    }

    /// Whether to look again at once.
    pub(crate) fn hot(&mut self) -> bool {
        if self.hot.is_zero() {
            return false;
        }
        self.calibrate();
        let now = clock::ticks();
        now.saturating_sub(*self.idle_since.get_or_insert(now)) < self.bounds.0
    }

    /// Whether to see to everything else: true about once a millisecond.
    pub(crate) fn due(&mut self) -> bool {
        self.looks += 1;
        if self.looks < LOOKS_PER_CLOCK {
            return false;
        }
        self.looks = 0;
        self.calibrate();
        clock::ticks().saturating_sub(self.serviced) >= self.bounds.1
    }

    /// It was seen to now.
    pub(crate) fn serviced(&mut self) {
        self.serviced = clock::ticks();
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
