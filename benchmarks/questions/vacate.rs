//! How long does a batch job wait for a node that Gleaner uses to the full?
//!
//! 32 workers spin on one node and hold 4 GiB among them, while as many spin on the other node of the same machine. The
//! hook's program is started as slurmd would start it; the clock runs from there to the end of the last of the node's
//! workers, by the kernel's word (pidfd), and to the hook's own return. The hook's start is part of both.
//!
//! Baseline: as many plain processes that hold as much and spin beside the same others, killed at once by their plain parent;
//! from the first signal to the end of the last. The same with nothing held is the floor.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use gleaner::{Client, Function, Pool, Request, Ticket};
use gleaner_benchmarks::{
    Arguments, Figure, Goal, Outcome, Sample, Stage, alternate,
    figure::Detailed,
    hook::{Hook, When},
    pidfd::{open, wait_ended},
    raw::crowd::{self, Crowd},
    stage::NODE,
};
use gleaner_testkit::{Service, poll_until, service::Programs, slurm::Cluster};

const WORKERS: u32 = 32;
const ROUNDS: usize = 30;
const BASELINE: &str = "plain processes, killed";
/// What they hold together.
const HELD_BYTES: u64 = 4 << 30;
/// What a lease needs beyond what its function holds.
const SPARE_BYTES: u64 = 64 << 20;
const OTHER: &str = "n2";
/// The hook's bound, and how long filling the node and getting it back may take.
const HOOK_BOUND_MS: u64 = 1_000;
const FILL_BOUND: Duration = Duration::from_secs(60);
const GRANT_BOUND: Duration = Duration::from_secs(30);
/// The design's bounds.
const GOAL: Goal = Goal::Percentiles(10_000_000, 50_000_000);

fn main() -> Result<()> {
    crowd::join()?;
    let arguments = Arguments::read();
    let asks = "How long does a batch job wait for a node that Gleaner uses to the full?";
    let workers = arguments.pick(WORKERS, 2);
    let spinning = 2 * workers as usize;
    let mut outcome = Outcome::begin("vacate", asks, spinning, &arguments);
    let cpus = outcome.machine.cores;
    let stage = stage()?;
    let client = stage.client()?;
    let others = client.acquire(on(OTHER).cores(workers))?;
    let _others_spin = spin(&others.function(&stage.library, "spin")?, workers)?;
    let held = arguments.pick(HELD_BYTES, 64 << 20) / u64::from(workers);
    let mut vacates = Vacates::new(&stage, &client, workers, held)?;
    let mut floor = Sample::new()?;
    let compared = alternate(
        arguments.pick(ROUNDS, 2),
        |gone| vacates.round(gone),
        |ended| {
            ended.record(Crowd::gather(workers, cpus, held)?.end()?);
            floor.record(Crowd::gather(workers, cpus, 0)?.end()?);
            Ok(())
        },
    )?;
    ensure!(
        stage.service.leased_workers(OTHER).len() == 1,
        "the other node's workers did not go on spinning"
    );
    let Vacates { returned, huge, .. } = vacates;
    let figure = Detailed::beside("vacate: last process gone", BASELINE, &compared);
    let note = format!(
        "{workers} workers held {} MiB together, {} MiB of it in huge pages; {workers} more spun on the other node; {}",
        (held * u64::from(workers)) >> 20,
        huge >> 20,
        steps(&stage.service)?
    );
    outcome.push(reachable(figure.goal(Some(GOAL))).note(note));
    outcome.push(Detailed::alone("vacate: hook returns", &returned).goal(Some(GOAL)));
    outcome.push(Detailed::alone("plain processes that hold nothing: last one gone", &floor));
    outcome.publish(&arguments)
}

/// Where the time goes, by the executor's own records: medians from the message's arrival.
fn steps(service: &Service) -> Result<String> {
    let report = service.ask(&["report"])?;
    let vacates = report["vacates"].as_array().context("a report lists vacates")?;
    let median = |step: &str| {
        let ofs = vacates.iter().filter(|vacate| vacate["trigger"] == "prolog");
        let mut taken: Vec<u64> = ofs.filter_map(|vacate| vacate[step].as_u64()).collect();
        taken.sort_unstable();
        taken.get(taken.len() / 2).copied().unwrap_or(0)
    };
    let [fenced, killed, gone] = ["fence_us", "kill_us", "gone_us"].map(median);
    Ok(format!(
        "by the executor's records fenced after {fenced}, killed after {killed}, gone after {gone} us"
    ))
}

/// "Cannot be reached here" is said only where the baseline misses the goal too.
fn reachable(figure: Detailed) -> Detailed {
    let Goal::Percentiles(p50, p99) = GOAL else { return figure };
    let Figure { baseline_p50, baseline_p99, met, .. } = figure.figure;
    let misses = baseline_p50 > Some(p50) || baseline_p99 > Some(p99);
    if met == Some(false) && misses {
        return figure.note("cannot be reached here: the baseline misses the goal too");
    }
    figure
}

/// Gleaner's rounds.
struct Vacates<'s> {
    stage: &'s Stage,
    client: &'s Client,
    workers: u32,
    held: u64,
    /// The hook's own ends.
    returned: Sample,
    /// What the workers held in huge pages when they were last vacated.
    huge: u64,
    job: u32,
}

impl<'s> Vacates<'s> {
    fn new(stage: &'s Stage, client: &'s Client, workers: u32, held: u64) -> Result<Self> {
        Ok(Self { stage, client, workers, held, returned: Sample::new()?, huge: 0, job: 0 })
    }

    /// Fills the node, vacates it, and gets it back.
    fn round(&mut self, gone: &mut Sample) -> Result<()> {
        let stage = self.stage;
        self.job += 1;
        let leases = lease(self.client, self.workers, self.held)?;
        let functions = leases
            .iter()
            .map(|pool| pool.function(&stage.library, "hold_and_spin"))
            .collect::<Result<Vec<_>, _>>()?;
        let calls = functions
            .iter()
            .map(|function| function.submit(&self.held.to_le_bytes()))
            .collect::<Result<Vec<_>, _>>()?;
        let pids = wait_filled(stage, self.workers, self.held)?;
        self.huge = pids.iter().map(|&pid| huge_bytes(pid)).sum();
        self.vacate(&pids, gone)?;
        // The calls ended as EVICTED; that is their verdict, and the pools are of no more use.
        drop(calls);
        drop(functions);
        drop(leases);
        recover(stage, self.job)
    }

    /// The prolog's hook, timed to the end of the last worker and to its own.
    fn vacate(&mut self, pids: &[i32], gone: &mut Sample) -> Result<()> {
        let ends: Vec<OwnedFd> = pids.iter().map(|&pid| open(pid)).collect::<Result<_>>()?;
        let hook = Hook::new(&self.stage.service, NODE).bound_ms(HOOK_BOUND_MS);
        let began = Instant::now();
        let running = hook.start(When::Prolog, self.job)?;
        // Both ends are awaited, whichever comes first: a thread waits for the hook.
        let hook_ended = std::thread::spawn(move || running.finish().map(|()| began.elapsed()));
        wait_ended(ends.iter().map(AsFd::as_fd))?;
        gone.record(began.elapsed());
        let hook_ended =
            hook_ended.join().map_err(|_| anyhow::anyhow!("waiting for the hook"))??;
        self.returned.record(hook_ended);
        ensure!(self.stage.service.leased_workers(NODE).is_empty(), "a worker outlived the hook");
        eprintln!(
            "  round {}: gone {:.1?}, hook {hook_ended:.1?}",
            self.job,
            Duration::from_nanos(gone.latencies.quantile(1.0))
        );
        Ok(())
    }
}

/// Two nodes, each a partition of its own, so that a lease says where it goes.
fn stage() -> Result<Stage> {
    let hook = Programs::find()?.path("gleaner-hook");
    let cluster = Cluster::builder().nodes(2).cpus(WORKERS).memory_mb(16_000).hook(hook);
    let cluster = cluster.partition(&partition(NODE)).partition(&partition(OTHER)).start()?;
    let change = |config: &mut gleaner_config::Config| {
        config.policy.partitions = vec![NODE.into(), OTHER.into()];
        config.executor.cores = Some(WORKERS);
        config.executor.memory = Some(gleaner_config::ByteSize(12 << 30));
        config.executor.pool = 0;
    };
    Stage::on(Service::on(cluster).configure(change).start()?, 2)
}

fn partition(node: &str) -> String {
    format!("{node} Nodes={node} Default={} State=UP", if node == NODE { "YES" } else { "NO" })
}

fn on(node: &str) -> Request {
    Request::new().partition(node).ttl(Duration::from_secs(600))
}

/// As many leases of one core: a worker process each.
fn lease(client: &Client, workers: u32, held: u64) -> Result<Vec<Pool>> {
    let request = on(NODE).memory(held + SPARE_BYTES).patience(Duration::ZERO);
    (0..workers).map(|_| acquire(client, &request)).collect()
}

/// The harvester may have the last round's grant before it hears that it is over: asks until the new one is there.
fn acquire(client: &Client, request: &Request) -> Result<Pool> {
    let until = Instant::now() + GRANT_BOUND;
    loop {
        match client.acquire(request.clone()) {
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
            answer => return Ok(answer?),
        }
    }
}

fn spin<'p>(function: &Function<'p>, workers: u32) -> Result<Vec<Ticket<'p>>> {
    let hours = Duration::from_secs(7_200).as_nanos() as u64;
    (0..workers).map(|_| Ok(function.submit(&hours.to_le_bytes())?)).collect()
}

/// Waits until every worker holds what it should; returns them.
fn wait_filled(stage: &Stage, workers: u32, held: u64) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    let full = || {
        pids = stage.service.leased_workers(NODE);
        pids.len() == workers as usize && pids.iter().all(|&pid| resident_bytes(pid) >= held)
    };
    ensure!(poll_until(FILL_BOUND, full), "the workers did not take their memory in time");
    Ok(pids)
}

/// The job ends; the node is harvested again.
fn recover(stage: &Stage, job: u32) -> Result<()> {
    Hook::new(&stage.service, NODE).bound_ms(HOOK_BOUND_MS).start(When::Epilog, job)?.finish()?;
    stage.service.wait_granted(NODE, true, GRANT_BOUND);
    Ok(())
}

fn resident_bytes(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    kib(&status, "VmRSS:") << 10
}

fn huge_bytes(pid: i32) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    kib(&maps, "AnonHugePages:") << 10
}

fn kib(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}
