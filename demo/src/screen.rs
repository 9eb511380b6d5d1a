//! What the demo prints: headings, lines, a latency histogram, a timeline.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;

/// Begins a part of the demo.
pub(crate) fn heading(text: &str) {
    println!("\n== {text}");
}

/// One indented line.
pub(crate) fn line(text: &str) {
    println!("   {text}");
}

/// Latencies as bars, one a range that doubles.
pub(crate) fn histogram(latencies: &Histogram<u64>) {
    const WIDTH: u64 = 40;
    line(&format!(
        "{} hot calls over TCP: p50 {:.1} µs, p90 {:.1}, p99 {:.1}, p99.9 {:.1}, max {:.0}",
        latencies.len(),
        micros(latencies.value_at_quantile(0.5)),
        micros(latencies.value_at_quantile(0.9)),
        micros(latencies.value_at_quantile(0.99)),
        micros(latencies.value_at_quantile(0.999)),
        micros(latencies.max()),
    ));
    let bins: Vec<(u64, u64)> = latencies
        .iter_log(1_000, 2.0)
        .map(|bin| (bin.value_iterated_to(), bin.count_since_last_iteration()))
        .filter(|&(_, count)| count > 0)
        .collect();
    let most = bins.iter().map(|&(_, count)| count).max().unwrap_or(1);
    for (upper, count) in bins {
        let bar = "#".repeat((count * WIDTH).div_ceil(most) as usize);
        line(&format!("  up to {:>8.0} µs {count:>7} {bar}", micros(upper + 1)));
    }
}

fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// Things that happened, in the order of their time.
#[derive(Default)]
pub(crate) struct Timeline {
    entries: Vec<(f64, String)>,
}

impl Timeline {
    /// Notes what happened at a wall-clock time.
    pub(crate) fn note(&mut self, at: SystemTime, what: String) {
        self.note_unix_ms(unix_ms(at), what);
    }

    /// The same, for a time in milliseconds since 1970.
    pub(crate) fn note_unix_ms(&mut self, unix_ms: f64, what: String) {
        self.entries.push((unix_ms, what));
    }

    /// Prints it, in milliseconds after the first entry.
    pub(crate) fn print(mut self) {
        self.entries.sort_by(|a, b| a.0.total_cmp(&b.0));
        let first = self.entries.first().map_or(0.0, |entry| entry.0);
        for (at, what) in &self.entries {
            line(&format!("{:>9.1} ms  {what}", at - first));
        }
    }
}

/// Milliseconds since 1970, with fractions.
pub(crate) fn unix_ms(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64() * 1e3
}
