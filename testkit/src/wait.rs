//! Waiting for a condition with a bound: the one way in which tests wait for anything.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

/// How often a condition is looked at.
const PERIOD: Duration = Duration::from_millis(5);

/// Waits until `condition` holds and returns how long that took; panics, naming `what`, when `bound` is over.
#[track_caller]
pub fn wait_until(
    what: impl Display,
    bound: Duration,
    condition: impl FnMut() -> bool,
) -> Duration {
    let started = Instant::now();
    assert!(poll_until(bound, condition), "waited {bound:?} in vain until {what}");
    started.elapsed()
}

/// Looks at `condition` until it holds (true) or `bound` is over (false). It is looked at least once.
pub fn poll_until(bound: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if started.elapsed() >= bound {
            return false;
        }
        thread::sleep(PERIOD);
    }
}
