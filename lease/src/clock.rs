//! Stamps of one machine's clock, and the conversions that carry a duration safely to another machine.
//!
//! Used by all books of this crate and by their callers. Never compares stamps of two machines, and never sees a
//! wall clock: every rule here is about durations, and errs to the side that frees nothing too soon (ADR 2).

use std::{fmt, time::Duration};

/// A moment on one machine's `CLOCK_BOOTTIME`, in nanoseconds. Means nothing without that machine's [`BootId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Stamp(pub u64);

/// The kernel's name for one boot of one machine: a stamp of another boot is of another clock.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct BootId(pub [u8; 16]);

/// Sixteen random bytes that an agent makes when it starts: a restarted agent is another instance.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Instance(pub [u8; 16]);

/// How far one machine's clock may run from true time, in parts per million: NTP slews at most this much.
pub const DRIFT_PPM: u64 = 500;

/// How far two clocks may run apart: each may be off by [`DRIFT_PPM`] in its own direction; the last part per
/// million covers the product of the two.
pub const PAIR_DRIFT_PPM: u64 = 2 * DRIFT_PPM + 1;

/// What the harvester waits beyond a grant's end and its drift: timers and schedulers are late by this much.
pub const DRIFT_BASE: Duration = Duration::from_millis(10);

const MILLION: u64 = 1_000_000;

impl Stamp {
    /// The moment `later` after this one; the end of time if that overflows.
    pub fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(nanos(later)))
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The least that another machine's clock has counted while this one counted `elapsed`.
pub fn at_least(elapsed: Duration) -> Duration {
    elapsed.saturating_sub(drift(elapsed))
}

/// The most that another machine's clock has counted while this one counted `elapsed`.
pub fn at_most(elapsed: Duration) -> Duration {
    elapsed.saturating_add(drift(elapsed))
}

/// Until when the harvester counts a grant as held, on its own clock: it answered a heartbeat that it `received`.
pub fn held_until(received: Stamp, ttl: Duration) -> Stamp {
    received.after(at_most(ttl).saturating_add(DRIFT_BASE))
}

/// A moment on the executor's clock that is `ttl` from now or earlier, never later. The executor's last stamp came
/// `waited` ago on the harvester's clock; its own travel is not counted, which also errs early.
pub fn expiry(last_stamp: Stamp, waited: Duration, ttl: Duration) -> Stamp {
    last_stamp.after(at_least(waited)).after(ttl)
}

/// Until when a client may rely on a lease, on its own clock: it `asked` then, and the answer said `safe_for`.
pub fn safe_until(asked: Stamp, safe_for: Duration) -> Stamp {
    asked.after(at_least(safe_for))
}

/// The most that two clocks differ after `elapsed`, rounded up.
fn drift(elapsed: Duration) -> Duration {
    let whole = u128::from(nanos(elapsed)) * u128::from(PAIR_DRIFT_PPM);
    let drift = whole.div_ceil(u128::from(MILLION));
    Duration::from_nanos(u64::try_from(drift).unwrap_or(u64::MAX))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:09}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000)
    }
}

macro_rules! hexadecimal {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    };
}
hexadecimal!(BootId);
hexadecimal!(Instance);
