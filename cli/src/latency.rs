//! Latencies of many calls: a histogram that allocates once, its percentiles, and a picture of it.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::figures::nanoseconds;

/// Longest latency that is told apart: ten minutes.
const NS_MAX: u64 = 600_000_000_000;

/// Digits kept of each latency.
const DIGITS: u8 = 3;

/// Widest bar of the picture, in characters.
const BAR_MAX: u64 = 50;

/// Latencies seen so far.
pub(crate) struct Latencies {
    histogram: Histogram<u64>,
}

/// The figures of a run; `--json` prints them as they are.
#[derive(Debug, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) min_ns: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p90_ns: u64,
    pub(crate) p99_ns: u64,
    pub(crate) p99_9_ns: u64,
    pub(crate) max_ns: u64,
    pub(crate) mean_ns: f64,
}

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> Self {
        let histogram = Histogram::new_with_bounds(1, NS_MAX, DIGITS);
        Self { histogram: histogram.expect("the bounds are constants that hdrhistogram takes") }
    }

    /// One more.
    pub(crate) fn record(&mut self, ns: u64) {
        self.histogram.saturating_record(ns);
    }

    /// The figures.
    pub(crate) fn percentiles(&self) -> Percentiles {
        let at = |quantile| self.histogram.value_at_quantile(quantile);
        Percentiles {
            min_ns: self.histogram.min(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p99_9_ns: at(0.999),
            max_ns: self.histogram.max(),
            mean_ns: self.histogram.mean(),
        }
    }

    /// One bar for each octave that has calls.
    pub(crate) fn picture(&self) -> String {
        let octaves: Vec<(u64, u64)> = self
            .histogram
            .iter_log(1, 2.0)
            .map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
            .skip_while(|(_, count)| *count == 0)
            .collect();
        let most = octaves.iter().map(|(_, count)| *count).max().unwrap_or(1).max(1);
        let bar = |(below, count): &(u64, u64)| {
            let width = (count * BAR_MAX).div_ceil(most);
            format!(
                "{:>11} {:<51}{count}",
                format!("≤ {}", nanoseconds(*below)),
                "█".repeat(width as usize)
            )
        };
        octaves.iter().map(bar).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::new();
        for ns in 1..=1000 {
            latencies.record(ns * 1000);
        }
        latencies.record(u64::MAX);
        let figures = latencies.percentiles();
        let close = |ns: u64, expected: u64| ns.abs_diff(expected) * 500 < expected;
        assert!(close(figures.p50_ns, 501_000), "{figures:?}");
        assert!(close(figures.p99_ns, 991_000), "{figures:?}");
        assert!(close(figures.max_ns, NS_MAX), "{figures:?}");
        assert!(latencies.picture().lines().count() > 8);
    }
}
