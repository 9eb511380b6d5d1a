//! A harvester that was killed and goes on from its records.

use std::time::Duration;

use gleaner_harvester_core::event::{AdminCommand, Join};
use gleaner_proto::ids::Term;

use crate::world::{World, grant, name, registered, vacate};

#[test]
fn leases_survive_and_their_slices_stay_taken() {
    let mut world = World::granted(&["n1"]);
    let request = world.request(1, 3);
    let before = world.acquire(request.clone()).unwrap().remove(0);
    let epoch = world.executors[&name("n1")].epoch;
    world.restart();
    world.look();
    let refused = world.acquire(request.clone()).unwrap_err();
    insta::assert_snapshot!(refused, @"the executor of n1, where this request's lease is, has not come back since the harvester restarted: try again in a moment");
    let join = world.registration("n1");
    let effects = world.join_as(Join { resume_epoch: epoch, last_term: Term(1), ..join });
    assert_eq!(registered(&effects), Some(epoch), "both go on with it");
    let expires = before.claims.expires;
    let report = gleaner_harvester_core::event::LeaseReport {
        lease: before.claims.lease,
        usage: Default::default(),
        expires,
    };
    assert!(grant(&world.beat_with("n1", &[report]), "n1").is_some());
    let again = world.acquire(request).unwrap().remove(0);
    assert_eq!((again.claims.lease, again.claims.expires), (before.claims.lease, expires));
    assert!(world.lease(2, 2).is_err(), "only one core is left");
    let other = world.lease(2, 1).unwrap().remove(0);
    assert!(other.claims.lease > before.claims.lease, "ids are never reused");
}

#[test]
fn an_executor_that_comes_back_before_slurm_is_seen_keeps_its_leases() {
    let mut world = World::granted(&["n1"]);
    let before = world.lease(1, 3).unwrap().remove(0);
    let epoch = world.executors[&name("n1")].epoch;
    world.restart();
    let join = world.registration("n1");
    let joined = world.join_as(Join { resume_epoch: epoch, last_term: Term(1), ..join });
    let report = gleaner_harvester_core::event::LeaseReport {
        lease: before.claims.lease,
        usage: Default::default(),
        expires: before.claims.expires,
    };
    let beaten = world.beat_with("n1", &[report]);
    for effects in [&joined, &beaten] {
        assert_eq!(vacate(effects, "n1"), None, "nothing of Slurm is known yet");
    }
    world.look();
    assert_eq!(world.core.leases(world.now).len(), 1);
}

#[test]
fn a_node_that_never_comes_back_is_free_after_the_longest_grant() {
    let mut world = World::granted(&["n1"]);
    world.lease(1, 3).unwrap();
    world.restart();
    world.pass(Duration::from_secs(9)).tick();
    assert_eq!(world.core.leases(world.now).len(), 1);
    world.pass(Duration::from_secs(2)).tick();
    assert!(world.core.leases(world.now).is_empty());
}

#[test]
fn terms_grow_and_drains_and_the_switch_survive() {
    let mut world = World::granted(&["n1", "n2"]);
    world.admin(0, AdminCommand::Drain { nodelist: "n1".into(), reason: "disk".into() });
    world.restart();
    world.look();
    assert_eq!(world.state("n1"), "drained");
    assert_eq!(world.core.status(world.now).term, Term(2));
    world.admin(0, AdminCommand::SwitchOff { reason: "test".into() });
    world.restart();
    world.look();
    assert!(world.core.status(world.now).switched_off);
    world.join("n2");
    assert_eq!(grant(&world.beat("n2"), "n2"), None);
    world.admin(0, AdminCommand::SwitchOn);
    world.restart();
    assert!(!world.core.status(world.now).switched_off);
}
