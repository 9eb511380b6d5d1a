//! Who may join, and how what executors report is acknowledged.

use std::time::Duration;

use gleaner_harvester_core::{
    Effect, Event,
    effect::{JoinRefusal, ToExecutor},
    event::{ExecutorEvent, Join},
    policy::Policy,
    record::{Record, Restored},
};
use gleaner_lease::clock::Instance;
use gleaner_proto::ids::{Epoch, JobId, Term, Uid};

use crate::world::{World, grant, name, policy, registered, sent};

fn refusal(effects: &[Effect]) -> Option<JoinRefusal> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { message: ToExecutor::Refused(refusal), .. } => Some(*refusal),
        _ => None,
    })
}

fn own(join: Join, uid: u32) -> Join {
    Join {
        caller: Uid(uid),
        trusted: false,
        single_user: Some(Uid(uid)),
        instance: Instance([uid as u8; 16]),
        ..join
    }
}

type Change = fn(Join) -> Join;

#[test]
fn who_is_refused() {
    let term = Term(1);
    let cases: [(Change, JoinRefusal); 6] = [
        (|join| Join { trusted: false, caller: Uid(5), ..join }, JoinRefusal::NotTrusted),
        (|join| Join { caller: Uid(6), ..own(join, 5) }, JoinRefusal::OtherUser),
        (|join| Join { cores: 0, ..join }, JoinRefusal::Nothing),
        (|join| Join { memory_bytes: 0, ..join }, JoinRefusal::Nothing),
        (|join| Join { node: name("nowhere"), ..join }, JoinRefusal::NoSuchNode),
        (
            |join| Join { last_term: Term(9), ..join },
            JoinRefusal::OldTerm { seen: Term(9), term: Term(1) },
        ),
    ];
    for (change, expected) in cases {
        let mut world = World::seen(policy(), &["n1"]);
        assert_eq!(world.core.status(world.now).term, term);
        let join = change(world.registration("n1"));
        let effects = world.join_as(join);
        assert_eq!((refusal(&effects), registered(&effects)), (Some(expected), None));
    }
}

#[test]
fn nobody_joins_before_the_term_is_stored() {
    let mut world = World::granted(&["n1"]);
    world.lease(1, 1).unwrap();
    let resume_epoch = world.executors[&name("n1")].epoch;
    world.prompt = false;
    world.restart();
    world.look();
    let join = world.registration("n1");
    let resumed = world.join_as(Join { resume_epoch, ..join });
    assert_eq!(refusal(&resumed), Some(JoinRefusal::Store), "also one that needs no new epoch");
    world.prompt = true;
    world.answer();
    assert!(registered(&world.join("n1")).is_some());
}

#[test]
fn two_users_executors_never_share_a_node_and_a_trusted_one_comes_first() {
    let mut world = World::seen(policy(), &["n1"]);
    let join = own(world.registration("n1"), 5);
    assert!(registered(&world.join_as(join)).is_some());
    world.beat("n1");
    let join = own(world.registration("n1"), 6);
    assert_eq!(refusal(&world.join_as(join)), Some(JoinRefusal::Taken));
    let effects = world.join("n1");
    assert!(sent(&effects, "n1").any(|message| matches!(message, ToExecutor::Vacate { .. })));
    assert_eq!(registered(&effects), None, "the other may still be running");
    let join = own(world.registration("n1"), 5);
    assert_eq!(refusal(&world.join_as(join)), Some(JoinRefusal::Taken));
    world.pass(Duration::from_secs(11));
    assert!(registered(&world.join("n1")).is_some());
}

#[test]
fn a_job_that_was_starting_when_the_executor_joined_holds_the_node() {
    let mut world = World::seen(policy(), &["n1"]);
    let join = world.registration("n1");
    world.join_as(Join { hold_job: JobId(7), ..join });
    world.pass(Duration::from_secs(1)).look();
    assert_eq!(grant(&world.beat("n1"), "n1"), None);
    assert_eq!(world.state("n1"), "held");
}

#[test]
fn a_lost_streams_late_messages_change_nothing() {
    let mut world = World::granted(&["n1"]);
    let old = world.executors[&name("n1")].clone();
    world.join("n1");
    let what = ExecutorEvent::JobStarting { job: JobId(7), job_uid: Uid(1), hook_us: 0 };
    assert!(world.tell(Event::Executor { conn: old.conn, seq: 1, what }).is_empty());
    world.tell(Event::ExecutorLost { conn: old.conn });
    assert_eq!(world.core.status(world.now).executors, 1);
}

fn acks(effects: &[Effect]) -> Vec<u64> {
    let acks = sent(effects, "n1").filter_map(|message| match message {
        ToExecutor::Ack { seq } => Some(seq),
        _ => None,
    });
    acks.collect()
}

#[test]
fn an_event_is_acknowledged_when_it_is_stored_and_not_before() {
    let mut world = World::granted(&["n1"]);
    world.prompt = false;
    assert_eq!(acks(&world.starting("n1", 7)), []);
    world.broken = true;
    while !world.waiting.is_empty() {
        assert_eq!(acks(&world.answer()), [], "it could not be stored");
    }
    world.broken = false;
    world.prompt = true;
    assert_eq!(acks(&world.tick()), [], "not tried again at once");
    assert_eq!(acks(&world.pass(Duration::from_secs(2)).tick()), [1]);
    let jobs = world.stored.iter().filter(|record| matches!(record, Record::Job(_))).count();
    assert_eq!(jobs, 1);
}

#[test]
fn an_event_that_comes_again_is_applied_once_and_acknowledged_again() {
    let mut world = World::granted(&["n1"]);
    world.starting("n1", 7);
    world.ended("n1", 7);
    world.executors.get_mut(&name("n1")).unwrap().events = 0;
    assert_eq!(acks(&world.starting("n1", 7)), [1]);
    world.look();
    assert_ne!(world.state("n1"), "held");
    assert_eq!(world.stored.iter().filter(|record| matches!(record, Record::Job(_))).count(), 2);
}

#[test]
fn an_executor_that_reconnects_resumes_its_epoch() {
    let mut world = World::granted(&["n1"]);
    let epoch = world.executors[&name("n1")].epoch;
    let lease = world.lease(1, 4).unwrap()[0].claims.lease;
    world.lost("n1");
    world.release(1, &[lease]);
    let join = world.registration("n1");
    let effects = world.join_as(Join { resume_epoch: epoch, ..join });
    assert_eq!(registered(&effects), Some(epoch));
    assert!(
        sent(&effects, "n1").any(|message| matches!(message, ToExecutor::Revoke { .. })),
        "it missed that one"
    );
}

#[test]
fn a_default_policy_grants_nothing() {
    let mut world = World::seen(Policy::default(), &["n1"]);
    world.join("n1");
    assert_eq!(grant(&world.beat("n1"), "n1"), None);
    assert_eq!(world.state("n1"), "not-offered");
    let mut blind = World::blind(Policy::default(), Restored::default());
    assert!(
        registered(&blind.join("n1")).is_some_and(|epoch| epoch > Epoch(0)),
        "Slurm may come later"
    );
}
