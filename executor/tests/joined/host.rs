//! The machine that serves, and the client's hold on it: orders of one line each, answered by one line.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use gleaner::{Client, Options, Request, Transports};
use gleaner_identity::Auth;
use gleaner_lease::state::EndReason;
use gleaner_testkit::wait_until;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{
    HOST,
    service::{PATIENCE, Service, munged::Munged, request, verbs::all_held},
};

const ORDERS_PORT: u16 = 7472;
/// The other machine need not have booted yet.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// Serves whoever orders, one after the other, until this machine is ended.
#[test]
#[ignore = "needs another machine"]
fn serves() {
    let listener = TcpListener::bind((HOST, ORDERS_PORT)).unwrap();
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        let mut service = None;
        for order in BufReader::new(&stream).lines() {
            let Ok(order) = order else { break };
            let answer = obey(&order, &mut service);
            writeln!(&stream, "{answer}").unwrap();
        }
    }
}

/// Does one thing, and says what came of it.
fn obey(order: &str, running: &mut Option<Service>) -> String {
    let words: Vec<&str> = order.split(' ').collect();
    if let ["start", rdma, nodes @ ..] = &words[..] {
        let service = Service::reached_at(HOST, nodes, |config| {
            config.executor.rdma = *rdma != "off";
            config.rdma.device = Some((*rdma).to_owned()).filter(|_| config.executor.rdma);
        });
        let port = service.harvester.address.port();
        *running = Some(service);
        return port.to_string();
    }
    let service = running.as_ref().expect("started");
    match words[..] {
        ["started", node] => service.wait_started(node),
        ["vacate", node] => service.harvester.vacate(node, EndReason::BatchJob),
        ["kill", "worker"] => kill_worker(service),
        ["kill", "executor"] => {
            let keeper = Pid::from_raw(service.executors[0].pid());
            kill(keeper, Signal::SIGKILL).unwrap();
        }
        ["shell", ..] => run(order.strip_prefix("shell ").unwrap()),
        ["socket", node] => return service.run_dir(node).join("agent.sock").display().to_string(),
        ["held"] => return format!("{:?}", all_held()),
        ["ended", lease] => return service.wait_for_end(lease.parse().unwrap()).reason.to_string(),
        ["call"] => {
            let pool = service.client().acquire(request()).unwrap();
            return format!("{:?}", pool.leases()[0].transport);
        }
        _ => panic!("no such order: {order}"),
    }
    "done".into()
}

fn kill_worker(service: &Service) {
    let worker = Pid::from_raw(service.leased_workers(0)[0].pid as i32);
    kill(worker, Signal::SIGKILL).unwrap();
    wait_until("the worker is gone", PATIENCE, || service.leased_workers(0).is_empty());
}

/// Runs a line of the shell, which must succeed.
pub(crate) fn run(text: &str) {
    let status = Command::new("sh").args(["-ec", text]).status().unwrap();
    assert!(status.success(), "{text}: {status}");
}

/// The other machine, as a client's test holds it: a service of its own, ended with this.
pub(crate) struct Host {
    orders: BufReader<TcpStream>,
    harvester: String,
    munged: Munged,
    _directory: TempDir,
}

impl Host {
    /// Starts executors there; `rdma` is the device that they serve by, or "off".
    pub(crate) fn start(rdma: &str, nodes: &str) -> Self {
        let mut orders = None;
        wait_until("the other machine listens", BOOT_PATIENCE, || {
            orders = TcpStream::connect((HOST, ORDERS_PORT)).ok();
            orders.is_some()
        });
        let directory = tempfile::tempdir().unwrap();
        let mut host = Self {
            orders: BufReader::new(orders.unwrap()),
            harvester: String::new(),
            // The same key as there.
            munged: Munged::start(directory.path()),
            _directory: directory,
        };
        host.harvester = format!("{HOST}:{}", host.ask(&format!("start {rdma} {nodes}")));
        host
    }

    /// Orders something, and waits for what comes of it.
    pub(crate) fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders.get_ref(), "{order}").unwrap();
        let mut answer = String::new();
        self.orders.read_line(&mut answer).unwrap();
        assert!(answer.ends_with('\n'), "{order}: the other machine's test has failed");
        answer.trim_end().to_owned()
    }

    /// How clients of this machine reach it.
    pub(crate) fn options(&self) -> Options {
        Options {
            harvester: self.harvester.clone(),
            auth: Auth::Munge { socket: Some(self.munged.socket()) },
            ..Options::default()
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.options()).unwrap()
    }

    /// Waits until the kernel there holds what it held.
    pub(crate) fn wait_until_held(&mut self, before: &str) {
        wait_until("nothing is left there", PATIENCE, || self.ask("held") == before);
    }
}

/// A request that chooses so.
pub(crate) fn by(transports: Transports) -> Request {
    request().transport(transports)
}
