//! The executor's book under arbitrary histories: no lease outlives min(lease, grant), no slot is admitted twice.

#![allow(clippy::unwrap_used, reason = "a test's helpers panic as its tests do")]

use std::{collections::BTreeMap, time::Duration};

use gleaner_lease::{
    clock::{BootId, Stamp},
    holder::{AdmitError, GrantError, GrantMessage, Holder, Identity, RegisterError},
    state::EndReason,
    token::{Claims, NodeDigest, TokenError},
};
use gleaner_proto::ids::{Epoch, LeaseId, NodeName, Term, Uid};
use proptest::prelude::*;

const CORES: u32 = 3;
const LEASE_MAX: Duration = Duration::from_nanos(300);

fn holder() -> Holder {
    Holder::new(Identity::new(&NodeName::new("n0").unwrap(), BootId([1; 16]), LEASE_MAX))
}

fn claims(lease: u64, epoch: u64, expires: Stamp, cores: u32) -> Claims {
    Claims {
        lease: LeaseId(lease),
        uid: Uid(1),
        gid: 1,
        epoch: Epoch(epoch),
        expires,
        boot: BootId([1; 16]),
        memory_bytes: 1,
        cores,
        term: Term(1),
        client_key: [0; 32],
        node: NodeDigest::of(&NodeName::new("n0").unwrap()),
    }
}

fn message(epoch: u64, answers_seq: u64, ttl: u64) -> GrantMessage {
    GrantMessage {
        epoch: Epoch(epoch),
        answers_seq,
        ttl: Duration::from_nanos(ttl),
        cores: CORES,
        memory_bytes: 100,
    }
}

#[derive(Debug, Clone)]
enum Op {
    Register(u64),
    Beat,
    Grant { epoch: u64, back: u64, ttl: u64 },
    Admit { lease: u64, epoch: u64, ahead: u64, cores: u32 },
    Renew { lease: u64, ttl: u64 },
    End(u64),
    Vacate(u64),
    Gone(u64),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        1 => (1u64..6).prop_map(Op::Register),
        4 => Just(Op::Beat),
        6 => (1u64..6, 0u64..4, 0u64..400).prop_map(|(epoch, back, ttl)| Op::Grant { epoch, back, ttl }),
        8 => (1u64..9, 1u64..6, 0u64..400, 1u32..3).prop_map(|(lease, epoch, ahead, cores)| Op::Admit { lease, epoch, ahead, cores }),
        4 => (1u64..9, 0u64..500).prop_map(|(lease, ttl)| Op::Renew { lease, ttl }),
        1 => (1u64..9).prop_map(Op::End),
        1 => (1u64..6).prop_map(Op::Vacate),
        3 => (1u64..9).prop_map(Op::Gone),
        6 => (0u64..120).prop_map(Op::Wait),
    ]
}

/// A lease that runs, by the reckoning of this test.
#[derive(Debug, Clone, Copy)]
struct Running {
    epoch: u64,
    expires: Stamp,
    cores: u32,
    told: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_lease_outlives_its_own_end_or_its_grants(ops in proptest::collection::vec(op(), 1..160)) {
        let mut now = Stamp(10_000);
        let mut book = holder();
        let mut beats = vec![];
        let mut grants: BTreeMap<u64, Stamp> = BTreeMap::new();
        let mut running: BTreeMap<u64, Running> = BTreeMap::new();
        let mut over = std::collections::BTreeSet::new();
        let mut dead = 0;
        for op in ops {
            match op {
                Op::Register(epoch) => {
                    let _ = book.registered(now, Epoch(epoch), Term(1));
                }
                Op::Beat => {
                    prop_assert_eq!(book.heartbeat(now).seq, beats.len() as u64 + 1);
                    beats.push(now);
                }
                Op::Grant { epoch, back, ttl } => {
                    let Some(seq) = (beats.len() as u64).checked_sub(back).filter(|seq| *seq > 0) else { continue };
                    if let Ok(until) = book.grant(now, &message(epoch, seq, ttl)) {
                        prop_assert!(epoch > dead, "a dead epoch was granted");
                        prop_assert_eq!(until, Stamp(beats[seq as usize - 1].0 + ttl));
                        grants.insert(epoch, until);
                    }
                }
                Op::Admit { lease, epoch, ahead, cores } => {
                    let shown = claims(lease, epoch, Stamp(now.0 + ahead), cores);
                    if let Ok(admitted) = book.admit(now, &shown) {
                        prop_assert!(!over.contains(&lease), "an ended lease was admitted");
                        prop_assert_eq!(admitted.first, !running.contains_key(&lease));
                        let fresh = Running { epoch, expires: shown.expires, cores, told: false };
                        let known = running.entry(lease).or_insert(fresh);
                        let end = known.expires.min(grants[&known.epoch]);
                        prop_assert_eq!(admitted.safe_for, end.since(now));
                        prop_assert!(end > now && !known.told);
                    }
                }
                Op::Renew { lease, ttl } => if let Ok(renewed) = book.renew(now, LeaseId(lease), Duration::from_nanos(ttl)) {
                    let known = running.get_mut(&lease).unwrap();
                    prop_assert!(!known.told && renewed.expires <= now.after(LEASE_MAX).max(known.expires));
                    known.expires = renewed.expires;
                    prop_assert_eq!(renewed.safe_for, known.expires.min(grants[&known.epoch]).since(now));
                },
                Op::End(lease) => {
                    let held = book.end(LeaseId(lease), EndReason::Released);
                    prop_assert_eq!(held, running.contains_key(&lease));
                    over.insert(lease);
                }
                Op::Vacate(epoch) => book.vacate(Epoch(epoch), EndReason::Drained),
                Op::Gone(lease) => if running.remove(&lease).is_some() {
                    prop_assert!(book.gone(LeaseId(lease)).is_some());
                    over.insert(lease);
                },
                Op::Wait(ns) => now = Stamp(now.0 + ns),
            }
            for stop in book.tick(now) {
                let known = running.get_mut(&stop.lease.0).unwrap();
                prop_assert!(!known.told, "{:?} was told twice", stop);
                known.told = true;
                over.insert(stop.lease.0);
            }
            if let Some(epoch) = book.take_vacated() {
                dead = dead.max(epoch.0);
                prop_assert!(running.values().all(|lease| lease.epoch > epoch.0), "vacated with workers left");
            }
            for (lease, known) in &running {
                let end = known.expires.min(grants[&known.epoch]);
                prop_assert!(known.told || now < end, "{lease} runs at {now} past {end}");
            }
            let cores: u32 = running.values().map(|lease| lease.cores).sum();
            prop_assert!(cores <= CORES, "cores are used twice");
            prop_assert!(book.next_deadline().is_none_or(|next| next > now));
        }
    }
}

/// A book with grant 5 until 1000, and lease 1 of all cores until 500.
fn serving() -> Holder {
    let mut book = holder();
    book.registered(Stamp(0), Epoch(5), Term(3)).unwrap();
    book.heartbeat(Stamp(0));
    book.grant(Stamp(10), &message(5, 1, 1000)).unwrap();
    book.admit(Stamp(10), &claims(1, 5, Stamp(500), CORES)).unwrap();
    book
}

#[test]
fn a_renewed_lease_is_attached_again_with_its_first_token() {
    let mut book = serving();
    book.renew(Stamp(400), LeaseId(1), Duration::from_nanos(300)).unwrap();
    let again = book.admit(Stamp(600), &claims(1, 5, Stamp(500), CORES)).unwrap();
    assert_eq!((again.first, again.expires), (false, Stamp(700)));
}

#[test]
fn a_revoked_token_is_refused_even_if_it_was_never_shown() {
    let mut book = serving();
    assert!(!book.end(LeaseId(2), EndReason::Policy));
    assert!(book.end(LeaseId(1), EndReason::Policy));
    book.gone(LeaseId(1));
    for lease in [1, 2] {
        let refused = book.admit(Stamp(20), &claims(lease, 5, Stamp(500), 1));
        assert_eq!(refused, Err(AdmitError::Over(LeaseId(lease))));
    }
}

#[test]
fn a_lease_that_is_ending_occupies_until_it_is_gone() {
    let mut book = serving();
    book.end(LeaseId(1), EndReason::Released);
    let refused = book.admit(Stamp(20), &claims(2, 5, Stamp(500), 1));
    assert!(matches!(refused, Err(AdmitError::Occupied { cores_free: 0, .. })), "{refused:?}");
    assert_eq!(book.gone(LeaseId(1)).map(|stop| stop.reason), Some(EndReason::Released));
    assert!(book.admit(Stamp(20), &claims(2, 5, Stamp(500), 1)).is_ok());
}

#[test]
fn a_grant_that_ended_is_not_revived_and_is_reported_once() {
    let mut book = serving();
    book.heartbeat(Stamp(900));
    assert_eq!(book.grant(Stamp(1000), &message(5, 2, 1000)), Err(GrantError::Over(Epoch(5))));
    assert_eq!(book.tick(Stamp(1000)).len(), 1);
    assert_eq!(book.take_vacated(), None, "its worker is still there");
    book.gone(LeaseId(1));
    assert_eq!((book.take_vacated(), book.take_vacated()), (Some(Epoch(5)), None));
    let stale = book.admit(Stamp(1001), &claims(2, 5, Stamp(5000), 1));
    assert!(matches!(stale, Err(AdmitError::Token(TokenError::Epoch { .. }))), "{stale:?}");
}

#[test]
fn answers_out_of_order_change_nothing() {
    let mut book = serving();
    book.heartbeat(Stamp(100));
    assert_eq!(book.grant(Stamp(110), &message(5, 2, 1000)), Ok(Stamp(1100)));
    assert_eq!(book.grant(Stamp(111), &message(5, 1, 9000)), Err(GrantError::Overtaken(1)));
    assert_eq!(book.grant(Stamp(111), &message(5, 9, 9000)), Err(GrantError::Beat(9)));
    assert_eq!(book.grant(Stamp(111), &message(4, 2, 9000)), Err(GrantError::Over(Epoch(4))));
}

#[test]
fn a_replaced_harvester_is_refused() {
    let mut book = serving();
    let refused = book.registered(Stamp(20), Epoch(6), Term(2));
    assert_eq!(refused, Err(RegisterError::Term { offered: Term(2), seen: Term(3) }));
    assert_eq!(book.epoch(), Epoch(5));
}

#[test]
fn an_executor_resumes_what_it_serves_and_leaves_it_for_another_epoch() {
    let mut book = serving();
    assert_eq!(book.resume_epoch(Stamp(20)), Epoch(5));
    book.registered(Stamp(20), Epoch(5), Term(4)).unwrap();
    assert_eq!(book.tick(Stamp(20)), []);
    book.registered(Stamp(30), Epoch(9), Term(4)).unwrap();
    assert_eq!(book.tick(Stamp(30)).len(), 1);
    assert_eq!(book.resume_epoch(Stamp(30)), Epoch(5), "something of it is left");
    book.gone(LeaseId(1));
    assert_eq!(book.resume_epoch(Stamp(30)), Epoch(0));
}
