//! sockperf (Debian: `sockperf`), a tool for socket latency that others wrote; nothing where it is not installed.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use gleaner_testkit::{poll_until, process::run_bounded};

use crate::stage::Cpus;

/// sockperf's smallest message.
const MESSAGE_MIN: usize = 14;
/// How long sockperf may take to listen, and to measure for its one second.
const LISTEN_BOUND: Duration = Duration::from_secs(5);
const BOUND: Duration = Duration::from_secs(20);

/// A ping-pong of as many bytes, at least sockperf's least, for a second.
pub(super) fn measure(payload: usize, cpus: Cpus, busy: bool) -> Result<Option<u64>> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let Ok(mut server) = Server::start(port, cpus.worker, busy) else {
        return Ok(None);
    };
    if !poll_until(LISTEN_BOUND, || server.listens(port)) {
        return Ok(None);
    }
    let mut client = command("ping-pong", port, cpus.caller, busy);
    let size = payload.max(MESSAGE_MIN);
    client.args(["--full-rtt", "--time", "1", "--msg-size", &size.to_string()]);
    let output = run_bounded(client, BOUND).context("run sockperf")?;
    Ok(median(&String::from_utf8_lossy(&output.stdout)))
}

struct Server(Child);

impl Server {
    fn start(port: u16, cpu: usize, busy: bool) -> std::io::Result<Self> {
        let mut command = command("server", port, cpu, busy);
        command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        command.spawn().map(Self)
    }

    /// By the kernel's word: a connection made to find out would be taken for the client's.
    fn listens(&mut self, port: u16) -> bool {
        let ended = !matches!(self.0.try_wait(), Ok(None));
        let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let listening = format!("0100007F:{port:04X} 00000000:0000 0A");
        ended || sockets.contains(&listening)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One end, pinned by `taskset`: sockperf's own option leaves its other threads where they are.
fn command(role: &str, port: u16, cpu: usize, busy: bool) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &cpu.to_string(), "sockperf", role, "--tcp", "-i", "127.0.0.1"]);
    command.args(["-p", &port.to_string()]);
    if busy {
        command.arg("--nonblocked");
    }
    command
}

/// The 50th percentile of sockperf's report, which is in microseconds.
fn median(report: &str) -> Option<u64> {
    let line = report.lines().find(|line| line.contains("percentile 50.000"))?;
    let micros: f64 = line.rsplit('=').next()?.trim().parse().ok()?;
    Some((micros * 1e3).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_read() {
        let report = "sockperf: ---> <MIN> observation =    5.1\n\
                      sockperf: ---> percentile 50.000 =    6.034\n";
        assert_eq!(median(report), Some(6_034));
        assert_eq!(median("sockperf: ERROR"), None);
    }
}
