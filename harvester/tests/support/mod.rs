//! What the daemon's tests share: a private munged, a client and an executor that speak the real wire, no more.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

pub mod client;
pub mod disk;
pub mod executor;

use std::{
    fs,
    net::SocketAddr,
    os::unix::{fs::OpenOptionsExt, fs::PermissionsExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use gleaner_config::{Config, Mode};
use gleaner_harvester::{daemon::Daemon, slurm::fake::Fake};
use gleaner_harvester_core::picture::{NodeState, NodeView};
use gleaner_identity::{Auth, Authority};
use gleaner_proto::ids::NodeName;
use gleaner_testkit::{process, wait_until};

pub const BOUND: Duration = Duration::from_secs(10);

/// A munged of one test alone.
pub struct Munged {
    directory: tempfile::TempDir,
    process: process::Daemon,
}

impl Munged {
    pub fn start(key: u8) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = |name: &str| directory.path().join(name);
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o400).open(path("key")).unwrap();
        std::io::Write::write_all(&mut file, &[key; 64]).unwrap();
        let mut command = Command::new("munged");
        command.args(["--force", "--foreground"]).stderr(Stdio::null());
        for file in ["key-file", "socket", "pid-file", "log-file", "seed-file"] {
            let name = file.trim_end_matches("-file");
            command.arg(format!("--{file}={}", path(name).display()));
        }
        let process = process::Daemon::start("munged", command, None)
            .expect("munged must be installed: apt-get install munge");
        let munged = Self { directory, process };
        wait_until("munged listens", BOUND, || UnixStream::connect(munged.socket()).is_ok());
        munged
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub fn authority(&self) -> Authority {
        Authority::load(&Auth::Munge { socket: Some(self.socket()) }).unwrap()
    }

    pub fn process(&self) -> &process::Daemon {
        &self.process
    }
}

/// A configuration that harvests partition `batch`, with its state below `directory`.
pub fn config(directory: &Path, munge_socket: Option<PathBuf>) -> Config {
    let mut config = Config::default();
    config.cluster.name = "testing".into();
    config.cluster.munge_socket = munge_socket;
    config.harvester.listen = "127.0.0.1:0".parse().unwrap();
    config.harvester.state_dir = directory.join("state");
    config.harvester.heartbeat = Duration::from_millis(100);
    config.slurm.poll = Duration::from_millis(100);
    config.policy.mode = Mode::Enforce;
    config.policy.partitions = vec!["batch".into()];
    config
}

/// An idle node of partition `batch` with 4 cores and 8 GiB.
pub fn idle_node(name: &str) -> NodeView {
    NodeView {
        name: NodeName::new(name).unwrap(),
        state: NodeState::IDLE,
        partitions: vec!["batch".into()],
        features: Vec::new(),
        cpus: 4,
        alloc_cpus: 0,
        real_memory_mb: 8192,
        alloc_memory_mb: 0,
        planned_start_unix_s: None,
    }
}

/// A daemon in this process, on a Slurm in memory, with its own munged.
pub struct World {
    pub directory: tempfile::TempDir,
    pub munged: Munged,
    pub slurm: Fake,
    pub config: Config,
    pub daemon: Daemon,
}

impl World {
    pub async fn start(nodes: &[&str]) -> Self {
        Self::start_with(nodes, |_| {}).await
    }

    pub async fn start_with(nodes: &[&str], change: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let munged = Munged::start(7);
        let slurm = Fake::default();
        slurm.set_nodes(nodes.iter().map(|name| idle_node(name)).collect());
        let mut config = config(directory.path(), Some(munged.socket()));
        change(&mut config);
        let daemon = Daemon::start(&config, slurm.clone()).await.unwrap();
        Self { directory, munged, slurm, config, daemon }
    }

    pub fn address(&self) -> SocketAddr {
        self.daemon.address()
    }

    pub async fn client(&self) -> client::Client {
        client::Client::connect(self.address(), self.munged.authority()).await
    }

    pub async fn executor(&self, node: &str) -> executor::Executor {
        executor::Executor::join(self.address(), self.munged.authority(), node).await
    }

    pub fn database(&self) -> PathBuf {
        self.config.database()
    }
}

/// Waits for an asynchronous condition, looked at often, for a bounded time.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + BOUND;
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "waited {BOUND:?} in vain until {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A credential of user nobody over this digest, made by the real `munge`; `None` without root.
pub fn sign_as_nobody(munged: &Munged, digest: &[u8; 32]) -> Option<String> {
    use std::{io::Write, os::unix::process::CommandExt};
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let mut munge = Command::new("munge")
        .arg(format!("--socket={}", munged.socket().display()))
        .uid(65534)
        .gid(65534)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    munge.stdin.take().unwrap().write_all(digest).unwrap();
    let output = munge.wait_with_output().unwrap();
    assert!(output.status.success(), "munge made nothing");
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

/// The audit trail: action and outcome of each line.
pub async fn audits(database: &Path) -> Vec<(String, String)> {
    use sqlx::{ConnectOptions, sqlite::SqliteConnectOptions};
    let options = SqliteConnectOptions::new().filename(database).read_only(true);
    let mut connection = options.connect().await.unwrap();
    let rows = sqlx::query_as("SELECT action, outcome FROM audits ORDER BY id");
    rows.fetch_all(&mut connection).await.unwrap()
}
