//! A real computation over all harvested cores, with exclusive batch jobs in its middle.

use std::{
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, anyhow, ensure};
use gleaner::{Client, Library, Pool, PoolEventKind, Request, Waiting};
use gleaner_testkit::{poll_until, slurm::Cluster};

use crate::{
    jobs::{self, JobTimes},
    screen::{self, Timeline},
    summary::Summary,
};

/// Primes below this are counted.
const LIMIT: u64 = 60_000_000;
/// Numbers in one call.
const CHUNK: u64 = 20_000;
/// How long the computation runs before the first batch job takes a node.
const HEAD_START: Duration = Duration::from_secs(2);

/// How long leasing all nodes may take.
const LEASE_BOUND: Duration = Duration::from_secs(5);

/// Counts primes on every harvested core while `srun` and `sbatch` take nodes back.
pub(crate) fn run(
    cluster: &Cluster,
    client: &Client,
    library: &Library,
    summary: &mut Summary,
    timeline: &mut Timeline,
) -> Result<()> {
    screen::heading("A real computation on all harvested cores, batch jobs in its middle");
    let pool = lease_all(client, summary.nodes_harvested)?;
    let leases = pool.leases();
    screen::line(&format!(
        "primes below {LIMIT}: {} calls over {} leases of 2 cores",
        LIMIT.div_ceil(CHUNK),
        leases.len()
    ));
    let started = Instant::now();
    timeline.note(SystemTime::now(), "the computation starts".into());
    let (counted, jobs) = thread::scope(|scope| {
        let jobs = scope.spawn(|| take_nodes_back(cluster));
        (count_primes(&pool, library), jobs.join())
    });
    timeline
        .note(SystemTime::now(), format!("the computation ends: {} calls", LIMIT.div_ceil(CHUNK)));
    let jobs = jobs.map_err(|_| anyhow!("the batch jobs' thread panicked"))??;
    summary.computation = format!("primes below {LIMIT}");
    summary.computation_result = counted?;
    summary.computation_expected = sieve(LIMIT);
    note_jobs(&jobs, timeline);
    note_pool(&pool, summary, timeline);
    screen::line(&format!(
        "result {} in {:.1} s, expected {}",
        summary.computation_result,
        started.elapsed().as_secs_f64(),
        summary.computation_expected
    ));
    pool.release()?;
    ensure!(summary.computation_result == summary.computation_expected, "the result is wrong");
    Ok(())
}

/// Every core of every node. The lease that was just given back is free once its executor has said so.
fn lease_all(client: &Client, nodes: u32) -> Result<Pool> {
    let request = Request::new().nodes(nodes..=nodes).cores(2).waiting(Waiting::Warm);
    let mut pool = client.acquire(request.clone());
    poll_until(LEASE_BOUND, || {
        if pool.is_err() {
            pool = client.acquire(request.clone());
        }
        pool.is_ok()
    });
    Ok(pool?)
}

fn count_primes(pool: &Pool, library: &Library) -> Result<u64> {
    let function = pool.function(library, "count_primes")?.idempotent(true);
    let chunks = (0..LIMIT).step_by(CHUNK as usize).map(|from| {
        let mut input = [0; 16];
        input[..8].copy_from_slice(&from.to_le_bytes());
        input[8..].copy_from_slice(&(from + CHUNK).min(LIMIT).to_le_bytes());
        input
    });
    let mut total = 0;
    for reply in function.map(chunks) {
        let count: [u8; 8] = reply?.try_into().map_err(|_| anyhow!("a reply of another length"))?;
        total += u64::from_le_bytes(count);
    }
    Ok(total)
}

fn take_nodes_back(cluster: &Cluster) -> Result<Vec<(&'static str, JobTimes)>> {
    thread::sleep(HEAD_START); // the demo's script, not a synchronisation
    let srun = jobs::srun(cluster, None, 1.0).context("srun")?;
    // Slurm would give it the node that the first job has just left, and that the computation does not lease yet.
    let leased = cluster.nodes().last().map(String::as_str);
    let sbatch = jobs::sbatch(cluster, leased, 1.0).context("sbatch")?;
    Ok(vec![("srun --exclusive", srun), ("sbatch --exclusive", sbatch)])
}

fn note_jobs(jobs: &[(&str, JobTimes)], timeline: &mut Timeline) {
    for (what, times) in jobs {
        timeline.note_unix_ms(times.submitted, format!("{what} is submitted"));
        timeline
            .note_unix_ms(times.began, format!("{what} begins, {:.0} ms after", times.start_ms()));
    }
}

/// The pool's own story; takes its statistics into the summary.
fn note_pool(pool: &Pool, summary: &mut Summary, timeline: &mut Timeline) {
    for event in pool.events() {
        let what = match event.kind {
            PoolEventKind::Leased { took, .. } => {
                format!("leased after {:.1} ms", took.as_secs_f64() * 1e3)
            }
            PoolEventKind::Evicted { reason, moved, lost, .. } => {
                format!(
                    "the client hears {reason}: {} calls move, {} lost",
                    moved.len(),
                    lost.len()
                )
            }
            PoolEventKind::Released => "released".into(),
            PoolEventKind::FellBack { why } => format!("calls run in this process: {why}"),
        };
        timeline.note(event.wall, format!("{}: {what}", event.node));
    }
    let stats = pool.stats();
    summary.calls_ok += stats.ok;
    summary.calls_failed += stats.failed + stats.evicted + stats.unknown;
    summary.calls_evicted_and_retried += stats.reruns;
    summary.evictions += stats.evictions;
}

/// The same count by other means: a plain sieve, in this process.
fn sieve(limit: u64) -> u64 {
    let mut composite = vec![false; limit as usize];
    let mut count = 0;
    for number in 2..limit as usize {
        if composite[number] {
            continue;
        }
        count += 1;
        for multiple in (number * number..limit as usize).step_by(number) {
            composite[multiple] = true;
        }
    }
    count
}
