//! `target/demo/summary.json`: every figure that the demo shows, for programs.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

/// Every figure that the demo shows. Durations carry their unit in the name.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Summary {
    /// The format's version.
    pub(crate) version: u32,
    /// Everything that was tried worked, and the computation's result is right.
    pub(crate) ok: bool,
    pub(crate) nodes: usize,
    pub(crate) nodes_harvested: u32,
    pub(crate) harvested_after_ms: f64,
    pub(crate) calls_ok: u64,
    pub(crate) calls_failed: u64,
    pub(crate) calls_evicted_and_retried: u64,
    pub(crate) evictions: u64,
    pub(crate) hot_tcp_p50_ns: u64,
    pub(crate) hot_tcp_p99_ns: u64,
    pub(crate) hot_tcp_calls: u64,
    /// From the request for a lease to the first call's result, library uploaded and opened on the way.
    pub(crate) cold_start_ms: f64,
    /// The same with the library cached on the node.
    pub(crate) cold_start_cached_ms: f64,
    /// From the hook's message to the last process gone, each vacate.
    pub(crate) vacate_ms: Vec<f64>,
    /// What each job waited for the hook.
    pub(crate) hook_ms: Vec<f64>,
    pub(crate) batch_job_start_ms: BatchStart,
    pub(crate) computation: String,
    pub(crate) computation_result: u64,
    pub(crate) computation_expected: u64,
    pub(crate) harvested_core_seconds: f64,
    pub(crate) leased_core_seconds: f64,
    /// The kernel's CPU time of all leases.
    pub(crate) executed_core_seconds: f64,
}

/// Submission to the job's first instruction, in milliseconds, interleaved pairs.
#[derive(Debug, Default, Serialize)]
pub(crate) struct BatchStart {
    pub(crate) srun: Pairs,
    pub(crate) sbatch: Pairs,
}

/// The two sides of interleaved pairs; the n-th of one was measured right beside the n-th of the other.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Pairs {
    /// The node is harvested and its leased cores are busy.
    pub(crate) with_gleaner: Vec<f64>,
    /// Another Slurm of the same shape, with an empty Prolog and Epilog and no Gleaner on the machine's cores.
    pub(crate) without_gleaner: Vec<f64>,
}

impl Summary {
    /// Writes it, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let directory = path.parent().context("the summary has no directory")?;
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        let fresh = path.with_extension("json.new");
        fs::write(&fresh, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&fresh, path))
            .with_context(|| format!("write {}", path.display()))
    }
}

/// The middle value; 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}
