//! Drain, resume and the kill switch: at once, stored, audited.

use gleaner_harvester_core::{effect::Reply, event::AdminCommand, record::Record};
use gleaner_lease::state::EndReason;

use crate::world::{World, grant, name, vacate};

fn drain(nodelist: &str) -> AdminCommand {
    AdminCommand::Drain { nodelist: nodelist.into(), reason: "disk".into() }
}

fn resume(nodelist: &str) -> AdminCommand {
    AdminCommand::Resume { nodelist: nodelist.into() }
}

#[test]
fn drained_nodes_are_left_kept_off_and_taken_again() {
    let mut world = World::granted(&["n1", "n2", "n3"]);
    let (effects, answer) = world.admin(0, drain("n[1-2]"));
    assert_eq!(answer, Some(Ok(Reply::Nodes(vec![name("n1"), name("n2")]))));
    assert_eq!(vacate(&effects, "n1").map(|(_, reason)| reason), Some(EndReason::Drained));
    assert_eq!((vacate(&effects, "n3"), grant(&world.beat("n1"), "n1")), (None, None));
    let (effects, answer) = world.admin(0, resume("n[1,3]"));
    assert_eq!(answer, Some(Ok(Reply::Nodes(vec![name("n1")]))), "n3 was not drained");
    assert!(grant(&effects, "n1").is_some());
    let audited =
        world.stored.iter().filter(|record| matches!(record, Record::Audit { .. })).count();
    assert_eq!(audited, 2);
}

#[test]
fn off_vacates_all_and_on_goes_on() {
    let mut world = World::granted(&["n1", "n2"]);
    let (effects, answer) = world.admin(0, AdminCommand::SwitchOff { reason: "test".into() });
    assert_eq!(answer, Some(Ok(Reply::Switched { off: true, vacating: 2 })));
    for node in ["n1", "n2"] {
        assert_eq!(vacate(&effects, node).map(|(_, reason)| reason), Some(EndReason::SwitchedOff));
        assert_eq!(grant(&world.beat(node), node), None);
    }
    let (effects, answer) = world.admin(0, AdminCommand::SwitchOn);
    assert_eq!(answer, Some(Ok(Reply::Switched { off: false, vacating: 0 })));
    assert!(grant(&effects, "n1").is_some() && grant(&effects, "n2").is_some());
}

#[test]
fn what_widens_begins_when_it_is_stored() {
    let mut world = World::granted(&["n1"]);
    world.admin(0, drain("n1"));
    world.broken = true;
    let (effects, answer) = world.admin(0, resume("n1"));
    insta::assert_snapshot!(answer.unwrap().unwrap_err(), @"this could not be stored, so nothing was changed: disk full; try again once the harvester's store takes records");
    assert_eq!((grant(&effects, "n1"), world.state("n1")), (None, "vacating"));
}

#[test]
fn a_drain_that_comes_while_a_resume_is_being_stored_stands() {
    let mut world = World::granted(&["n1"]);
    world.admin(0, drain("n1"));
    world.prompt = false;
    world.admin(0, resume("n1"));
    world.admin(0, drain("n1"));
    while !world.waiting.is_empty() {
        world.answer();
    }
    assert_eq!(grant(&world.beat("n1"), "n1"), None);
}

#[test]
fn a_refused_attempt_is_audited_too() {
    let mut world = World::granted(&["n1"]);
    world.admin(5, AdminCommand::SwitchOff { reason: "mischief".into() });
    let outcome = world.stored.iter().find_map(|record| match record {
        Record::Audit { who, outcome, .. } => Some((who.uid.0, outcome.clone())),
        _ => None,
    });
    assert_eq!(
        outcome.map(|(uid, outcome)| (uid, outcome.starts_with("user u5"))),
        Some((5, true))
    );
    assert_eq!(world.state("n1"), "granted");
}
