//! When something was, by the processor's counter. The system's clock is a system call in User-Mode Linux, which takes as long as a good
//! part of a round trip: it would be on both sides of a ratio, and bring it nearer to 1.
// UNSAFETY: fences and the counter are intrinsics.
#![allow(unsafe_code)]

use std::{sync::OnceLock, time::Duration};

use gleaner_fabric::clock::{self, Calibration, Clock};

/// A moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment(u64);

impl Moment {
    /// Now: after all that was begun before, and before all that follows.
    #[inline]
    pub fn now() -> Self {
        // The first comes with a comparison of both clocks.
        clock();
        fence();
        let now = Self(clock::ticks());
        fence();
        now
    }

    /// The time since then.
    #[inline]
    pub fn elapsed(self) -> Duration {
        Self::now().since(self)
    }

    /// The time since an earlier one.
    #[inline]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(clock().ns(self.0.wrapping_sub(earlier.0)))
    }
}

fn clock() -> Clock {
    static CLOCK: OnceLock<Clock> = OnceLock::new();
    *CLOCK.get_or_init(|| Calibration::begin().end())
}

/// Keeps the processor from reading its counter ahead of time.
#[cfg(target_arch = "x86_64")]
#[inline]
fn fence() {
    // SAFETY: every x86-64 processor has the instruction.
    unsafe { core::arch::x86_64::_mm_lfence() }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline]
fn fence() {}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_goes_with_the_system_s_clock() {
        // Whatever comes between two readings, this one lies within the outer and around the inner two.
        let outer = Instant::now();
        let moment = Moment::now();
        let inner = Instant::now();
        while inner.elapsed().as_millis() < 20 {}
        let (least, own, most) = (inner.elapsed(), moment.elapsed(), outer.elapsed());
        assert!(own >= least - least / 20 && own <= most + most / 20, "{least:?} {own:?} {most:?}");
    }
}
