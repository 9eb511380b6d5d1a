//! mbw (Debian: `mbw`), a tool for memory bandwidth that others wrote; nothing where it is not installed.

use std::{process::Command, time::Duration};

use anyhow::Result;
use gleaner_testkit::process::run_bounded;

use crate::rounds::median;

const MIB: usize = 1 << 20;
/// Copies that it makes.
const COPIES: &str = "20";
const BOUND: Duration = Duration::from_secs(60);

/// Copies of as many bytes, by `memcpy`.
pub(super) fn measure(bytes: usize) -> Result<Option<u64>> {
    let mut command = Command::new("mbw");
    command.args(["-q", "-a", "-t0", "-n", COPIES, &(bytes / MIB).to_string()]);
    let Ok(output) = run_bounded(command, BOUND) else {
        return Ok(None);
    };
    Ok(elapsed(&String::from_utf8_lossy(&output.stdout)))
}

/// The median of the runs' times, in nanoseconds. The rate tells it better than the time that is printed beside it, which
/// has five decimals.
fn elapsed(report: &str) -> Option<u64> {
    let after = |line: &str, name: &str| {
        let (_, after) = line.split_once(name)?;
        after.split_whitespace().next()?.parse::<f64>().ok()
    };
    let seconds = |line: &str| Some(after(line, "MiB:")? / after(line, "Copy:")?);
    let mut all: Vec<f64> = report.lines().filter_map(seconds).collect();
    (!all.is_empty()).then(|| (median(&mut all) * 1e9) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_read() {
        let line =
            |rate| format!("0\tMethod: MEMCPY\tElapsed: 0.00\tMiB: 2.00000\tCopy: {rate} MiB/s\n");
        let report: String = ["8000.000", "10000.000", "1.000"].map(line).concat();
        assert_eq!(elapsed(&report), Some(250_000));
        assert_eq!(elapsed(""), None);
    }
}
