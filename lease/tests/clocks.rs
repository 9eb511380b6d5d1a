//! Clocks that drift within their bound: every conversion errs to the safe side, and not by much.

use std::time::Duration;

use gleaner_lease::clock::{DRIFT_PPM, Stamp, expiry, held_until, safe_until};
use proptest::prelude::*;

/// A machine's clock: what it counts while true time counts.
#[derive(Debug, Clone, Copy)]
struct Clock {
    start: u64,
    ppm: i64,
}

impl Clock {
    fn at(self, true_ns: u64) -> Stamp {
        let counted = i128::from(true_ns) * i128::from(1_000_000 + self.ppm) / 1_000_000;
        Stamp(self.start + counted as u64)
    }
}

prop_compose! {
    fn clock()(start in 0u64..1 << 60, ppm in -(DRIFT_PPM as i64)..=DRIFT_PPM as i64) -> Clock {
        Clock { start, ppm }
    }
}

const DAY_NS: u64 = 86_400_000_000_000;

proptest! {
    #[test]
    fn a_grant_ends_on_its_executor_before_the_harvester_gives_it_away(
        executor in clock(), harvester in clock(), sent in 0..DAY_NS, travel in 0u64..10_000_000_000, ttl_ns in 0..DAY_NS,
    ) {
        let ttl = Duration::from_nanos(ttl_ns);
        let executor_end = executor.at(sent).after(ttl);
        let held = held_until(harvester.at(sent + travel), ttl);
        // The first true moment at which the harvester may give it away, or a little before.
        let hold_ns = i128::from(held.0 - harvester.at(sent + travel).0) * 1_000_000 / i128::from(1_000_000 + harvester.ppm);
        let given_away = sent + travel + hold_ns as u64;
        prop_assert!(executor.at(given_away) >= executor_end);
    }

    #[test]
    fn a_tokens_expiry_errs_early_and_by_little(
        executor in clock(), harvester in clock(), sent in 0..DAY_NS, travel in 0u64..10_000_000_000, waited in 0..DAY_NS, ttl_ns in 0..DAY_NS,
    ) {
        let ttl = Duration::from_nanos(ttl_ns);
        let now = sent + travel + waited;
        let waited_locally = harvester.at(now).since(harvester.at(sent + travel));
        let expires = expiry(executor.at(sent), waited_locally, ttl);
        let ideal = executor.at(now).after(ttl);
        prop_assert!(expires <= ideal);
        let lost = Duration::from_nanos(2 * travel + waited / 400 + 1000);
        prop_assert!(expires.after(lost) >= ideal, "{} is early by more than {:?}", expires, lost);
    }

    #[test]
    fn a_client_never_counts_on_a_lease_past_its_end(
        executor in clock(), client in clock(), asked in 0..DAY_NS, there in 0u64..10_000_000_000, safe_ns in 0..DAY_NS,
    ) {
        let answered = executor.at(asked + there);
        let end = answered.after(Duration::from_nanos(safe_ns));
        let until = safe_until(client.at(asked), Duration::from_nanos(safe_ns));
        let true_ns = i128::from(until.0 - client.at(asked).0) * 1_000_000 / i128::from(1_000_000 + client.ppm);
        prop_assert!(executor.at(asked + true_ns as u64) <= end);
    }
}

#[test]
fn the_ends_of_time_do_not_wrap() {
    let forever = Duration::MAX;
    assert_eq!(Stamp(u64::MAX).after(forever), Stamp(u64::MAX));
    assert_eq!(held_until(Stamp(1), forever), Stamp(u64::MAX));
    assert_eq!(Stamp(1).since(Stamp(2)), Duration::ZERO);
}
