//! The keeper's table: whatever an agent asks for, nothing is left past its end.

#![allow(clippy::unwrap_used, reason = "a test's helpers panic as its tests do")]

use std::{collections::BTreeMap, time::Duration};

use gleaner_lease::{
    clock::Stamp,
    deadlines::{Bounds, DeadlineError, Deadlines, Why},
};
use gleaner_proto::ids::{Epoch, LeaseId};
use proptest::prelude::*;

const BOUNDS: Bounds =
    Bounds { grant_max: Duration::from_nanos(100), lease_max: Duration::from_nanos(60) };

#[derive(Debug, Clone)]
enum Op {
    Grant { epoch: u64, ahead: u64 },
    Start { lease: u64, epoch: u64, ahead: u64 },
    Extend { lease: u64, ahead: u64 },
    Fence(u64),
    Hold(bool),
    Gone(u64),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        (0u64..6, 0u64..200).prop_map(|(epoch, ahead)| Op::Grant { epoch, ahead }),
        (0u64..8, 0u64..6, 0u64..200).prop_map(|(lease, epoch, ahead)| Op::Start {
            lease,
            epoch,
            ahead
        }),
        (0u64..8, 0u64..200).prop_map(|(lease, ahead)| Op::Extend { lease, ahead }),
        (0u64..6).prop_map(Op::Fence),
        any::<bool>().prop_map(Op::Hold),
        (0u64..8).prop_map(Op::Gone),
        (0u64..50).prop_map(Op::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn nothing_outlives_its_bounds(ops in proptest::collection::vec(op(), 1..120)) {
        let mut now = Stamp(1000);
        let mut table = Deadlines::<4>::new(BOUNDS);
        // What runs: its epoch, and the latest that the bounds allow it.
        let mut running: BTreeMap<u64, (u64, Stamp)> = BTreeMap::new();
        let mut fenced = 0;
        let mut held = false;
        for op in ops {
            let ahead_of = |ahead| Stamp(now.0 + ahead);
            match op {
                Op::Grant { epoch, ahead } => {
                    let granted = table.grant(now, Epoch(epoch), ahead_of(ahead));
                    prop_assert!(granted.is_err() || (epoch > fenced && !held));
                    prop_assert!(granted.is_ok_and(|end| end <= now.after(BOUNDS.grant_max)) || granted.is_err());
                }
                Op::Start { lease, epoch, ahead } => {
                    if table.start(now, LeaseId(lease), Epoch(epoch), ahead_of(ahead)).is_ok() {
                        prop_assert!(epoch > fenced && !held);
                        prop_assert!(running.insert(lease, (epoch, now.after(BOUNDS.lease_max))).is_none());
                    }
                }
                Op::Extend { lease, ahead } => {
                    if table.extend(now, LeaseId(lease), ahead_of(ahead)).is_ok() {
                        let (epoch, _) = running[&lease];
                        prop_assert!(epoch > fenced);
                        running.insert(lease, (epoch, now.after(BOUNDS.lease_max)));
                    }
                }
                Op::Fence(epoch) => {
                    table.fence(Epoch(epoch));
                    fenced = fenced.max(epoch);
                }
                Op::Hold(hold) => {
                    table.hold(hold);
                    held = hold;
                }
                Op::Gone(lease) => {
                    table.gone(LeaseId(lease));
                    running.remove(&lease);
                }
                Op::Wait(ns) => now = Stamp(now.0 + ns),
            }
            while let Some(due) = table.tick(now) {
                prop_assert!(running.remove(&due.lease.0).is_some(), "{:?} was told before", due);
                table.gone(due.lease);
            }
            prop_assert!(running.values().all(|(epoch, end)| *epoch > fenced && now < *end));
            prop_assert!(table.next().is_none_or(|next| next > now));
            prop_assert!(running.len() <= 4);
        }
    }
}

#[test]
fn a_keeper_that_was_stopped_kills_what_was_due_before_its_grant_goes_on() {
    let mut table = Deadlines::<4>::new(BOUNDS);
    table.grant(Stamp(0), Epoch(1), Stamp(50)).unwrap();
    table.start(Stamp(0), LeaseId(1), Epoch(1), Stamp(60)).unwrap();
    // Stopped from here on; the agent's next grant is read first.
    table.grant(Stamp(55), Epoch(1), Stamp(150)).unwrap();
    assert_eq!(
        table.tick(Stamp(55)).map(|due| (due.lease, due.why)),
        Some((LeaseId(1), Why::Fenced))
    );
    assert_eq!(table.tick(Stamp(55)), None);
    assert_eq!(
        table.extend(Stamp(55), LeaseId(1), Stamp(90)),
        Err(DeadlineError::Unknown(LeaseId(1)))
    );
    assert_eq!(table.start(Stamp(55), LeaseId(2), Epoch(1), Stamp(90)), Ok(Stamp(90)));
}

#[test]
fn a_full_table_refuses_and_has_room_again() {
    let mut table = Deadlines::<2>::new(BOUNDS);
    table.grant(Stamp(0), Epoch(1), Stamp(90)).unwrap();
    for lease in [1, 2] {
        table.start(Stamp(0), LeaseId(lease), Epoch(1), Stamp(50)).unwrap();
    }
    assert_eq!(table.start(Stamp(0), LeaseId(3), Epoch(1), Stamp(50)), Err(DeadlineError::Full(2)));
    assert!(table.gone(LeaseId(1)) && !table.gone(LeaseId(1)));
    assert!(table.start(Stamp(0), LeaseId(3), Epoch(1), Stamp(50)).is_ok());
}

#[test]
fn what_an_agent_asks_for_is_cut_to_the_sites_bounds() {
    let mut table = Deadlines::<2>::new(BOUNDS);
    assert_eq!(table.grant(Stamp(0), Epoch(1), Stamp(900)), Ok(Stamp(100)));
    assert_eq!(table.start(Stamp(0), LeaseId(1), Epoch(1), Stamp(900)), Ok(Stamp(60)));
    assert_eq!(table.next(), Some(Stamp(60)));
    assert_eq!(table.extend(Stamp(30), LeaseId(1), Stamp(900)), Ok(Stamp(90)));
    assert_eq!(table.tick(Stamp(89)), None);
    assert_eq!(table.tick(Stamp(90)).map(|due| due.why), Some(Why::Deadline));
}
