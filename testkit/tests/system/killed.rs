//! kill -9 of each process at an inconvenient moment: a clear end, nothing lost, nothing left behind.

use gleaner_testkit::{process, wait_until};

use crate::support::{
    BOUND, acquire, assert_call_works, assert_slurm_is_well, for_so_long, function, harvested,
    library_path, node_of, vacates, wait_computing, wait_gone, wait_no_leased_worker,
};

#[test]
fn the_harvester_leases_go_on_and_the_next_one_takes_them_over() {
    let mut service = harvested(2);
    let pool = acquire(&service, 1);
    let sum = function(&pool, "sum").idempotent(true);
    let node = node_of(&pool);
    let lease = pool.leases()[0].lease_id;
    let term = service.status().unwrap()["term"].as_u64().unwrap();
    service.kill_harvester();
    assert_call_works(&sum);
    service.start_harvester().unwrap();
    service.wait_harvested(2, BOUND);
    assert!(service.status().unwrap()["term"].as_u64().unwrap() > term);
    assert_call_works(&sum);
    let leases = service.ask(&["leases"]).unwrap();
    let live: Vec<_> = leases.as_array().unwrap().iter().map(|lease| &lease["lease_id"]).collect();
    assert_eq!(live, [&serde_json::Value::from(lease)], "the lease on {node} was forgotten");
    let mut ids = vec![lease];
    ids.push(acquire(&service, 1).leases()[0].lease_id);
    assert_ne!(ids[0], ids[1], "a lease's number was used twice");
}

#[test]
fn the_harvester_for_good_executors_give_their_nodes_back_by_themselves() {
    let mut service = harvested(1);
    let pool = acquire(&service, 1);
    let node = node_of(&pool);
    let workers = service.leased_workers(&node);
    assert_eq!(workers.len(), 1);
    service.kill_harvester();
    wait_gone(&workers);
    wait_no_leased_worker(&service, &node);
    drop(pool);
    service.start_harvester().unwrap();
    service.wait_harvested(1, BOUND);
    wait_until("the vacate is in the report", BOUND, || !vacates(&service, "grant-end").is_empty());
    let pool = acquire(&service, 1);
    assert_call_works(&function(&pool, "sum"));
}

#[test]
fn an_agent_takes_its_leases_with_it_and_is_started_again() {
    let service = harvested(2);
    let pool = acquire(&service, 1);
    let sum = function(&pool, "sum").idempotent(true);
    let node = node_of(&pool);
    let (agent, workers) = (service.agent_pid(&node).unwrap(), service.leased_workers(&node));
    process::kill_all(&[agent]);
    wait_gone(&workers);
    assert_call_works(&sum);
    wait_until("another agent runs", BOUND, || {
        service.agent_pid(&node).is_some_and(|pid| pid != agent)
    });
    service.wait_harvested(2, BOUND);
    wait_until("the vacate is in the report", BOUND, || {
        !vacates(&service, "agent-dead").is_empty()
    });
}

#[test]
fn a_keeper_takes_everything_with_it_and_the_next_one_starts_clean() {
    let mut service = harvested(2);
    let pool = acquire(&service, 1);
    let sum = function(&pool, "sum").idempotent(true);
    let node = node_of(&pool);
    let mut all: Vec<_> = service.workers(&node).iter().map(|(pid, _)| *pid).collect();
    all.extend(service.agent_pid(&node));
    service.kill_keeper(&node);
    wait_gone(&all);
    assert_call_works(&sum);
    service.cluster.srun(&["--exclusive", "-w", &node, "true"]).unwrap();
    service.start_executor(&node).unwrap();
    service.wait_harvested(2, BOUND);
    assert_slurm_is_well(&service);
}

#[test]
fn a_worker_fails_the_call_that_it_ran_and_ends_only_its_own_lease() {
    let service = harvested(1);
    let (victim, other) = (acquire(&service, 1), acquire(&service, 1));
    let spin = function(&victim, "spin").idempotent(true);
    let sum = function(&other, "sum");
    let node = node_of(&victim);
    let lease = victim.leases()[0].lease_id;
    let running = spin.submit(&for_so_long(BOUND)).unwrap();
    let mut workers = service.workers(&node).into_iter();
    let worker = workers.find_map(|(pid, of)| (of == lease).then_some(pid)).unwrap();
    wait_computing(worker);
    process::kill_all(&[worker]);
    let error = running.wait().unwrap_err();
    assert!(error.to_string().starts_with("FAILED"), "{error}");
    assert_call_works(&sum);
    assert_eq!(victim.stats().reruns, 0, "a call that brought its worker down ran again");
}

#[test]
fn a_client_s_lease_ends_with_its_time_and_its_node_serves_others() {
    let mut service = harvested(1);
    let library = library_path();
    let forever =
        [library.to_str().unwrap(), "loop_forever", "-t", "4s", "--mem", "64M", "-c", "2"];
    let mut command = service.command(&["invoke"]);
    command.args(forever).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let client = process::Daemon::start("client", command, None).unwrap();
    wait_until("the client's call runs", BOUND, || !service.leased_workers("n1").is_empty());
    drop(client);
    wait_no_leased_worker(&service, "n1");
    wait_until("the lease is free again", BOUND, || {
        service.status().is_ok_and(|status| status["leases_live"] == 0)
    });
    let pool = acquire(&service, 1);
    assert_call_works(&function(&pool, "sum"));
    assert!(!service.keeper("n1").has_ended());
}
