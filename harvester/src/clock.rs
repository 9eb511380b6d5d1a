//! The machine's clocks, read in one place: the core is handed `now`.

use std::time::{SystemTime, UNIX_EPOCH};

use gleaner_lease::clock::Stamp;
use nix::time::{ClockId, clock_gettime};

/// This machine's `CLOCK_BOOTTIME`.
pub(crate) fn now() -> Stamp {
    // The clock exists on every Linux since 2.6.39; a failure would be a broken kernel, and zero only ends leases early.
    let nanos = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(|time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64);
    Stamp(nanos.unwrap_or(0))
}

/// The wall clock, for records that people read. Decides nothing.
pub(crate) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
