//! What makes the core leave a node, keep off it, and come back.

use std::time::Duration;

use gleaner_harvester_core::{
    Effect, Event, Policy,
    event::{AdminCommand, ExecutorEvent, Trigger, Vacated},
    picture::JobView,
    policy::Mode,
};
use gleaner_lease::{clock::Stamp, state::EndReason};
use gleaner_proto::ids::{Epoch, JobId, Uid};

use crate::world::{World, grant, name, policy, vacate};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn every_state_that_forbids_a_node_makes_it_be_left_at_once() {
    for state in [
        "DOWN",
        "IDLE+DRAIN",
        "IDLE+FAIL",
        "IDLE+MAINT",
        "IDLE+RESERVED",
        "IDLE+COMPLETING",
        "IDLE+POWERING_DOWN",
        "IDLE+POWERING_UP",
        "IDLE+POWERED_DOWN",
        "IDLE+REBOOT_REQUESTED",
        "IDLE+NOT_RESPONDING",
        "IDLE+BRANDNEW",
        "UNKNOWN",
        "ALLOCATED",
        "MIXED",
        "idle*",
        "idle~",
    ] {
        let mut world = World::granted(&["n1"]);
        let epoch = world.executors[&name("n1")].epoch;
        let effects = world.set("n1", state).look();
        assert_eq!(vacate(&effects, "n1"), Some((epoch, EndReason::BatchJob)), "{state}");
        assert_eq!(grant(&world.beat("n1"), "n1"), None, "{state}");
    }
}

#[test]
fn a_grant_that_crossed_a_prolog_on_its_way_is_taken_back() {
    let mut world = World::granted(&["n1"]);
    let epoch = world.executors[&name("n1")].epoch;
    let effects = world.starting("n1", 9);
    assert_eq!(vacate(&effects, "n1"), Some((epoch, EndReason::BatchJob)));
}

#[test]
fn an_epoch_that_ended_with_nothing_to_clear_is_no_vacate() {
    let mut world = World::granted(&["n1"]);
    let epoch = world.executors[&name("n1")].epoch;
    let nothing = Vacated {
        record_id: [0; 16],
        trigger: Trigger::GrantEnd,
        epoch,
        job: JobId(0),
        job_uid: Uid(0),
        leases: 0,
        processes: 0,
        memory_bytes: 0,
        steps: Default::default(),
        stamp: Stamp(1),
        unix_ms: 0,
    };
    world.report("n1", ExecutorEvent::Vacated(nothing));
    assert_eq!(world.core.status(world.now).vacates, 0);
}

#[test]
fn planned_and_cloud_nodes_may_be_taken() {
    for state in ["IDLE+PLANNED", "IDLE+CLOUD", "IDLE+DYNAMIC_NORM"] {
        let mut world = World::granted(&["n1"]);
        world.set("n1", state).look();
        assert!(grant(&world.beat("n1"), "n1").is_some(), "{state}");
    }
}

#[test]
fn a_grant_ends_a_margin_before_the_planned_start() {
    let mut world = World::granted(&["n1"]);
    let start = world.wall_ms() / 1000 + 12;
    let job = JobView {
        id: JobId(5),
        nodes: vec![name("n1")],
        end_unix_s: None,
        start_unix_s: Some(start),
    };
    world.tell(Event::Jobs(vec![job]));
    let (_, ttl) = grant(&world.beat("n1"), "n1").unwrap();
    assert_eq!(ttl, Duration::from_secs(7), "12 s less the margin of 5 s");
    let effects = world.pass(7 * SECOND).look();
    assert!(vacate(&effects, "n1").is_some(), "the first grant was longer");
    assert_eq!(grant(&world.beat("n1"), "n1"), None);
}

#[test]
fn a_picture_that_still_says_idle_does_not_hand_out_a_starting_jobs_node() {
    let mut world = World::granted(&["n1"]);
    world.starting("n1", 7);
    for _ in 0..5 {
        assert_eq!(grant(&world.pass(SECOND).look(), "n1"), None);
        assert_eq!(grant(&world.beat("n1"), "n1"), None);
    }
    assert_eq!(world.core.nodes(world.now, world.wall_ms(), None)[0].hold_job, JobId(7));
    assert!(world.lease(1, 1).is_err());
}

#[test]
fn the_epilog_makes_slurm_be_asked_and_the_node_available_at_once() {
    let mut world = World::granted(&["n1"]);
    let before = world.executors[&name("n1")].epoch;
    world.starting("n1", 7);
    world.vacated("n1", Trigger::Prolog, before, 7);
    let asked_before = world.now;
    let effects = world.ended("n1", 7);
    assert!(effects.contains(&Effect::LookSoon));
    assert_eq!(grant(&world.look_asked(asked_before), "n1"), None, "asked before the epilog");
    let (epoch, _) = grant(&world.look(), "n1").expect("granted without another heartbeat");
    assert!(epoch > before, "a vacated epoch never comes back");
}

#[test]
fn an_epilog_without_its_prolog_pauses_until_slurm_is_seen() {
    let mut world = World::granted(&["n1"]);
    world.ended("n1", 7);
    let effects = world.beat("n1");
    assert_eq!((grant(&effects, "n1"), vacate(&effects, "n1")), (None, None));
    world.look();
    assert!(grant(&world.beat("n1"), "n1").is_some());
}

#[test]
fn without_an_epilog_the_jobs_coming_and_going_in_pictures_releases_the_node() {
    let mut world = World::granted(&["n1"]);
    world.starting("n1", 7);
    world.pass(SECOND).set("n1", "ALLOCATED").look();
    world.pass(SECOND).set("n1", "IDLE+COMPLETING").look();
    assert!(
        world
            .pass(SECOND)
            .set("n1", "IDLE")
            .look()
            .iter()
            .any(|effect| matches!(effect, Effect::Send { .. }))
    );
    assert_eq!(world.state("n1"), "granted");
}

#[test]
fn a_hold_whose_job_never_shows_ends_after_its_bound() {
    let mut world = World::granted(&["n1"]);
    world.starting("n1", 7);
    world.pass(59 * SECOND).look();
    assert_eq!(world.state("n1"), "held");
    world.pass(2 * SECOND).look();
    assert!(grant(&world.beat("n1"), "n1").is_some());
}

#[test]
fn a_vacate_record_that_overtakes_the_hooks_event_holds_too() {
    let mut world = World::granted(&["n1"]);
    let epoch = world.executors[&name("n1")].epoch;
    world.vacated("n1", Trigger::Prolog, epoch, 7);
    world.pass(SECOND).look();
    assert_eq!(world.state("n1"), "held");
    world.ended("n1", 7);
    world.look();
    assert!(grant(&world.beat("n1"), "n1").is_some());
}

#[test]
fn a_lost_vacate_is_sent_again_with_the_next_heartbeat() {
    let mut world = World::granted(&["n1"]);
    let epoch = world.executors[&name("n1")].epoch;
    world.set("n1", "ALLOCATED").look();
    assert_eq!(vacate(&world.beat("n1"), "n1"), Some((epoch, EndReason::BatchJob)));
    world.executors.get_mut(&name("n1")).unwrap().epoch = Epoch(0);
    world.vacated("n1", Trigger::Poll, epoch, 0);
    assert_eq!(vacate(&world.beat("n1"), "n1"), None, "it said that it holds nothing");
}

#[test]
fn without_slurm_grants_are_not_renewed_and_go_on_when_it_is_back() {
    let mut world = World::granted(&["n1"]);
    world.pass(11 * SECOND);
    let effects = world.beat("n1");
    assert_eq!((grant(&effects, "n1"), vacate(&effects, "n1")), (None, None));
    assert!(world.lease(1, 1).is_err());
    world.look();
    assert!(grant(&world.beat("n1"), "n1").is_some());
}

#[test]
fn minimum_idle_time_counts_from_the_first_idle_picture() {
    let mut world = World::seen(Policy { min_idle: 5 * SECOND, ..policy() }, &["n1"]);
    world.join("n1");
    world.pass(4 * SECOND).look();
    assert_eq!(grant(&world.beat("n1"), "n1"), None);
    world.pass(2 * SECOND).look();
    assert!(grant(&world.beat("n1"), "n1").is_some());
}

#[test]
fn the_reserve_is_kept_and_filled_up_at_the_least_cost() {
    let mut world = World::seen(Policy { reserve_nodes: 1, ..policy() }, &["n1", "n2", "n3"]);
    for node in ["n1", "n2", "n3"] {
        world.join(node);
    }
    world.look();
    let granted = |world: &mut World| {
        ["n1", "n2", "n3"]
            .into_iter()
            .filter(|node| grant(&world.beat(node), node).is_some())
            .collect::<Vec<_>>()
    };
    assert_eq!(granted(&mut world), ["n2", "n3"], "one stays free");
    let leased = world.lease(1, 1).unwrap()[0].node.clone();
    let idle = ["n2", "n3"].into_iter().find(|node| name(node) != leased).unwrap();
    world.set("n1", "ALLOCATED");
    let effects = world.look();
    assert_eq!(
        vacate(&effects, idle).map(|(_, reason)| reason),
        Some(EndReason::Policy),
        "the unleased one is left"
    );
    assert_eq!(vacate(&effects, leased.as_str()), None);
}

#[test]
fn observing_grants_nothing_and_leaves_what_was_granted() {
    let mut world = World::granted(&["n1"]);
    let effects = world.tell(Event::Reconfigured(Policy { mode: Mode::Observe, ..policy() }));
    assert_eq!(vacate(&effects, "n1").map(|(_, reason)| reason), Some(EndReason::Policy));
    assert_eq!(grant(&world.beat("n1"), "n1"), None);
}

#[test]
fn opting_out_leaves() {
    let mut world = World::granted(&["n1"]);
    let effects =
        world.tell(Event::Reconfigured(Policy { mode: Mode::Enforce, ..Policy::default() }));
    assert_eq!(vacate(&effects, "n1").map(|(_, reason)| reason), Some(EndReason::Policy));
    assert_eq!(world.state("n1"), "vacating");
}

#[test]
fn nodes_and_features_opt_in_too_and_unknown_names_are_told() {
    let mut world = World::seen(Policy::default(), &["n1", "n2"]);
    world.nodes.get_mut(&name("n2")).unwrap().features = vec!["harvest".into()];
    world.look();
    let policy = Policy {
        mode: Mode::Enforce,
        nodes: [name("n1"), name("gone")].into(),
        features: ["harvest".to_owned(), "nope".into()].into(),
        partitions: ["bacth".to_owned()].into(),
        ..Policy::default()
    };
    world.tell(Event::Reconfigured(policy));
    assert_eq!([world.state("n1"), world.state("n2")], ["no-executor"; 2]);
    let warnings = world.core.status(world.now).warnings;
    insta::assert_snapshot!(warnings.join("\n"), @r#"
    policy.partitions names partition "bacth", which Slurm does not have: nothing is harvested by it; correct the name or take it out
    policy.nodes names node "gone", which Slurm does not have: nothing is harvested by it; correct the name or take it out
    policy.features names feature "nope", which Slurm does not have: nothing is harvested by it; correct the name or take it out
    "#);
}

#[test]
fn a_failing_store_delays_no_vacate() {
    let mut world = World::granted(&["n1", "n2"]);
    world.broken = true;
    let effects = world.set("n1", "ALLOCATED").look();
    assert!(vacate(&effects, "n1").is_some());
    let (effects, answer) = world.admin(0, AdminCommand::SwitchOff { reason: "now".into() });
    assert_eq!(vacate(&effects, "n2").map(|(_, reason)| reason), Some(EndReason::SwitchedOff));
    insta::assert_snapshot!(answer.unwrap().unwrap_err(), @"this is in effect, but could not be stored and will be forgotten when the harvester restarts: disk full; repeat it once the harvester's store takes records");
}
