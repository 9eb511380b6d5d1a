//! SIGSTOP of each process past a lease's or grant's end, and SIGCONT: what has ended stays ended.

use std::time::Duration;

use gleaner::{CallError, Request};
use gleaner_testkit::{process, wait_until};

use crate::support::{
    BOUND, acquire, assert_call_works, assert_slurm_is_well, client, for_so_long, function,
    harvested, node_of, request, vacates, wait_computing, wait_gone, wait_no_leased_worker,
};

/// A lease that nobody renews.
fn short() -> Request {
    request(1).ttl(Duration::from_secs(4)).keep_alive(gleaner::KeepAlive::Manual)
}

#[test]
fn the_agent_the_keeper_ends_the_lease_in_time() {
    let service = harvested(1);
    let pool = client(&service).acquire(short()).unwrap();
    let spin = function(&pool, "spin");
    let running = spin.submit(&for_so_long(BOUND)).unwrap();
    let workers = service.leased_workers("n1");
    let agent = service.agent_pid("n1").unwrap();
    process::stop(agent);
    wait_gone(&workers);
    process::cont(agent);
    drop(running);
    drop(pool);
    service.wait_harvested(1, BOUND);
    let pool = acquire(&service, 1);
    assert_call_works(&function(&pool, "sum"));
}

#[test]
fn the_keeper_is_no_way_around_the_hook() {
    let mut service = harvested(2);
    let pool = acquire(&service, 1);
    let spin = function(&pool, "spin").idempotent(true);
    let node = node_of(&pool);
    let running = spin.submit(&for_so_long(Duration::from_millis(200))).unwrap();
    let workers = service.leased_workers(&node);
    service.keeper(&node).stop();
    let job = service.cluster.allocate(&["--exclusive", "-w", &node, "-t5"]).unwrap();
    wait_gone(&workers);
    assert_eq!(service.cluster.job_state(job).as_deref(), Some("RUNNING"));
    wait_until("the hook has killed the keeper too", BOUND, || service.keeper(&node).has_ended());
    running.wait().unwrap();
    wait_no_leased_worker(&service, &node);
    service.start_executor(&node).unwrap();
    wait_until("the old grant is known to be over", BOUND, || {
        service.node(&node).unwrap()["cores_granted"] == 0
    });
    assert_eq!(service.cluster.job_state(job).as_deref(), Some("RUNNING"));
    service.cluster.scancel(job).unwrap();
    service.wait_harvested(2, BOUND);
    wait_until("the vacate is in the report", BOUND, || {
        vacates(&service, "hook-alone").iter().any(|vacate| vacate["job_id"] == job)
    });
    assert_slurm_is_well(&service);
}

#[test]
fn the_worker_s_lease_ends_without_its_help() {
    let service = harvested(1);
    let pool = client(&service).acquire(short()).unwrap();
    let spin = function(&pool, "spin");
    let running = spin.submit(&for_so_long(BOUND)).unwrap();
    let workers = service.leased_workers("n1");
    wait_computing(workers[0]);
    process::stop(workers[0]);
    wait_gone(&workers);
    match running.wait() {
        Err(CallError::Evicted { .. } | CallError::Unknown { .. }) => {}
        other => panic!("a call on a stopped worker ended as {other:?}"),
    }
}

#[test]
fn the_harvester_past_every_grant_s_end_hands_nothing_to_two() {
    let mut service = harvested(1);
    let pool = acquire(&service, 1);
    let workers = service.leased_workers("n1");
    service.harvester().stop();
    wait_gone(&workers);
    service.harvester().cont();
    service.wait_harvested(1, BOUND);
    wait_until("the old lease is over for the harvester too", BOUND, || {
        service.status().is_ok_and(|status| status["leases_live"] == 0)
    });
    drop(pool);
    let pool = acquire(&service, 1);
    assert_call_works(&function(&pool, "sum"));
}
