//! Reserve, persist, reply; all or nothing; repeats; where leases are laid.

use std::time::Duration;

use gleaner_harvester_core::{
    Effect, Event, Policy,
    effect::ToExecutor,
    event::{ExecutorEvent, LeaseReport, Trigger, Usage},
    policy::Placement,
    record::Record,
};
use gleaner_lease::{clock::Stamp, state::EndReason};

use crate::world::{World, answer, grant, leases, name, policy, sent};

#[test]
fn nothing_is_replied_before_it_is_stored() {
    let mut world = World::granted(&["n1"]);
    world.prompt = false;
    let request = world.request(1, 4);
    let call = request.call;
    let effects = world.tell(Event::Acquire(request.clone()));
    assert_eq!(answer(&effects, call), None);
    let mut again = world.request(1, 4);
    (again.request_id, again.client_key) = (request.request_id, request.client_key);
    let effects = world.tell(Event::Acquire(again.clone()));
    assert_eq!(answer(&effects, again.call), None, "a repeat waits with the first");
    assert!(world.lease_refused(), "what is reserved is taken");
    let mut effects = Vec::new();
    while !world.waiting.is_empty() {
        effects.extend(world.answer());
    }
    assert_eq!(leases(&effects, call).unwrap(), leases(&effects, again.call).unwrap());
}

impl World {
    fn lease_refused(&mut self) -> bool {
        let request = self.request(2, 1);
        let effects = self.tell(Event::Acquire(request.clone()));
        leases(&effects, request.call).is_err()
    }
}

#[test]
fn asking_again_gets_the_same_leases() {
    let mut world = World::granted(&["n1", "n2"]);
    let mut request = world.request(1, 2);
    (request.nodes_min, request.nodes_max) = (2, 2);
    let first = world.acquire(request.clone()).unwrap();
    let second = world.acquire(request.clone()).unwrap();
    let ids = |leases: &[gleaner_harvester_core::effect::Leased]| {
        leases.iter().map(|lease| lease.claims).collect::<Vec<_>>()
    };
    assert_eq!(ids(&first), ids(&second));
    let mut other = request;
    other.who = crate::world::user(2);
    let theirs = world.acquire(other).unwrap();
    assert!(
        ids(&theirs).iter().all(|claims| !ids(&first).contains(claims)),
        "another user's id is another"
    );
}

#[test]
fn what_a_lease_says() {
    let mut world = World::granted(&["n1"]);
    let lease = world.lease(1000, 2).unwrap().remove(0);
    assert_eq!((lease.claims.cores, lease.claims.uid.0, lease.claims.gid), (2, 1000, 100));
    assert_eq!(lease.claims.epoch, world.executors[&name("n1")].epoch);
    assert_eq!(
        (lease.address.as_str(), lease.executor_key, lease.claims.client_key),
        ("n1:7818", [7; 32], [9; 32])
    );
    assert!(lease.safe_for <= world.policy.grant_ttl, "not safe beyond the grant");
    let stored = world
        .stored
        .iter()
        .any(|record| matches!(record, Record::Lease(l) if l.lease == lease.claims.lease));
    assert!(stored);
}

#[test]
fn the_ttl_is_cut_to_the_policys() {
    let mut world = World::granted(&["n1"]);
    world.tell(Event::Reconfigured(Policy { lease_ttl_max: Duration::from_secs(60), ..policy() }));
    let before = world.now;
    let lease = world.lease(1, 1).unwrap().remove(0);
    assert!(lease.claims.expires <= Stamp(before).after(Duration::from_secs(61)));
}

#[test]
fn at_least_and_at_most_so_many_nodes() {
    let mut world = World::granted(&["n1", "n2", "n3"]);
    let mut request = world.request(1, 4);
    (request.nodes_min, request.nodes_max) = (1, 2);
    assert_eq!(world.acquire(request).unwrap().len(), 2);
    let mut request = world.request(1, 4);
    (request.nodes_min, request.nodes_max) = (2, 4);
    world.acquire(request).unwrap_err();
    let mut request = world.request(1, 4);
    request.nodes_max = 4;
    assert_eq!(world.acquire(request).unwrap().len(), 1, "the refused request left nothing behind");
}

#[test]
fn packs_or_spreads() {
    for (placement, together) in [(Placement::Pack, true), (Placement::Spread, false)] {
        let mut world = World::granted(&["n1", "n2"]);
        world.tell(Event::Reconfigured(Policy { placement, ..policy() }));
        let first = world.lease(1, 1).unwrap().remove(0).node;
        let second = world.lease(1, 1).unwrap().remove(0).node;
        assert_eq!(first == second, together, "{placement:?}");
    }
}

#[test]
fn a_vacate_while_the_lease_is_being_stored_refuses_it_and_records_its_end() {
    let mut world = World::granted(&["n1"]);
    world.prompt = false;
    let request = world.request(1, 4);
    let mut effects = world.tell(Event::Acquire(request.clone()));
    world.starting("n1", 7);
    while !world.waiting.is_empty() {
        effects.extend(world.answer());
    }
    insta::assert_snapshot!(leases(&effects, request.call).unwrap_err(), @"lease 1 ended before it was given: Slurm took n1 back meanwhile; ask again with a new request id");
    assert!(world.stored.iter().any(|record| matches!(record, Record::LeaseEnded { .. })));
    assert!(world.core.leases(world.now).is_empty());
}

#[test]
fn a_released_slice_is_free_on_the_executors_word_only() {
    let mut world = World::granted(&["n1"]);
    let lease = world.lease(1, 4).unwrap()[0].claims.lease;
    assert_eq!(world.release(2, &[lease]).1, [], "not theirs");
    let (effects, released) = world.release(1, &[lease]);
    assert_eq!(released, [lease]);
    let revoke = ToExecutor::Revoke { lease, reason: EndReason::Released };
    assert!(sent(&effects, "n1").any(|message| message == revoke));
    assert!(world.lease(2, 4).is_err());
    let report =
        LeaseReport { lease, usage: Usage::default(), expires: Stamp(world.now + 1_000_000_000) };
    let effects = world.beat_with("n1", &[report]);
    assert!(
        sent(&effects, "n1").any(|message| message == revoke),
        "a lost revocation is sent again"
    );
    let (reason, detail) = (EndReason::Released, String::new());
    world
        .report("n1", ExecutorEvent::LeaseEnded { lease, reason, detail, usage: Usage::default() });
    assert_eq!(world.lease(2, 4).unwrap().len(), 1);
    assert_eq!(world.release(1, &[lease]).1, [], "released before");
}

#[test]
fn another_node_cannot_end_a_lease() {
    let mut world = World::granted(&["n1", "n2"]);
    let lease = world.lease(1, 4).unwrap().remove(0);
    let other = if lease.node == name("n1") { "n2" } else { "n1" };
    let (reason, detail) = (EndReason::Released, String::new());
    let id = lease.claims.lease;
    world.report(
        other,
        ExecutorEvent::LeaseEnded { lease: id, reason, detail, usage: Usage::default() },
    );
    world.report(other, ExecutorEvent::LeaseRenewed { lease: id, expires: Stamp(u64::MAX) });
    let usage = Usage { calls: 9, ..Usage::default() };
    world.beat_with(other, &[LeaseReport { lease: id, usage, expires: Stamp(u64::MAX) }]);
    let live = world.core.leases(world.now);
    assert_eq!((live.len(), live[0].usage.calls), (1, 0));
}

#[test]
fn a_lost_executors_leases_end_when_its_grant_surely_has() {
    let mut world = World::granted(&["n1"]);
    world.lease(1, 4).unwrap();
    world.lost("n1");
    world.pass(Duration::from_secs(9)).look();
    world.tick();
    assert_eq!(world.core.leases(world.now).len(), 1, "it may still be running");
    world.pass(Duration::from_millis(1100));
    let effects = world.tick();
    let lost = |record: &Record| {
        matches!(record, Record::LeaseEnded { reason: EndReason::ExecutorLost, .. })
    };
    let recorded = effects.iter().any(
        |effect| matches!(effect, Effect::Persist { records, .. } if records.iter().any(lost)),
    );
    assert!(recorded);
    assert!(world.core.leases(world.now).is_empty());
}

#[test]
fn usage_is_stored_now_and_then_and_never_shrinks() {
    let mut world = World::granted(&["n1"]);
    let lease = world.lease(1, 4).unwrap()[0].claims.lease;
    let usage = |calls| Usage { calls, cpu_ns: calls * 10, ..Usage::default() };
    for (calls, shown) in [(5, 5), (3, 5), (8, 8)] {
        let expires = Stamp(world.now + 1_000_000_000_000);
        world.beat_with("n1", &[LeaseReport { lease, usage: usage(calls), expires }]);
        assert_eq!(world.core.leases(world.now)[0].usage, usage(shown));
    }
    let samples =
        world.stored.iter().filter(|record| matches!(record, Record::Usage { .. })).count();
    assert_eq!(samples, 1, "not with every heartbeat");
    let (reason, detail) = (EndReason::Released, String::new());
    world.report("n1", ExecutorEvent::LeaseEnded { lease, reason, detail, usage: usage(9) });
    let last = world.stored.iter().rev().find_map(|record| match record {
        Record::Usage { usage, .. } => Some(*usage),
        _ => None,
    });
    assert_eq!(last, Some(usage(9)), "the last word always is");
}

#[test]
fn leases_of_a_vacated_node_end_with_the_job_that_took_it() {
    let mut world = World::granted(&["n1"]);
    world.lease(1, 2).unwrap();
    let epoch = world.executors[&name("n1")].epoch;
    world.starting("n1", 7);
    world.vacated("n1", Trigger::Prolog, epoch, 7);
    let end = world.stored.iter().find_map(|record| match record {
        Record::LeaseEnded { reason, detail, .. } => Some((*reason, detail.clone())),
        _ => None,
    });
    assert_eq!(end, Some((EndReason::BatchJob, "job 7".into())));
    assert_eq!(world.core.status(world.now).vacates, 1);
    assert_eq!(grant(&world.beat("n1"), "n1"), None);
}
