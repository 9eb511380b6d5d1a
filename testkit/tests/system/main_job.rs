//! The main job: harvest, lease, call, the batch scheduler takes a node back, the calls go on elsewhere, the node comes
//! back after the job, and the records tell it.

use std::time::{Duration, Instant};

use gleaner_testkit::{Service, wait_until};

use crate::support::{
    BOUND, acquire, assert_call_works, assert_slurm_is_well, client, evictions, for_so_long,
    function, harvested, node_of, request, vacates, wait_computing, wait_no_leased_worker,
};

#[test]
fn an_idle_node_is_leased_called_taken_back_and_harvested_again() {
    let service = harvested(3);
    let pool = acquire(&service, 2);
    let sum = function(&pool, "sum").idempotent(true);
    let spin = function(&pool, "spin").idempotent(true);
    assert_call_works(&sum);

    let taken = node_of(&pool);
    let running: Vec<_> =
        (0..4).map(|_| spin.submit(&for_so_long(Duration::from_millis(500))).unwrap()).collect();
    let job = service.cluster.allocate(&["--exclusive", "-w", &taken, "-t5"]).unwrap();
    wait_no_leased_worker(&service, &taken);
    for ticket in running {
        ticket.wait().unwrap();
    }
    let evicted = evictions(&pool.events());
    assert_eq!(evicted, [(taken.clone(), "BATCH_JOB".to_owned())]);
    assert!(pool.leases().iter().all(|lease| lease.node != taken), "leased under the job");
    let stats = pool.stats();
    assert_eq!((stats.failed, stats.evicted, stats.unknown), (0, 0, 0), "{stats:?}");
    assert!(stats.reruns > 0, "nothing ran again: {stats:?}");
    assert_eq!(service.node(&taken).unwrap()["cores_granted"], 0);

    service.cluster.scancel(job).unwrap();
    service.wait_granted(&taken, true, BOUND);
    assert_call_works(&sum);
    pool.release().unwrap();

    wait_until("the vacate is in the report", BOUND, || !vacates(&service, "prolog").is_empty());
    let vacates = vacates(&service, "prolog");
    assert_eq!(vacates.len(), 1, "{vacates:#?}");
    assert_eq!((&vacates[0]["node"], &vacates[0]["job_id"]), (&taken.as_str().into(), &job.into()));
    assert_eq!(vacates[0]["leases"], 1);
    wait_until("the leases' ends are recorded", BOUND, || {
        let leases = service.ask(&["leases", "--ended"]).unwrap();
        let ended = leases.as_array().unwrap().iter();
        let mut reasons: Vec<_> = ended.filter_map(|lease| lease["end_reason"].as_str()).collect();
        reasons.sort_unstable();
        reasons == ["batch-job", "released", "released"]
    });
    assert_slurm_is_well(&service);
}

#[test]
fn srun_and_sbatch_take_nodes_that_are_leased_and_never_fail() {
    let service = harvested(2);
    let pool = acquire(&service, 2);
    let sum = function(&pool, "sum").idempotent(true);
    for _ in 0..3 {
        assert_call_works(&sum);
        assert_eq!(service.cluster.srun(&["-N1", "--exclusive", "echo", "ran"]).unwrap(), "ran\n");
    }
    let batch = service.cluster.sbatch(&["-N2", "--exclusive"], "true").unwrap();
    service.cluster.wait_job(batch, "COMPLETED", BOUND);
    service.wait_harvested(2, BOUND);
    assert_call_works(&sum);
    assert_slurm_is_well(&service);
}

#[test]
fn a_call_that_is_not_idempotent_is_evicted_once_and_runs_once() {
    let service = harvested(1);
    let pool = acquire(&service, 1);
    let spin = function(&pool, "spin");
    let started = spin.submit(&for_so_long(BOUND)).unwrap();
    let waiting = spin.submit(&for_so_long(Duration::from_millis(1))).unwrap();
    let node = node_of(&pool);
    wait_computing(service.leased_workers(&node)[0]);
    let began = Instant::now();
    let job = service.cluster.allocate(&["--exclusive", "-w", &node, "-t5"]).unwrap();
    let error = started.wait().unwrap_err();
    assert!(error.to_string().starts_with("EVICTED"), "{error}");
    service.cluster.scancel(job).unwrap();
    waiting.wait().unwrap();
    assert!(began.elapsed() < BOUND);
    assert_eq!(pool.stats().evicted, 1);
}

#[test]
fn a_refusal_says_why() {
    let service = harvested(2);
    let ask = |request| client(&service).acquire(request).map(|_| ()).unwrap_err().to_string();
    let no_patience = Duration::ZERO;
    let cores = ask(request(1).cores(64).patience(no_patience));
    assert!(cores.contains("64 cores"), "{cores}");
    let partition = ask(request(1).partition("nowhere").patience(no_patience));
    assert!(partition.contains("nowhere"), "{partition}");
    let nodes = ask(request(3).patience(no_patience));
    assert!(nodes.contains('3') && nodes.contains('2'), "{nodes}");
}

#[test]
fn observing_takes_nothing() {
    let builder = Service::with_nodes(1).configure(|config| {
        config.policy.mode = gleaner_config::Mode::Observe;
    });
    let service = builder.start().unwrap();
    service.wait_status("nodes_idle", 1, BOUND);
    service.wait_status("executors", 1, BOUND);
    let status = service.status().unwrap();
    assert_eq!((&status["nodes_granted"], &status["mode"]), (&0.into(), &"observe".into()));
    assert!(client(&service).acquire(request(1).patience(Duration::ZERO)).is_err());
}

#[test]
fn drain_resume_off_and_on() {
    let service = harvested(2);
    let pool = acquire(&service, 1);
    let sum = function(&pool, "sum").idempotent(true);
    let node = node_of(&pool);
    service.ask(&["drain", "--reason=a test", &node]).unwrap();
    wait_no_leased_worker(&service, &node);
    assert_call_works(&sum);
    assert_ne!(node_of(&pool), node);
    service.ask(&["resume", &node]).unwrap();
    service.wait_harvested(2, BOUND);
    drop(pool);

    service.ask(&["off", "--reason=a test"]).unwrap();
    service.wait_harvested(0, BOUND);
    for node in service.cluster.nodes() {
        wait_no_leased_worker(&service, node);
    }
    service.ask(&["on"]).unwrap();
    service.wait_harvested(2, BOUND);
    assert_slurm_is_well(&service);
}
