//! ib_write_lat, ib_send_lat and ib_write_bw (Debian: `perftest`), the verbs' own tools, which others wrote; nothing where they are not
//! installed.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use gleaner_fabric::rdma::Device;
use gleaner_testkit::{poll_until, process::run_bounded};

use super::Reference;
use crate::stage::Cpus;

/// How long a tool may take to listen, and to measure.
const LISTEN_BOUND: Duration = Duration::from_secs(10);
const BOUND: Duration = Duration::from_secs(60);
const ITERATIONS: usize = 1_000;
/// Bytes that one measurement moves at most.
const BYTES_MAX: usize = 128 << 20;
const BANDWIDTH_ITERATIONS_MAX: usize = 500;
/// Tools that did not end, each with how it was asked: not asked again.
static HUNG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A polled ping-pong of writes.
pub(super) fn polled(payload: usize, cpus: Cpus) -> Result<Option<Reference>> {
    latency("ib_write_lat", &[], payload, cpus)
}

/// A polled ping-pong of sends: each takes a receive and completes at the other end, as a write with an immediate does.
pub(super) fn sent(payload: usize, cpus: Cpus) -> Result<Option<Reference>> {
    latency("ib_send_lat", &[], payload, cpus)
}

/// A ping-pong of sends that both ends sleep for: a write that nobody is told of, the tool cannot sleep for.
pub(super) fn slept(payload: usize, cpus: Cpus) -> Result<Option<Reference>> {
    latency("ib_send_lat", &["-e"], payload, cpus)
}

/// The tool tells half of a round trip.
fn latency(tool: &str, how: &[&str], payload: usize, cpus: Cpus) -> Result<Option<Reference>> {
    let iterations = ITERATIONS.min(BYTES_MAX / payload).max(20);
    let line = measure(tool, how, payload, iterations, cpus)?;
    // bytes, iterations, t_min, t_max, t_typical (the median), ...
    let half = line.and_then(|numbers| numbers.get(4).copied());
    // In User-Mode Linux it has told 2^64 cycles of 64 KiB.
    let half = half.filter(|half| *half < BOUND.as_micros() as f64);
    let name = format!("{tool}, {payload} B, there and back");
    Ok(half.map(|half| Reference::measured(&name, (2e3 * half).round() as u64)))
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
    let asked = format!("{tool} {}", how.join(" "));
    if HUNG.lock().unwrap_or_else(PoisonError::into_inner).contains(&asked) {
        return Ok(None);
    }
    let (device, port) = Device::open_active()?;
    let gid = port.gids.first().context("the port has no address")?.index;
    let tcp_port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let command = |cpu: usize| {
        let mut command = Command::new("taskset");
        command.args(["-c", &cpu.to_string(), tool, "-F", "-d", device.name()]);
        command.args(["-x", &gid.to_string(), "-p", &tcp_port.to_string()]);
        command.args(["-s", &payload.to_string(), "-n", &iterations.to_string()]);
        command.args(how);
        command
    };
    let Ok(mut server) = Server::start(command(cpus.worker)) else { return Ok(None) };
    if !poll_until(LISTEN_BOUND, || server.listens(tcp_port)) {
        return Ok(None);
    }
    let mut client = command(cpus.caller);
    client.arg("127.0.0.1");
    let output = match run_bounded(client, BOUND) {
        Ok(output) => output,
        // In User-Mode Linux it has slept for ever over an event. That says nothing of the baseline.
        Err(error) => {
            eprintln!("  nothing from {tool}: {error}");
            let mut hung = HUNG.lock().unwrap_or_else(PoisonError::into_inner);
            hung.push(asked);
            return Ok(None);
        }
    };
    Ok(numbers(&String::from_utf8_lossy(&output.stdout), payload))
}

/// The line that begins with the payload's size, as numbers.
fn numbers(report: &str, payload: usize) -> Option<Vec<f64>> {
    let line = report.lines().rev().find(|line| {
        line.split_whitespace().next().is_some_and(|first| first == payload.to_string())
    })?;
    Some(line.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

struct Server(Child);

impl Server {
    fn start(mut command: Command) -> std::io::Result<Self> {
        command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        command.spawn().map(Self)
    }

    /// By the kernel's word: a connection made to find out would be taken for the client's.
    fn listens(&mut self, port: u16) -> bool {
        let ended = !matches!(self.0.try_wait(), Ok(None));
        let listening = format!(":{port:04X} ");
        let table = |file: &str| std::fs::read_to_string(file).unwrap_or_default();
        let sockets = table("/proc/net/tcp") + &table("/proc/net/tcp6");
        let mut lines = sockets.lines();
        ended || lines.any(|line| line.contains(&listening) && line.contains(" 0A "))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
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
