//! The real program on a real private Slurm: killed, started twice, reloaded, stopped.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use gleaner_config::{Config, Mode};
use gleaner_identity::{Auth, Authority};
use gleaner_proto::v1;
use gleaner_testkit::{ports::ReservedPort, process::Daemon, slurm::Cluster, wait_until};
use nix::sys::signal::Signal;
use support::{BOUND, client::Client, client::one_lease, eventually, executor::Executor};

const PROGRAM: &str = env!("CARGO_BIN_EXE_gleaner-harvester");

/// A configuration file, and the program that runs on it.
struct World {
    directory: tempfile::TempDir,
    cluster: Cluster,
    config: Config,
    daemon: Daemon,
}

impl World {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cluster = Cluster::builder().nodes(1).cpus(4).start().unwrap();
        let mut config = support::config(directory.path(), Some(cluster.munge_socket()));
        config.slurm.slurm_conf = Some(cluster.slurm_conf());
        config.harvester.listen.set_port(ReservedPort::reserve().unwrap().port());
        let daemon = run(&write(directory.path(), &config), config.harvester.listen);
        Self { directory, cluster, config, daemon }
    }

    fn address(&self) -> SocketAddr {
        self.config.harvester.listen
    }

    fn start_again(&mut self) {
        self.daemon = run(&write(self.directory.path(), &self.config), self.address());
    }

    fn authority(&self) -> Authority {
        Authority::load(&Auth::Munge { socket: Some(self.cluster.munge_socket()) }).unwrap()
    }

    async fn client(&self) -> Client {
        Client::connect(self.address(), self.authority()).await
    }

    async fn mode(&self) -> String {
        self.client().await.get_status(v1::GetStatusRequest {}).await.unwrap().mode
    }
}

fn write(directory: &Path, config: &Config) -> PathBuf {
    let path = directory.join("gleaner.toml");
    fs::write(&path, config.to_toml()).unwrap();
    path
}

fn command(config: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command.arg("--config").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn run(config: &Path, address: SocketAddr) -> Daemon {
    let daemon = Daemon::start("gleaner-harvester", command(config), None).unwrap();
    wait_until("the harvester listens", BOUND, || std::net::TcpStream::connect(address).is_ok());
    daemon
}

/// A start that must fail.
fn refusal(config: &Path) -> String {
    let mut command = command(config);
    command.stderr(Stdio::piped());
    let Output { status, stderr, .. } =
        gleaner_testkit::process::run_bounded(command, BOUND).unwrap();
    assert!(!status.success());
    String::from_utf8(stderr).unwrap()
}

/// Leases and gives back until told to stop; what was acknowledged goes into the two sets.
async fn traffic(
    client: Client,
    given: Arc<Mutex<BTreeSet<u64>>>,
    back: Arc<Mutex<BTreeSet<u64>>>,
) {
    while let Ok(reply) = client.acquire(one_lease(1)).await {
        let lease = reply.leases[0].lease_id;
        assert!(given.lock().unwrap().insert(lease), "lease {lease} was given twice");
        if lease % 2 == 0 {
            continue;
        }
        let release = v1::ReleaseRequest { lease_ids: vec![lease] };
        if client.release(release).await.is_err() {
            return;
        }
        back.lock().unwrap().insert(lease);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_traffic_loses_no_acknowledged_lease() {
    let mut world = World::start();
    let executor = Executor::join(world.address(), world.authority(), "n1").await;
    executor.granted().await;
    let (given, back) = (Arc::default(), Arc::default());
    let client = world.client().await;
    let busy: Vec<_> = (0..3)
        .map(|_| tokio::spawn(traffic(client.clone(), Arc::clone(&given), Arc::clone(&back))))
        .collect();
    eventually("there is traffic", async || (!given.lock().unwrap().is_empty()).then_some(()))
        .await;
    world.daemon.kill();
    for task in busy {
        task.await.unwrap();
    }
    world.start_again();
    let client = world.client().await;
    let all = client.list_leases(v1::ListLeasesRequest { ended: true, limit: 0 }).await.unwrap();
    let known: BTreeSet<u64> = all.leases.iter().map(|lease| lease.lease_id).collect();
    let given = given.lock().unwrap().clone();
    assert!(given.is_subset(&known), "lost: {:?}", given.difference(&known));
    let kept: BTreeSet<u64> = given.difference(&back.lock().unwrap()).copied().collect();
    let live = client.list_leases(v1::ListLeasesRequest::default()).await.unwrap();
    let live: BTreeSet<u64> = live.leases.iter().map(|lease| lease.lease_id).collect();
    assert!(kept.is_subset(&live), "ended though nobody said so: {:?}", kept.difference(&live));
    assert_eq!(client.get_status(v1::GetStatusRequest {}).await.unwrap().term, 2);
    let again = Executor::join(world.address(), world.authority(), "n1").await;
    assert!(again.registered.grant_epoch > executor.registered.grant_epoch);
    let fresh =
        eventually("leases are given again", async || client.acquire(one_lease(1)).await.ok())
            .await;
    assert!(!known.contains(&fresh.leases[0].lease_id), "a lease id was used twice");
}

#[test]
fn a_second_harvester_is_refused() {
    let mut world = World::start();
    let mut other = world.config.clone();
    other.harvester.listen.set_port(0);
    let path = world.directory.path().join("other.toml");
    fs::write(&path, other.to_toml()).unwrap();
    let said = refusal(&path);
    let holder = format!("another harvester (process {})", world.daemon.pid());
    assert!(said.contains(&holder), "{said}");
    assert!(!world.daemon.has_ended());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_the_policy_and_a_bad_file_changes_nothing() {
    let mut world = World::start();
    assert_eq!(world.mode().await, "enforce");
    world.config.policy.mode = Mode::Observe;
    let path = write(world.directory.path(), &world.config);
    world.daemon.signal(Signal::SIGHUP);
    eventually("the policy is taken", async || (world.mode().await == "observe").then_some(()))
        .await;
    fs::write(&path, "[policy]\nmode = \"grab everything\"\n").unwrap();
    world.daemon.signal(Signal::SIGHUP);
    world.config.policy.partitions = vec!["nonesuch".into()];
    let client = world.client().await;
    // The next good file shows that the bad one was read and left: signals come in order.
    world.daemon.stop();
    world.daemon.cont();
    assert_eq!(world.mode().await, "observe");
    write(world.directory.path(), &world.config);
    eventually("the next file is taken", async || {
        world.daemon.signal(Signal::SIGHUP);
        let status = client.get_status(v1::GetStatusRequest {}).await.unwrap();
        (!status.warnings.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_graceful_and_tells_executors_nothing() {
    let mut world = World::start();
    let executor = Executor::join(world.address(), world.authority(), "n1").await;
    executor.granted().await;
    let status = world.daemon.terminate(Duration::from_secs(8)).expect("it ends");
    assert!(status.success(), "{status}");
    eventually("the stream ends", async || executor.told().ended).await;
    assert!(executor.told().vacated.is_none());
}

#[test]
fn single_user_mode_refuses_to_listen_beyond_loopback() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = support::config(directory.path(), None);
    config.cluster.auth = gleaner_config::Auth::SingleUser;
    config.harvester.listen = "0.0.0.0:0".parse().unwrap();
    let said = refusal(&write(directory.path(), &config));
    assert!(said.contains("single-user") && said.contains("127.0.0.1"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn single_user_mode_works_on_loopback_and_prints_its_port() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = support::config(directory.path(), None);
    config.cluster.auth = gleaner_config::Auth::SingleUser;
    config.executor.listen = config.harvester.listen;
    config.slurm.commands = Some(directory.path().into());
    let mut command = command(&write(directory.path(), &config));
    let mut daemon = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap().parse().unwrap();
    let client = Client::connect(address, Authority::load(&Auth::SingleUser).unwrap()).await;
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap();
    assert_eq!(status.cluster, "testing");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}
