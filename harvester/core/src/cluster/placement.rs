//! Which of the nodes that fit get a request's leases.

use std::cmp::Reverse;

use gleaner_proto::ids::NodeName;

use crate::policy::Placement;

/// A node that fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: NodeName,
    pub(super) free_cores: u32,
    /// Whether somebody leases a part of it already.
    pub(super) leased: bool,
    /// When a batch job is planned there, Unix seconds; `None`: as far as is known, never.
    pub(super) idle_until_s: Option<i64>,
}

/// The candidates in the order in which they are to be used: those expected to stay idle longest first; where that is
/// equal, as the placement says, then by name.
pub(super) fn order(mut candidates: Vec<Candidate>, placement: Placement) -> Vec<NodeName> {
    candidates.sort_by_cached_key(|candidate| {
        let idle = Reverse(candidate.idle_until_s.unwrap_or(i64::MAX));
        let Candidate { free_cores, leased, .. } = *candidate;
        let preference = match placement {
            Placement::Pack => (!leased, i64::from(free_cores)),
            Placement::Spread => (leased, -i64::from(free_cores)),
        };
        (idle, preference, candidate.name.clone())
    });
    candidates.into_iter().map(|candidate| candidate.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(
        name: &str,
        free_cores: u32,
        leased: bool,
        idle_until_s: Option<i64>,
    ) -> Candidate {
        Candidate { name: NodeName::new(name).unwrap(), free_cores, leased, idle_until_s }
    }

    fn names(placement: Placement) -> Vec<String> {
        let candidates = vec![
            candidate("empty", 4, false, None),
            candidate("tight", 1, true, None),
            candidate("loose", 3, true, None),
            candidate("planned-late", 4, false, Some(900)),
            candidate("planned-soon", 4, true, Some(100)),
        ];
        order(candidates, placement).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn packs_the_fullest_node_that_stays_idle_longest() {
        assert_eq!(
            names(Placement::Pack),
            ["tight", "loose", "empty", "planned-late", "planned-soon"]
        );
    }

    #[test]
    fn spreads_over_the_emptiest() {
        assert_eq!(
            names(Placement::Spread),
            ["empty", "loose", "tight", "planned-late", "planned-soon"]
        );
    }
}
