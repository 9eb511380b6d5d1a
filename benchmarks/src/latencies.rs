//! Latencies in nanoseconds, by their percentiles.

use std::time::Duration;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;

/// Longest latency that is told apart.
const LATENCY_MAX: Duration = Duration::from_secs(100);
/// Significant digits that are kept.
const DIGITS: u8 = 3;
/// The percentiles that a result lists, for plots.
const LISTED: [f64; 14] =
    [0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0];

/// A set of latencies.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub fn new() -> Result<Self> {
        let histogram = Histogram::new_with_max(LATENCY_MAX.as_nanos() as u64, DIGITS);
        histogram.map(Self).context("make a histogram")
    }

    /// Adds one.
    pub fn record(&mut self, took: Duration) {
        self.0.saturating_record(took.as_nanos() as u64);
    }

    /// Adds one that stands for so many.
    pub fn record_for(&mut self, took: Duration, many: u64) {
        self.0.saturating_record_n(took.as_nanos() as u64, many);
    }

    /// Adds all of another set.
    pub fn add(&mut self, other: &Self) -> Result<()> {
        self.0.add(&other.0).context("add up histograms")
    }

    /// The latency that this share of all does not exceed; 0 if there are none.
    pub fn quantile(&self, share: f64) -> u64 {
        self.0.value_at_quantile(share)
    }

    /// The middle.
    pub fn p50(&self) -> u64 {
        self.quantile(0.5)
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Share and latency, from the fastest to the slowest.
    pub fn percentiles(&self) -> Vec<(f64, u64)> {
        LISTED.iter().map(|&share| (share, self.quantile(share))).collect()
    }
}
