//! Leases that are over on this node: their tokens may still look valid, and are refused. Used by [`super::Holder`].
//!
//! Bounded: when the set is full its lowest number goes, and every unknown lease up to that number is refused. Numbers
//! only grow, so what is wrongly refused is an old lease that nobody ever showed here.

use std::collections::BTreeSet;

use gleaner_proto::ids::LeaseId;

/// Most numbers kept.
const OVER_MAX: usize = 65_536;

#[derive(Debug, Default)]
pub(super) struct Over {
    leases: BTreeSet<LeaseId>,
    floor: LeaseId,
}

impl Over {
    pub(super) fn insert(&mut self, lease: LeaseId) {
        if lease <= self.floor {
            return;
        }
        self.leases.insert(lease);
        if self.leases.len() > OVER_MAX
            && let Some(lowest) = self.leases.pop_first()
        {
            self.floor = lowest;
        }
    }

    pub(super) fn contains(&self, lease: LeaseId) -> bool {
        lease <= self.floor || self.leases.contains(&lease)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_set_still_refuses_everything_it_was_told() {
        let mut over = Over::default();
        let told = |n: u64| LeaseId(2 * n + 10);
        let count = OVER_MAX as u64 + 1000;
        (0..count).for_each(|n| over.insert(told(n)));
        assert!((0..count).all(|n| over.contains(told(n))));
        assert!(!over.contains(LeaseId(2 * count + 9)), "a lease above the floor is not refused");
        assert!(over.leases.len() <= OVER_MAX);
    }
}
