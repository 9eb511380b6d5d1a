//! What the benchmarks share: pinning, latencies, and the file that the figures go to.
//!
//! Each benchmark is one question in `questions/`, with its raw baseline in the same run: same cores, same payload, every
//! byte touched on both sides. Figures are written, never asserted.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::Serialize;

/// Longest latency that is told apart.
const LATENCY_MAX: Duration = Duration::from_secs(10);

/// One figure beside its baseline.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The unit of all times.
    pub unit: &'static str,
    /// The middle.
    pub p50: u64,
    /// One of a hundred is slower.
    pub p99: u64,
    /// One of a thousand is slower.
    pub p999: u64,
    /// How many were measured.
    pub n: u64,
    /// What it is held against.
    pub baseline: &'static str,
    /// The baseline's middle, from the same run.
    pub baseline_p50: u64,
    /// `p50 / baseline_p50`.
    pub ratio: f64,
}

/// An empty set of latencies.
pub fn latencies() -> Result<Histogram<u64>> {
    Histogram::new_with_max(LATENCY_MAX.as_nanos() as u64, 3).context("make a histogram")
}

/// Adds one latency.
pub fn record(latencies: &mut Histogram<u64>, took: Duration) {
    latencies.saturating_record(took.as_nanos() as u64);
}

impl Figure {
    /// Compares latencies in nanoseconds.
    pub fn new(
        name: String,
        measured: &Histogram<u64>,
        baseline: &'static str,
        raw: &Histogram<u64>,
    ) -> Self {
        let (p50, baseline_p50) = (measured.value_at_quantile(0.5), raw.value_at_quantile(0.5));
        Self {
            name,
            unit: "ns",
            p50,
            p99: measured.value_at_quantile(0.99),
            p999: measured.value_at_quantile(0.999),
            n: measured.len(),
            baseline,
            baseline_p50,
            ratio: p50 as f64 / baseline_p50 as f64,
        }
    }
}

/// Keeps this thread on one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).context("the CPU's number is too high")?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("pin to CPU {cpu}"))
}

/// Prints the figures and writes them to `path`.
pub fn publish(figures: &[Figure], path: &Path) -> Result<()> {
    for figure in figures {
        println!(
            "{:<28} p50 {:>7} ns  p99 {:>8}  p99.9 {:>8}  {} p50 {:>7} ns  ratio {:.3}  n {}",
            figure.name,
            figure.p50,
            figure.p99,
            figure.p999,
            figure.baseline,
            figure.baseline_p50,
            figure.ratio,
            figure.n
        );
    }
    let directory = path.parent().context("the path has no directory")?;
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    fs::write(path, serde_json::to_vec_pretty(figures)?)
        .with_context(|| format!("write {}", path.display()))
}
