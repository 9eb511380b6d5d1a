//! The harvester's book under arbitrary histories: no slice is given twice, no number is used twice.

#![allow(clippy::unwrap_used, reason = "a test's helpers panic as its tests do")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use gleaner_lease::{
    clock::{self, BootId, Instance, Stamp},
    issuer::{
        Beat, GrantError, Issuer, Join, JoinError, Lease, Limits, Numbers, Request, ReserveError,
    },
    state::{EndReason, State},
};
use gleaner_proto::ids::{Epoch, LeaseId, NodeName, Term, Uid};
use proptest::prelude::*;

const CORES: u32 = 4;
const TTL: Duration = Duration::from_secs(2);
const LIMITS: Limits = Limits { grant_ttl_max: TTL };
const STORED: Numbers = Numbers { lease: 10_000, epoch: 10_000 };

fn node(n: u8) -> NodeName {
    NodeName::new(&format!("n{n}")).unwrap()
}

fn issuer(now: Stamp, leases: Vec<Lease>, stored: Numbers) -> Issuer {
    let mut issuer = Issuer::new(now, Term(1), LIMITS, stored, leases);
    let wanted = issuer.numbers_wanted().unwrap();
    issuer.numbers_reserved(wanted);
    issuer
}

fn join(stamp: u64, resume: Epoch) -> Join {
    Join {
        boot: BootId([1; 16]),
        instance: Instance([1; 16]),
        stamp: Stamp(stamp),
        resume_epoch: resume,
        cores: CORES,
        memory_bytes: 1 << 30,
    }
}

fn request(cores: u32) -> Request {
    Request {
        uid: Uid(1),
        gid: 1,
        cores,
        memory_bytes: 1,
        ttl: Duration::from_secs(1),
        client_key: [0; 32],
    }
}

fn beat(seq: u64, stamp: u64) -> Beat {
    Beat { instance: Instance([1; 16]), seq, stamp: Stamp(stamp) }
}

#[derive(Debug, Clone)]
enum Op {
    Join { node: u8, resume: bool },
    Lost(u8),
    Beat(u8),
    Grant(u8),
    Reserve { node: u8, cores: u32 },
    Persist(bool),
    End(u64),
    EndedByExecutor { node: u8, lease: u64 },
    Vacate(u8),
    Vacated(u8),
    Wait(u64),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let node = 0u8..2;
    prop_oneof![
        2 => (node.clone(), any::<bool>()).prop_map(|(node, resume)| Op::Join { node, resume }),
        1 => node.clone().prop_map(Op::Lost),
        6 => node.clone().prop_map(Op::Beat),
        6 => node.clone().prop_map(Op::Grant),
        8 => (node.clone(), 0u32..5).prop_map(|(node, cores)| Op::Reserve { node, cores }),
        6 => any::<bool>().prop_map(Op::Persist),
        3 => (0u64..20).prop_map(Op::End),
        3 => (node.clone(), 0u64..20).prop_map(|(node, lease)| Op::EndedByExecutor { node, lease }),
        1 => node.clone().prop_map(Op::Vacate),
        1 => node.prop_map(Op::Vacated),
        4 => (0u64..1500).prop_map(Op::Wait),
        1 => Just(Op::Restart),
    ]
}

/// The truth beside the book: what a client may be using.
#[derive(Debug, Clone)]
struct Slice {
    node: NodeName,
    epoch: Epoch,
    cores: u32,
    record: Lease,
}

#[derive(Debug, Default)]
struct Truth {
    /// Given out, and not surely over.
    live: BTreeMap<LeaseId, Slice>,
    reserved: BTreeMap<LeaseId, Slice>,
    /// Until when each epoch may last at the latest.
    until: BTreeMap<Epoch, Stamp>,
    ids: BTreeSet<LeaseId>,
    epochs: BTreeSet<Epoch>,
}

impl Truth {
    fn cores(&self, node: &NodeName) -> u32 {
        let all = self.live.values().chain(self.reserved.values());
        all.filter(|slice| slice.node == *node).map(|slice| slice.cores).sum()
    }

    /// What must still be held at `now`, because nobody has said otherwise and its time is not surely over.
    fn must_hold(&self, now: Stamp) -> impl Iterator<Item = (&LeaseId, &Slice)> {
        let lasts = move |epoch: &Epoch| self.until.get(epoch).is_some_and(|until| now < *until);
        self.live.iter().filter(move |(_, slice)| lasts(&slice.epoch))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn no_slice_is_given_twice(ops in proptest::collection::vec(op(), 1..160)) {
        let mut now = Stamp(1_000_000_000);
        let mut book = issuer(now, Vec::new(), STORED);
        let mut truth = Truth::default();
        let mut stored = STORED;
        let mut seq = 0;
        for op in ops {
            now = Stamp(now.0 + 1000);
            seq += 1;
            match op {
                Op::Join { node: n, resume } => {
                    let at = book.node(&node(n)).map_or(Epoch(0), |view| view.epoch);
                    let resume = if resume { at } else { Epoch(0) };
                    let joined = book.executor_joined(now, &node(n), &join(now.0, resume)).unwrap();
                    prop_assert!(joined.resumed || truth.epochs.insert(joined.epoch), "epoch used twice");
                    if resume == Epoch(0) {
                        truth.live.retain(|_, slice| slice.node != node(n));
                        truth.reserved.retain(|_, slice| slice.node != node(n));
                    }
                }
                Op::Lost(n) => book.executor_lost(&node(n)),
                Op::Beat(n) => {
                    let held: Vec<_> = truth.live.iter().filter(|(_, slice)| slice.node == node(n)).map(|(id, _)| (*id, Stamp(0))).collect();
                    let ended = book.heartbeat(now, &node(n), &beat(seq, now.0), &held);
                    prop_assert!(ended.iter().all(|ended| !truth.live.contains_key(&ended.lease)));
                }
                Op::Grant(n) => if let Ok(granted) = book.grant(now, &node(n), CORES, 1 << 30, TTL) {
                    truth.epochs.insert(granted.epoch);
                    let until = truth.until.entry(granted.epoch).or_default();
                    *until = (*until).max(granted.held_until);
                },
                Op::Reserve { node: n, cores } => match book.reserve(now, &node(n), &request(cores)) {
                    Ok(draft) => {
                        prop_assert!(truth.ids.insert(draft.lease.id), "lease id used twice");
                        prop_assert_eq!(draft.claims.node, gleaner_lease::token::NodeDigest::of(&node(n)));
                        let slice = Slice { node: node(n), epoch: draft.lease.epoch, cores, record: draft.lease.clone() };
                        truth.reserved.insert(draft.lease.id, slice);
                    }
                    Err(error) => {
                        let known = matches!(error, ReserveError::NoGrant(_) | ReserveError::Room { .. });
                        prop_assert!(known, "refused for {}", error);
                    }
                },
                Op::Persist(ok) => if let Some((id, slice)) = truth.reserved.pop_first() {
                    if !ok {
                        book.abandon(id);
                    } else if book.persisted(now, id).is_ok() {
                        truth.live.insert(id, slice);
                    }
                },
                Op::End(n) => if let Some(id) = truth.ids.iter().nth(n as usize).copied() {
                    book.end(id, EndReason::Released);
                    truth.reserved.remove(&id);
                },
                Op::EndedByExecutor { node: n, lease } => if let Some(id) = truth.ids.iter().nth(lease as usize).copied() {
                    let ended = book.lease_ended(&node(n), id, EndReason::Expired);
                    let ours = truth.live.get(&id).or(truth.reserved.get(&id)).is_some_and(|slice| slice.node == node(n));
                    prop_assert!(ended.is_none() || ours, "another node's word ended a lease");
                    if ours {
                        truth.live.remove(&id);
                        truth.reserved.remove(&id);
                    }
                },
                Op::Vacate(n) => {
                    book.vacate(&node(n), EndReason::Drained);
                    truth.reserved.retain(|_, slice| slice.node != node(n));
                }
                Op::Vacated(n) => {
                    let epoch = book.node(&node(n)).map_or(Epoch(0), |view| view.epoch);
                    book.vacated(&node(n), epoch, EndReason::BatchJob);
                    truth.live.retain(|_, slice| slice.node != node(n));
                    truth.reserved.retain(|_, slice| slice.node != node(n));
                }
                Op::Wait(ms) => now = now.after(Duration::from_millis(ms)),
                Op::Restart => {
                    stored = Numbers { lease: stored.lease + 10_000, epoch: stored.epoch + 10_000 };
                    let records = truth.live.values().map(|slice| slice.record.clone()).collect();
                    book = issuer(now, records, stored);
                    truth.reserved.clear();
                }
            }
            book.tick(now);
            for (id, slice) in truth.must_hold(now) {
                prop_assert!(book.lease(*id).is_some_and(|lease| lease.node == slice.node), "{id} was let go");
            }
            truth.live.retain(|id, _| book.lease(*id).is_some());
            truth.reserved.retain(|id, _| book.lease(*id).is_some());
            for n in 0..2 {
                prop_assert!(truth.cores(&node(n)) <= CORES, "n{n} is given twice");
            }
            prop_assert!(book.leases().all(|lease| lease.state != State::Ended));
            prop_assert!(book.next_deadline().is_none_or(|next| next > now));
        }
    }
}

/// A node with one live lease of all its cores.
fn leased() -> (Issuer, Lease) {
    let now = Stamp(1000);
    let mut book = issuer(now, Vec::new(), STORED);
    book.executor_joined(now, &node(0), &join(10, Epoch(0))).unwrap();
    book.heartbeat(now, &node(0), &beat(1, 11), &[]);
    book.grant(now, &node(0), CORES, 1 << 30, TTL).unwrap();
    let draft = book.reserve(now, &node(0), &request(CORES)).unwrap();
    book.persisted(now, draft.lease.id).unwrap();
    (book, draft.lease)
}

#[test]
fn a_grant_waits_for_a_heartbeat_and_a_lease_for_a_grant() {
    let now = Stamp(1000);
    let mut book = issuer(now, Vec::new(), STORED);
    assert_eq!(book.grant(now, &node(0), 1, 1, TTL), Err(GrantError::NoExecutor(node(0))));
    book.executor_joined(now, &node(0), &join(10, Epoch(0))).unwrap();
    assert_eq!(book.grant(now, &node(0), 1, 1, TTL), Err(GrantError::NoHeartbeat(node(0))));
    book.heartbeat(now, &node(0), &beat(1, 11), &[]);
    assert_eq!(book.reserve(now, &node(0), &request(1)), Err(ReserveError::NoGrant(node(0))));
    book.grant(now, &node(0), CORES, 1 << 30, TTL).unwrap();
    assert!(book.reserve(now, &node(0), &request(1)).is_ok());
}

#[test]
fn a_registration_that_comes_twice_frees_nothing() {
    let (mut book, lease) = leased();
    let replayed = book.executor_joined(Stamp(2000), &node(0), &join(10, Epoch(0)));
    assert_eq!(replayed, Err(JoinError::Replayed { node: node(0) }));
    assert!(book.lease(lease.id).is_some());
}

#[test]
fn another_life_of_the_agent_does_not_speak_for_this_one() {
    let (mut book, lease) = leased();
    let stale = Beat { instance: Instance([2; 16]), seq: 9, stamp: Stamp(u64::MAX) };
    assert_eq!(book.heartbeat(Stamp(2000), &node(0), &stale, &[]), []);
    assert!(book.lease(lease.id).is_some());
}

#[test]
fn a_restarted_harvester_goes_on_with_an_executor_that_resumes() {
    let (_, lease) = leased();
    let now = Stamp(5000);
    let mut book = issuer(now, vec![lease.clone()], Numbers { lease: 20_000, epoch: 20_000 });
    let joined = book.executor_joined(now, &node(0), &join(20, lease.epoch)).unwrap();
    assert!(joined.resumed && joined.epoch == lease.epoch && joined.ended.is_empty());
    book.heartbeat(now, &node(0), &beat(2, 21), &[(lease.id, lease.expires)]);
    book.grant(now, &node(0), CORES, 1 << 30, TTL).unwrap();
    let full = book.reserve(now, &node(0), &request(1));
    assert!(matches!(full, Err(ReserveError::Room { .. })), "{full:?}");
}

#[test]
fn a_restarted_harvester_holds_until_the_longest_grant_has_surely_ended() {
    let (_, lease) = leased();
    let now = Stamp(5000);
    let mut book = issuer(now, vec![lease.clone()], Numbers { lease: 20_000, epoch: 20_000 });
    let end = clock::held_until(now, TTL);
    assert_eq!(book.tick(Stamp(end.0 - 1)), []);
    let ended = book.tick(end);
    assert_eq!(ended.iter().map(|ended| ended.lease).collect::<Vec<_>>(), [lease.id]);
}

#[test]
fn a_lease_that_nobody_showed_ends_with_its_token() {
    let (mut book, lease) = leased();
    assert_eq!(book.heartbeat(Stamp(2000), &node(0), &beat(2, lease.expires.0 - 1), &[]), []);
    let ended = book.heartbeat(Stamp(3000), &node(0), &beat(3, lease.expires.0), &[]);
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].reason, EndReason::Expired);
}

#[test]
fn what_was_revoked_is_told_again_when_the_executor_resumes_and_keeps_its_first_reason() {
    let (mut book, lease) = leased();
    assert_eq!(book.end(lease.id, EndReason::Released).map(|ending| ending.node), Some(node(0)));
    book.executor_lost(&node(0));
    let joined = book.executor_joined(Stamp(2000), &node(0), &join(20, lease.epoch)).unwrap();
    assert_eq!(joined.revoke.len(), 1);
    let ended = book.lease_ended(&node(0), lease.id, EndReason::WorkerFailed).unwrap();
    assert_eq!(ended.reason, EndReason::Released);
}

#[test]
fn a_lease_vacated_while_it_was_being_stored_is_never_confirmed() {
    let (mut book, lease) = leased();
    book.lease_ended(&node(0), lease.id, EndReason::Released);
    let draft = book.reserve(Stamp(2000), &node(0), &request(1)).unwrap();
    assert!(book.vacate(&node(0), EndReason::BatchJob).is_some());
    assert!(book.persisted(Stamp(2000), draft.lease.id).is_err());
}

#[test]
fn without_stored_numbers_nothing_is_given() {
    let mut book = Issuer::new(Stamp(0), Term(1), LIMITS, Numbers::default(), Vec::new());
    assert_eq!(
        book.executor_joined(Stamp(0), &node(0), &join(1, Epoch(0))),
        Err(JoinError::Numbers)
    );
    book.numbers_reserved(Numbers { lease: 1, epoch: 9 });
    book.executor_joined(Stamp(0), &node(0), &join(1, Epoch(0))).unwrap();
    book.heartbeat(Stamp(0), &node(0), &beat(1, 2), &[]);
    book.grant(Stamp(0), &node(0), CORES, 1, TTL).unwrap();
    assert_eq!(book.reserve(Stamp(0), &node(0), &request(1)), Err(ReserveError::Numbers));
}

#[test]
fn only_the_same_life_of_an_agent_resumes_and_what_it_held_stays_held_until_its_word() {
    let (mut book, lease) = leased();
    let other = Join { instance: Instance([9; 16]), ..join(20, lease.epoch) };
    let joined = book.executor_joined(Stamp(2000), &node(0), &other).unwrap();
    assert!(!joined.resumed && joined.epoch > lease.epoch && joined.ended.is_empty());
    assert_eq!(book.lease(lease.id).map(|lease| lease.state), Some(State::Ending));
    let ended = book.vacated(&node(0), lease.epoch, EndReason::ExecutorLost);
    assert_eq!(ended.len(), 1);
    assert_eq!(book.node(&node(0)).map(|view| view.leases), Some(0));
}
