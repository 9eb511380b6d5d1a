//! Runs the verbs' own tools: a server on the worker's CPU, a client on the caller's, which meet at a TCP port; nothing where they are not
//! installed, or hang.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use gleaner_fabric::rdma::Device;
use gleaner_testkit::{poll_until, process::run_bounded};

use crate::stage::Cpus;

/// How long a tool may take to listen, and to measure.
const LISTEN_BOUND: Duration = Duration::from_secs(10);
pub(super) const BOUND: Duration = Duration::from_secs(60);
/// Tools that did not end, each with how it was asked: not asked again.
static HUNG: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Where both ends are.
pub(super) struct Place {
    /// The port's address, by its index.
    pub(super) gid: u32,
    /// The device's port.
    pub(super) port: u8,
}

/// The report of the tool's client. `how` names the way in which it is asked.
pub(super) fn two_ends(
    tool: &str,
    how: &str,
    arguments: impl Fn(&Place) -> Vec<String>,
    cpus: Cpus,
) -> Result<Option<String>> {
    let asked = format!("{tool} {how}");
    if HUNG.lock().unwrap_or_else(PoisonError::into_inner).contains(&asked) {
        return Ok(None);
    }
    let (device, port) = Device::open_active()?;
    let gid = port.gids.first().context("the port has no address")?.index;
    let arguments = arguments(&Place { gid: gid.into(), port: port.number });
    let tcp_port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let command = |cpu: usize| {
        let mut command = Command::new("taskset");
        command.args(["-c", &cpu.to_string(), tool, "-d", device.name()]);
        command.args(["-p", &tcp_port.to_string()]).args(&arguments);
        command
    };
    let Ok(mut server) = Server::start(command(cpus.worker)) else { return Ok(None) };
    if !poll_until(LISTEN_BOUND, || server.listens(tcp_port)) {
        return Ok(None);
    }
    let mut client = command(cpus.caller);
    client.arg("127.0.0.1");
    match run_bounded(client, BOUND) {
        Ok(output) => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
        // In User-Mode Linux one has slept for ever over an event. That says nothing of the baseline.
        Err(error) => {
            eprintln!("  nothing from {asked}: {error}");
            let mut hung = HUNG.lock().unwrap_or_else(PoisonError::into_inner);
            hung.push(asked);
            Ok(None)
        }
    }
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
