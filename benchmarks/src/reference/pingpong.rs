//! ibv_rc_pingpong (Debian: `ibverbs-utils`), the verbs' own example of sends to and fro. It tells the mean of a run, so that the median
//! of many short runs is taken.

use anyhow::Result;

use super::two_ends::{Place, two_ends};
use crate::stage::Cpus;

const RUNS: usize = 3;
const ITERATIONS: usize = 200;
/// Bytes that one run moves one way at most.
const BYTES_MAX: usize = 16 << 20;

/// One where both ends sleep for each message.
pub(super) fn slept(payload: usize, cpus: Cpus) -> Result<Option<u64>> {
    let iterations = ITERATIONS.min(BYTES_MAX / payload).max(4);
    let arguments = |place: &Place| {
        let words = ["-e", "-m", "4096", "-g", &place.gid.to_string()].map(String::from);
        let mut arguments = words.to_vec();
        arguments.extend(["-i".into(), place.port.to_string()]);
        arguments.extend(["-s".into(), payload.to_string(), "-n".into(), iterations.to_string()]);
        arguments
    };
    let mut trips = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let report = two_ends("ibv_rc_pingpong", "-e", arguments, cpus)?;
        let Some(trip) = report.as_deref().and_then(round_trip) else { return Ok(None) };
        trips.push(trip);
    }
    trips.sort_by(f64::total_cmp);
    Ok(Some((1e3 * trips[RUNS / 2]).round() as u64))
}

/// Microseconds of its mean round trip.
fn round_trip(report: &str) -> Option<f64> {
    let line = report.lines().find_map(|line| line.strip_suffix(" usec/iter"))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_report() {
        let report = "  remote address: LID 0x0000, QPN 0x000011, PSN 0xb0e75b, GID ::ffff:127.0.0.1\n\
            1638400 bytes in 0.02 seconds = 624.58 Mbit/sec\n200 iters in 0.02 seconds = 104.93 usec/iter\n";
        assert_eq!(round_trip(report), Some(104.93));
        assert_eq!(round_trip("Failed status transport retry counter exceeded\n"), None);
    }
}
