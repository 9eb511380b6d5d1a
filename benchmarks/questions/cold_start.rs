//! What does the first call cost, from asking for a lease to its result, and where does the time go?
//!
//! | phase | ends when |
//! |---|---|
//! | granted | the harvester has answered: the lease is durable (beside it: `fdatasync` alone, on the same file system) |
//! | attached | the node's executor has handed a worker over and the lane is open |
//! | opened | the library is there and the function is known |
//! | first result | the first call's reply is checked |
//!
//! Once with workers that were started in advance and the library on the node, once with an empty pool of workers, once with
//! a library that the node has never seen, and once for 32 workers of one lease. Those wait warm: on fewer CPUs than there are
//! workers, those that spin after their call would keep the others from theirs.

use std::{
    fs,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gleaner::{Client, Library, PoolEventKind, Request, Waiting};
use gleaner_benchmarks::{
    Arguments, Compared, Goal, Outcome, Sample, Stage,
    figure::Detailed,
    stage::{NODE, unpin},
};
use gleaner_testkit::{Service, poll_until, service::Programs, slurm::Cluster};

const ROUNDS: usize = 60;
const MANY_ROUNDS: usize = 20;
const MANY: u32 = 32;
/// Workers that are started in advance, where any are.
const POOL: u32 = 2;
/// The design's bounds, nanoseconds.
const ONE_NS: u64 = 5_000_000;
const MANY_NS: u64 = 50_000_000;
/// What a client does by default.
const ADAPTIVE: Waiting = Waiting::Adaptive(Duration::from_millis(100));
/// How long the pool of workers may take to fill again.
const REFILL_BOUND: Duration = Duration::from_secs(10);

/// One way of starting.
struct Case {
    name: &'static str,
    pool: u32,
    cores: u32,
    waiting: Waiting,
    rounds: usize,
    /// Every round has a library that no other had.
    new_library: bool,
    goal: Option<Goal>,
}

#[rustfmt::skip] // a table
const CASES: [Case; 4] = [
    Case { name: "pooled, cached", pool: POOL, cores: 1, waiting: ADAPTIVE, rounds: ROUNDS, new_library: false, goal: Some(Goal::P50(ONE_NS)) },
    Case { name: "empty pool", pool: 0, cores: 1, waiting: ADAPTIVE, rounds: ROUNDS, new_library: false, goal: None },
    Case { name: "new library", pool: POOL, cores: 1, waiting: ADAPTIVE, rounds: ROUNDS, new_library: true, goal: None },
    Case { name: "32 workers", pool: POOL, cores: MANY, waiting: Waiting::Warm, rounds: MANY_ROUNDS, new_library: false, goal: Some(Goal::P50(MANY_NS)) },
];

/// From the request to the end of each phase.
struct Phases {
    granted: Duration,
    attached: Duration,
    opened: Duration,
    result: Duration,
}

fn main() -> Result<()> {
    let arguments = Arguments::read();
    let asks = "What does the first call cost, and where does the time go?";
    let mut outcome = Outcome::begin("cold_start", asks, MANY as usize, &arguments);
    for case in &CASES {
        ask(case, &arguments, &mut outcome)?;
    }
    outcome.publish(&arguments)
}

fn ask(case: &Case, arguments: &Arguments, outcome: &mut Outcome) -> Result<()> {
    unpin()?;
    let stage = stage(case.pool)?;
    let client = stage.client()?;
    // Once beforehand: the library comes onto the node, the client's connection to the harvester is made.
    start(&client, &stage.library, case)?;
    if case.cores == 1 {
        stay_beside_worker(&stage, &client)?;
    }
    let mut phases: Vec<Phases> = Vec::new();
    let mut synced = Sample::new()?;
    for round in 0..arguments.pick(case.rounds, 2) {
        wait_refilled(&stage, case.pool)?;
        sync_alone(stage.service.cluster.dir(), &mut synced)?;
        let library = match case.new_library {
            true => variant(stage.service.programs(), round)?,
            false => stage.library.clone(),
        };
        phases.push(start(&client, &library, case)?);
    }
    report(case, &phases, synced, outcome)
}

fn report(case: &Case, phases: &[Phases], synced: Sample, outcome: &mut Outcome) -> Result<()> {
    let sample = |phase: fn(&Phases) -> Duration| -> Result<Sample> {
        let mut sample = Sample::new()?;
        phases.iter().for_each(|phases| sample.record(phase(phases)));
        Ok(sample)
    };
    let name = |phase: &str| format!("{}: {phase}", case.name);
    let all = Detailed::alone(name("request to first result"), &sample(|p| p.result)?);
    outcome.push(all.goal(case.goal));
    let granted = Compared::once(sample(|p| p.granted)?, synced);
    outcome.push(Detailed::beside(name("granted"), "fdatasync of 4 KiB", &granted));
    let attached = sample(|p| p.attached - p.granted)?;
    let opened = sample(|p| p.opened - p.attached)?;
    let result = sample(|p| p.result - p.opened)?;
    outcome.push(Detailed::alone(name("attached"), &attached));
    outcome.push(Detailed::alone(name("opened"), &opened));
    outcome.push(Detailed::alone(name("first result"), &result));
    Ok(())
}

/// A caller that spins on the worker's own CPU would wait for the kernel to part them, a tick later. One core's lease gets the
/// same core each time.
fn stay_beside_worker(stage: &Stage, client: &Client) -> Result<()> {
    let pool = client.acquire(Request::new())?;
    stage.pin_beside_worker()?;
    Ok(pool.release()?)
}

/// One node with as many CPUs as there are to be workers, more than the machine has if need be.
fn stage(pool: u32) -> Result<Stage> {
    let hook = Programs::find()?.path("gleaner-hook");
    let cluster = Cluster::builder().nodes(1).cpus(MANY).hook(hook).start()?;
    let change = |config: &mut gleaner_config::Config| {
        config.executor.cores = Some(MANY);
        config.executor.pool = pool;
    };
    Stage::on(Service::on(cluster).configure(change).start()?, 1)
}

/// A lease, a function on it, and one checked call on each of its cores.
fn start(client: &Client, library: &Library, case: &Case) -> Result<Phases> {
    let inputs: Vec<_> = (0..u64::from(case.cores)).map(u64::to_le_bytes).collect();
    let began = Instant::now();
    let pool = client.acquire(Request::new().cores(case.cores).waiting(case.waiting))?;
    let attached = began.elapsed();
    let echo = pool.function(library, "echo")?;
    let opened = began.elapsed();
    let replies = echo.map(&inputs);
    let result = began.elapsed();
    for (input, reply) in inputs.iter().zip(replies) {
        ensure!(reply? == input, "the echo is not what was sent");
    }
    let granted = pool.events().into_iter().find_map(|event| match event.kind {
        PoolEventKind::Leased { granted, .. } => Some(granted),
        _ => None,
    });
    pool.release()?;
    let granted = granted.context("the client noted no lease")?;
    Ok(Phases { granted, attached, opened, result })
}

/// The library of test functions with other bytes behind it: the loader takes no notice, and no node has seen it.
fn variant(programs: &Programs, round: usize) -> Result<Library> {
    let mut bytes = fs::read(programs.test_functions()).context("read the library")?;
    bytes.extend(round.to_le_bytes());
    Ok(Library::from_bytes(bytes)?)
}

/// The last lease's worker has gone, and as many as configured wait for the next: nothing of the last round still runs.
fn wait_refilled(stage: &Stage, pool: u32) -> Result<()> {
    let ready = || {
        let workers = stage.service.workers(NODE);
        let waits = |&(pid, lease): &(i32, u64)| lease == 0 && is_ready(pid).unwrap_or(false);
        workers.len() == pool as usize && workers.iter().all(waits)
    };
    ensure!(poll_until(REFILL_BOUND, ready), "the pool of workers did not fill again");
    Ok(())
}

/// A worker that waits for a lease sleeps; one that starts runs.
fn is_ready(worker: i32) -> Result<bool> {
    Ok(fs::read_to_string(format!("/proc/{worker}/status"))?.contains("State:\tS"))
}

/// What making a write durable costs by itself where the harvester keeps its leases.
fn sync_alone(directory: &Path, sample: &mut Sample) -> Result<()> {
    let path = directory.join("baseline");
    let mut file = fs::File::options().create(true).append(true).open(path)?;
    sample.time(|| {
        file.write_all(&[7; 4096])?;
        Ok(file.sync_data()?)
    })
}
