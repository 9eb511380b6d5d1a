//! What a figure should reach, and whether it does.

use crate::figure::Figure;

/// A goal of the design.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// At most so many times the baseline's median.
    Ratio(f64),
    /// At most so many times the baseline's median, and so many times its 99th percentile.
    Ratios(f64, f64),
    /// At most so many nanoseconds more than the baseline's median, and so many times its 99.9th percentile.
    Added(u64, f64),
    /// At most so many nanoseconds more than the baseline at the 99th percentile.
    AddedP99(u64),
    /// A median of at most so many nanoseconds.
    P50(u64),
    /// A median and a 99th percentile of at most so many nanoseconds.
    Percentiles(u64, u64),
    /// At least so many calls a second.
    Throughput(f64),
}

impl Goal {
    /// For people.
    pub fn text(self) -> String {
        match self {
            Self::Ratio(most) => format!("p50 ≤ {most} × baseline"),
            Self::Ratios(p50, p99) => format!("p50 ≤ {p50} ×, p99 ≤ {p99} × baseline"),
            Self::Added(ns, tail) => format!("p50 ≤ baseline + {ns} ns, p99.9 ≤ {tail} ×"),
            Self::AddedP99(ns) => format!("p99 ≤ baseline + {} ms", millis(ns)),
            Self::P50(ns) => format!("p50 ≤ {} ms", millis(ns)),
            Self::Percentiles(p50, p99) => {
                format!("p50 ≤ {} ms, p99 ≤ {} ms", millis(p50), millis(p99))
            }
            Self::Throughput(least) => format!("≥ {} M/s", least / 1e6),
        }
    }

    /// Whether the figure reaches it; `None` if it needs a baseline and there is none, or none that counts.
    pub fn is_met(self, figure: &Figure) -> Option<bool> {
        let ratio = figure.ratio.filter(|_| figure.void.is_none());
        let p50 = figure.baseline_p50.filter(|_| figure.void.is_none());
        let p99 = figure.baseline_p99.filter(|_| figure.void.is_none());
        let p999 = figure.baseline_p999.filter(|_| figure.void.is_none());
        Some(match self {
            Self::Ratio(most) => ratio? <= most,
            Self::Ratios(middle, tail) => {
                ratio? <= middle && figure.p99 as f64 <= tail * p99? as f64
            }
            Self::Added(ns, tail) => {
                figure.p50 <= p50? + ns && figure.p999 as f64 <= tail * p999? as f64
            }
            Self::AddedP99(ns) => figure.p99 <= p99? + ns,
            Self::P50(ns) => figure.p50 <= ns,
            Self::Percentiles(middle, tail) => figure.p50 <= middle && figure.p99 <= tail,
            Self::Throughput(least) => figure.throughput >= least,
        })
    }
}

fn millis(ns: u64) -> f64 {
    ns as f64 / 1e6
}
