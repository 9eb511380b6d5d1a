//! ib_write_lat, ib_send_lat and ib_write_bw (Debian: `perftest`), the verbs' own tools, which others wrote; nothing where they are not
//! installed.

use anyhow::Result;

use super::two_ends::{BOUND, Place, two_ends};
use crate::stage::Cpus;

const ITERATIONS: usize = 500;
/// Bytes that one measurement moves at most.
const BYTES_MAX: usize = 128 << 20;
const BANDWIDTH_ITERATIONS_MAX: usize = 500;

/// A polled ping-pong of writes.
pub(super) fn polled(payload: usize, cpus: Cpus) -> Result<Option<u64>> {
    latency("ib_write_lat", &[], payload, cpus)
}

/// A polled ping-pong of sends: each takes a receive and completes at the other end, as a write with an immediate does.
pub(super) fn sent(payload: usize, cpus: Cpus) -> Result<Option<u64>> {
    latency("ib_send_lat", &[], payload, cpus)
}

/// A ping-pong of sends that both ends sleep for: a write that nobody is told of, the tool cannot sleep for.
pub(super) fn slept(payload: usize, cpus: Cpus) -> Result<Option<u64>> {
    latency("ib_send_lat", &["-e"], payload, cpus)
}

/// The tool tells half of a round trip.
fn latency(tool: &str, how: &[&str], payload: usize, cpus: Cpus) -> Result<Option<u64>> {
    let iterations = ITERATIONS.min(BYTES_MAX / payload).max(20);
    let line = measure(tool, how, payload, iterations, cpus)?;
    // bytes, iterations, t_min, t_max, t_typical (the median), ...
    let half = line.and_then(|numbers| numbers.get(4).copied());
    // In User-Mode Linux it has told 2^64 cycles of 64 KiB.
    let half = half.filter(|half| *half < BOUND.as_micros() as f64);
    Ok(half.map(|half| (2e3 * half).round() as u64))
}

/// Bytes a second of writes one way, with as many under way as the tool likes best.
pub fn bandwidth(payload: usize, cpus: Cpus) -> Result<Option<f64>> {
    let iterations = (BYTES_MAX / payload).clamp(20, BANDWIDTH_ITERATIONS_MAX);
    let line = measure("ib_write_bw", &[], payload, iterations, cpus)?;
    // bytes, iterations, peak, average in MiB a second, ...
    let average = line.and_then(|numbers| numbers.get(3).copied());
    Ok(average.map(|mib| mib * f64::from(1 << 20)))
}

/// The numbers of the tool's one line of results.
fn measure(
    tool: &str,
    how: &[&str],
    payload: usize,
    iterations: usize,
    cpus: Cpus,
) -> Result<Option<Vec<f64>>> {
    let arguments = |place: &Place| {
        let mut arguments = vec!["-F".into(), "-x".into(), place.gid.to_string()];
        arguments.extend(["-s".into(), payload.to_string(), "-n".into(), iterations.to_string()]);
        arguments.extend(how.iter().map(ToString::to_string));
        arguments
    };
    let report = two_ends(tool, &how.join(" "), arguments, cpus)?;
    Ok(report.and_then(|report| numbers(&report, payload)))
}

/// The line that begins with the payload's size, as numbers.
fn numbers(report: &str, payload: usize) -> Option<Vec<f64>> {
    let line = report.lines().rev().find(|line| {
        line.split_whitespace().next().is_some_and(|first| first == payload.to_string())
    })?;
    Some(line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_read() {
        let report = " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]\n \
                       64      1000          15.20          99.10        17.02              17.20\n";
        assert_eq!(numbers(report, 64).unwrap()[4], 17.02);
        assert_eq!(numbers(report, 65), None);
    }
}
