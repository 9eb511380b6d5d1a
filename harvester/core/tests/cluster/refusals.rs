//! Every sentence that a refused caller reads, in the situation that brings it about.

use std::{collections::BTreeSet, time::Duration};

use gleaner_harvester_core::{
    Event, Policy,
    event::{AdminCommand, Join},
    picture::JobView,
    policy::Mode,
    record::Restored,
    refusal::Refusal,
};
use gleaner_proto::ids::{JobId, Uid};

use crate::world::{GIB, World, name, policy};

fn said(result: Result<Vec<gleaner_harvester_core::effect::Leased>, Refusal>) -> String {
    result.unwrap_err().to_string()
}

fn runs(world: &mut World, node: &str, job: u32, minutes: i64) {
    world.set(node, "ALLOCATED").look();
    let end_unix_s = Some(world.wall_ms() / 1000 + 60 * minutes);
    world.tell(Event::Jobs(vec![JobView {
        id: JobId(job),
        nodes: vec![name(node)],
        end_unix_s,
        start_unix_s: None,
    }]));
}

#[test]
fn too_few_cores_names_what_is_there_and_when_more_is_expected() {
    let mut world = World::granted(&["n1", "n2", "n3"]);
    assert_eq!(world.lease(1, 2).unwrap().len(), 1);
    assert_eq!(world.lease(1, 2).unwrap().len(), 1);
    let mut both = world.request(1, 2);
    both.avoid = vec![name("n1")];
    world.acquire(both).unwrap();
    runs(&mut world, "n3", 123, 3);
    insta::assert_snapshot!(said(world.lease(2, 4)), @"no idle node in partition batch has 4 cores and 1 GiB free; 1 node is idle with 2 cores; 1 node is busy with batch jobs; 1 node is leased out; next expected at 14:03 UTC (job 123's time limit)");
}

#[test]
fn the_designs_own_sentence() {
    let mut world = World::granted(&["n1", "n2", "n3"]);
    for node in ["n1", "n2"] {
        let mut half = world.request(1, 2);
        half.avoid =
            ["n1", "n2", "n3"].iter().filter(|other| **other != node).map(|n| name(n)).collect();
        world.acquire(half).unwrap();
    }
    runs(&mut world, "n3", 123, 3);
    let mut four = world.request(2, 4);
    four.memory_bytes = 0;
    insta::assert_snapshot!(said(world.acquire(four)), @"no idle node in partition batch has 4 cores free; 2 nodes are idle with 2 cores each; 1 node is busy with batch jobs; next expected at 14:03 UTC (job 123's time limit)");
}

#[test]
fn fewer_nodes_than_wanted() {
    let mut world = World::granted(&["n1", "n2"]);
    let mut request = world.request(1, 4);
    (request.nodes_min, request.nodes_max) = (3, 3);
    insta::assert_snapshot!(said(world.acquire(request)), @"only 2 idle nodes of the 3 wanted in partition batch have 4 cores and 1 GiB free; no running job's time limit says when the next is expected: ask for less, or try again");
}

#[test]
fn too_little_memory() {
    let mut world = World::granted(&["n1"]);
    let mut request = world.request(1, 1);
    request.memory_bytes = 9 * GIB;
    insta::assert_snapshot!(said(world.acquire(request)), @"no idle node in partition batch has 1 core and 9 GiB free; 1 node has the cores but at most 8 GiB free; no running job's time limit says when the next is expected: ask for less, or try again");
}

#[test]
fn every_other_reason_is_counted() {
    let mut world = World::seen(policy(), &["n1", "n2", "n3", "n4", "n5", "n6"]);
    for node in ["n1", "n2", "n3", "n5", "n6"] {
        world.join(node);
    }
    for node in ["n1", "n2", "n3", "n5"] {
        world.beat(node);
    }
    world.starting("n1", 9);
    world.admin(0, AdminCommand::Drain { nodelist: "n2".into(), reason: "disk".into() });
    world.set("n3", "IDLE+RESERVED").look();
    let mut request = world.request(1, 1);
    request.avoid = vec![name("n5")];
    insta::assert_snapshot!(said(world.acquire(request)), @"no idle node in partition batch has 1 core and 1 GiB free; 1 node is drained by an administrator; 1 node is held for a starting job; 1 node is idle and about to be granted; 1 node is idle without an executor; 1 node is in a Slurm state that is never touched; 1 node is on this request's list of nodes to avoid; no running job's time limit says when the next is expected: ask for less, or try again");
}

#[test]
fn an_executor_of_one_user_serves_nobody_else() {
    let mut world = World::seen(policy(), &["n1"]);
    let join = world.registration("n1");
    world.join_as(Join { caller: Uid(7), trusted: false, single_user: Some(Uid(7)), ..join });
    world.beat("n1");
    assert!(said(world.lease(8, 1)).contains("1 node is served for another user alone"));
    assert_eq!(world.lease(7, 1).unwrap().len(), 1);
}

#[test]
fn nothing_is_offered_by_default() {
    let mut world = World::seen(Policy { mode: Mode::Enforce, ..Policy::default() }, &["n1"]);
    insta::assert_snapshot!(said(world.lease(1, 1)), @"no node in partition batch is offered: the site's policy opts in nothing; ask your administrator, or name another partition");
}

#[test]
fn a_partition_that_slurm_does_not_have() {
    let mut world = World::granted(&["n1"]);
    let mut request = world.request(1, 1);
    request.partition = "gpu".into();
    insta::assert_snapshot!(said(world.acquire(request)), @"partition gpu does not exist in Slurm; it has batch: name one of those, or none for any");
}

#[test]
fn observing() {
    let mut world = World::seen(Policy { mode: Mode::Observe, ..policy() }, &["n1", "n2"]);
    insta::assert_snapshot!(said(world.lease(1, 1)), @r#"Gleaner only observes here (policy.mode = "observe"), so nothing is leased; enforcing, it would now offer 2 nodes: ask your administrator to set policy.mode = "enforce""#);
}

#[test]
fn switched_off() {
    let mut world = World::granted(&["n1"]);
    world.admin(0, AdminCommand::SwitchOff { reason: "maintenance".into() });
    insta::assert_snapshot!(said(world.lease(1, 1)), @"Gleaner is switched off (maintenance): nothing is leased until an administrator runs `gleaner on`");
}

#[test]
fn slurm_not_seen_for_too_long() {
    let mut world = World::granted(&["n1"]);
    world.tell(Event::PictureFailed {
        error: "scontrol: Unable to contact slurm controller".into(),
    });
    assert_eq!(world.lease(1, 1).unwrap().len(), 1, "the last picture counts for a while");
    world.pass(Duration::from_secs(11));
    insta::assert_snapshot!(said(world.lease(1, 1)), @"Slurm has not been seen for 11 s, and nothing is leased on a picture older than 10 s (scontrol: Unable to contact slurm controller): try again when slurmctld answers");
}

#[test]
fn slurm_never_seen() {
    let mut world = World::blind(policy(), Restored::default());
    insta::assert_snapshot!(said(world.lease(1, 1)), @"Slurm has not been seen for as long as the harvester runs, and nothing is leased on a picture older than 10 s (no answer yet): try again when slurmctld answers");
}

#[test]
fn accounts() {
    let mut world = World::granted(&["n1"]);
    let accounts: BTreeSet<String> = ["astro".into(), "bio".into()].into();
    world.tell(Event::Reconfigured(Policy { accounts, ..policy() }));
    insta::assert_snapshot!(said(world.lease(1, 1)), @r#"account "physics" may not lease here; policy.accounts has astro, bio: name one of those"#);
}

#[test]
fn quotas() {
    let mut world = World::granted(&["n1", "n2"]);
    world.tell(Event::Reconfigured(Policy {
        cores_per_user: Some(5),
        leases_per_user: Some(2),
        ..policy()
    }));
    let first = world.lease(1, 3).unwrap();
    insta::assert_snapshot!(said(world.lease(1, 3)), @"user u1 holds 3 cores and may lease 5 at a time; 3 more are wanted: release some, or ask for 2 at most");
    world.lease(1, 1).unwrap();
    insta::assert_snapshot!(said(world.lease(1, 1)), @"user u1 holds 2 leases and may hold 2 at a time; 1 more are wanted: release some first");
    assert!(world.lease(2, 1).is_ok(), "another user's quota is another");
    world.release(1, &[first[0].claims.lease]);
    assert!(world.lease(1, 1).is_ok(), "what was given back counts no more");
}

#[test]
fn a_quota_lowers_the_number_of_nodes_down_to_the_least_wanted() {
    let mut world = World::granted(&["n1", "n2", "n3"]);
    world.tell(Event::Reconfigured(Policy { cores_per_user: Some(5), ..policy() }));
    let mut request = world.request(1, 2);
    (request.nodes_min, request.nodes_max) = (1, 3);
    assert_eq!(world.acquire(request).unwrap().len(), 2);
}

#[test]
fn figures_that_make_no_sense() {
    let mut world = World::granted(&["n1"]);
    let mut said_of = |change: fn(&mut gleaner_harvester_core::event::Acquire)| {
        let mut request = world.request(1, 1);
        change(&mut request);
        said(world.acquire(request))
    };
    insta::assert_snapshot!(said_of(|r| r.nodes_min = 0), @"nodes_min is 0: ask for 1 to 4096 nodes");
    insta::assert_snapshot!(said_of(|r| r.nodes_min = 2), @"nodes_max is 1: it must be at least nodes_min");
    insta::assert_snapshot!(said_of(|r| r.cores = 0), @"cores is 0: ask for at least 1 core on each node");
    insta::assert_snapshot!(said_of(|r| r.ttl = Duration::ZERO), @"ttl is 0: ask for at least 1 ms");
}

#[test]
fn the_store_fails() {
    let mut world = World::granted(&["n1"]);
    world.broken = true;
    insta::assert_snapshot!(said(world.lease(1, 4)), @"the lease could not be stored, so it was not given: disk full; try again once the harvester's store takes records");
    world.broken = false;
    assert_eq!(world.lease(1, 4).unwrap().len(), 1, "the slice is free again");
}

#[test]
fn request_ids() {
    let mut world = World::granted(&["n1"]);
    let request = world.request(1, 1);
    let lease = world.acquire(request.clone()).unwrap()[0].claims.lease;
    let mut stolen = request.clone();
    stolen.client_key = [1; 32];
    insta::assert_snapshot!(said(world.acquire(stolen)), @"this request id was used with another key: make a new one for each request");
    world.release(1, &[lease]);
    insta::assert_snapshot!(said(world.acquire(request)), @"the leases of this request have ended: ask again with a new request id");
}

#[test]
fn admins() {
    let mut world = World::granted(&["n1"]);
    let mut refused = |uid, nodelist: &str| {
        let command = AdminCommand::Drain { nodelist: nodelist.into(), reason: "test".into() };
        world.admin(uid, command).1.unwrap().unwrap_err().to_string()
    };
    insta::assert_snapshot!(refused(5, "n1"), @"user u5 is no administrator of Gleaner: ask one of policy.admins");
    insta::assert_snapshot!(refused(0, "n[1-3]"), @"Slurm has no node n[2-3]: correct the list; nothing was changed");
    insta::assert_snapshot!(refused(0, ""), @"the node list is empty: name the nodes, as in n[1-4]");
    insta::assert_snapshot!(refused(0, "n[1"), @r#"hostlist "n[1": a bracket is not closed, or closed twice"#);
    assert_eq!(world.state("n1"), "granted");
}
