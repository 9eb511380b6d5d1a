//! What every system test does: a service, a client's pool on it, a batch job that wants a node back.

use std::{fs, path::PathBuf, time::Duration};

use gleaner::{Client, Function, Library, Options, Pool, PoolEvent, PoolEventKind, Request};
use gleaner_testkit::{Service, process, wait_until};
use serde_json::Value;

/// The most time of anything that is waited for.
pub(crate) const BOUND: Duration = Duration::from_secs(20);

/// A service with all its nodes harvested.
pub(crate) fn harvested(nodes: u16) -> Service {
    let service = Service::with_nodes(nodes).start().unwrap();
    service.wait_harvested(u64::from(nodes), BOUND);
    service
}

pub(crate) fn client(service: &Service) -> Client {
    Client::connect(Options::from(service.config())).unwrap()
}

/// One core on each of so many nodes.
pub(crate) fn request(nodes: u32) -> Request {
    Request::new()
        .nodes(nodes..=nodes)
        .memory(64 << 20)
        .ttl(Duration::from_secs(30))
        .patience(BOUND)
        .waiting(gleaner::Waiting::Warm)
}

pub(crate) fn acquire(service: &Service, nodes: u32) -> Pool {
    let pool = client(service).acquire(request(nodes));
    pool.unwrap_or_else(|error| panic!("{error}\n{}", service.logs()))
}

/// The library of test functions.
pub(crate) fn library_path() -> PathBuf {
    gleaner_test_functions::library_path().unwrap()
}

pub(crate) fn function<'p>(pool: &'p Pool, name: &str) -> Function<'p> {
    pool.function(&Library::from_file(library_path()).unwrap(), name).unwrap()
}

/// Calls `sum` once and checks the result.
pub(crate) fn assert_call_works(sum: &Function<'_>) {
    let input: Vec<u8> = [40u64, 2].iter().flat_map(|n| n.to_le_bytes()).collect();
    assert_eq!(sum.invoke(&input).unwrap(), 42u64.to_le_bytes());
}

/// Input of `spin`: so long inside the function.
pub(crate) fn for_so_long(duration: Duration) -> [u8; 8] {
    (duration.as_nanos() as u64).to_le_bytes()
}

pub(crate) fn node_of(pool: &Pool) -> String {
    pool.leases()[0].node.clone()
}

/// The nodes whose leases ended against the client's will, and why.
pub(crate) fn evictions(events: &[PoolEvent]) -> Vec<(String, String)> {
    let evicted = |event: &PoolEvent| match &event.kind {
        PoolEventKind::Evicted { reason, .. } => Some((event.node.clone(), reason.clone())),
        _ => None,
    };
    events.iter().filter_map(evicted).collect()
}

/// Waits until no process of a lease is left on a node.
#[track_caller]
pub(crate) fn wait_no_leased_worker(service: &Service, node: &str) {
    wait_until(format_args!("{node} has no leased worker"), BOUND, || {
        service.leased_workers(node).is_empty()
    });
}

/// Waits until processes are gone.
#[track_caller]
pub(crate) fn wait_gone(pids: &[i32]) {
    wait_until(format_args!("{pids:?} are gone"), BOUND, || {
        !pids.iter().any(|&pid| process::is_alive(pid))
    });
}

/// Waits until a worker computes. Its client must wait warm: a hot worker computes always. Little is enough: beside
/// busy compilers an idle-class thread gets little.
#[track_caller]
pub(crate) fn wait_computing(worker: i32) {
    let begun = run_time(worker);
    wait_until(format_args!("worker {worker} computes"), BOUND, || {
        run_time(worker) > begun + Duration::from_millis(5)
    });
}

/// CPU time of all of a process's threads.
fn run_time(pid: i32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = tasks.filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok());
    let nanos = texts.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok());
    Duration::from_nanos(nanos.sum())
}

/// The vacates of the report that have this trigger.
pub(crate) fn vacates(service: &Service, trigger: &str) -> Vec<Value> {
    let report = service.ask(&["report"]).unwrap();
    let vacates = report["vacates"].as_array().cloned().unwrap_or_default();
    vacates.into_iter().filter(|vacate| vacate["trigger"] == trigger).collect()
}

/// No node was drained, set down or given a reason by any of this.
#[track_caller]
pub(crate) fn assert_slurm_is_well(service: &Service) {
    let text = service.cluster.scontrol(&["--oneliner", "show", "nodes"]).unwrap();
    for line in text.lines() {
        assert!(
            !line.contains("DRAIN") && !line.contains("DOWN") && !line.contains("Reason="),
            "{line}"
        );
    }
}
