//! The hot loops' clock: the processor's time stamp counter, compared once with the system's. Reading it is no system call and
//! costs a few nanoseconds; it decides nothing but a meter's figures, what is left of a call's time, and how long to spin.
// UNSAFETY: reading the counter is an intrinsic.
#![allow(unsafe_code)]

use std::time::Instant;

use crate::tune::CALIBRATE_NS;

/// A comparison under way.
#[derive(Debug)]
pub struct Calibration {
    start: Instant,
    ticks: u64,
}

/// Turns ticks into nanoseconds.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Nanoseconds of a tick, times 2^32.
    scale: u64,
}

impl Calibration {
    /// Begins it.
    pub fn begin() -> Self {
        Self { start: Instant::now(), ticks: ticks() }
    }

    /// Ends the comparison; spins first if it was too short to be exact.
    pub fn end(self) -> Clock {
        loop {
            let elapsed = self.start.elapsed().as_nanos() as u64;
            let ticked = ticks().wrapping_sub(self.ticks);
            if elapsed >= CALIBRATE_NS && ticked > 0 {
                return Clock { scale: ((u128::from(elapsed) << 32) / u128::from(ticked)) as u64 };
            }
            std::hint::spin_loop();
        }
    }
}

impl Clock {
    /// A clock of this scale: nanoseconds of a tick, times 2^32.
    pub fn with_scale(scale: u64) -> Self {
        Self { scale }
    }

    /// Its scale, for another process on this machine.
    pub fn scale(self) -> u64 {
        self.scale
    }

    /// Ticks in nanoseconds.
    #[inline]
    pub fn ns(self, ticks: u64) -> u64 {
        ((u128::from(ticks) * u128::from(self.scale)) >> 32) as u64
    }

    /// Nanoseconds in ticks; what does not fit saturates.
    pub fn ticks(self, ns: u64) -> u64 {
        let ticks = (u128::from(ns) << 32) / u128::from(self.scale.max(1));
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

/// The counter, now.
#[cfg(target_arch = "x86_64")]
#[inline]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and the sandbox does not forbid it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// The counter, now: nanoseconds of the system's clock, which these processors read without a system call as well.
#[cfg(not(target_arch = "x86_64"))]
pub fn ticks() -> u64 {
    static FIRST: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    FIRST.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_agrees_with_the_system_clock() {
        let clock = Calibration::begin().end();
        let (start, first) = (Instant::now(), ticks());
        while start.elapsed().as_millis() < 20 {}
        let (system, own) = (start.elapsed().as_nanos() as u64, clock.ns(ticks() - first));
        assert!(own.abs_diff(system) < system / 20, "{own} for {system} ns");
        let back = clock.ns(clock.ticks(1_000_000_000));
        assert!(back.abs_diff(1_000_000_000) < 1000, "{back}");
        assert!(clock.ticks(u64::MAX) >= clock.ticks(1_000_000_000), "it saturates");
    }
}
