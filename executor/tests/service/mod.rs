//! Real executors under a small harvester, and real clients: for tests of the agent and the client together.

#![allow(dead_code)] // each test program uses a part

pub(crate) mod fair;
pub(crate) mod harvester;
pub(crate) mod munged;
pub(crate) mod raw;
pub(crate) mod verbs;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use ed25519_dalek::SigningKey;
use gleaner::{Client, Library, Options, Request, Waiting};
use gleaner_config::Config;
use gleaner_executor::board::{Board, Phase};
use gleaner_identity::Auth;
use gleaner_proto::{
    v1,
    workers::{Process, WORKERS_FILE, entries, parse_stat},
};
use gleaner_testkit::{process::Daemon, wait_until};
use nix::unistd::{Gid, Uid};
use tempfile::TempDir;

use harvester::Harvester;
use munged::Munged;

/// Far longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Executors, a harvester, and everything they write in one temporary directory.
pub(crate) struct Service {
    pub(crate) executors: Vec<Daemon>,
    pub(crate) harvester: Harvester,
    auth: Auth,
    nodes: Vec<String>,
    _munged: Option<Munged>,
    directory: TempDir,
}

impl Service {
    /// One executor for each node, granted and idle.
    pub(crate) fn start(nodes: &[&str]) -> Self {
        Self::with(nodes, |_| {})
    }

    /// As [`start`](Self::start), with changes to the executors' configuration.
    pub(crate) fn with(nodes: &[&str], change: impl Fn(&mut Config)) -> Self {
        Self::reached_at(Ipv4Addr::LOCALHOST, nodes, change)
    }

    /// The same for clients of other machines, who reach this one by an address of its own.
    pub(crate) fn reached_at(host: Ipv4Addr, nodes: &[&str], change: impl Fn(&mut Config)) -> Self {
        let uid = (Uid::current().as_raw(), Gid::current().as_raw());
        let directory = tempfile::tempdir().unwrap();
        open_to_all(directory.path());
        // Root's executors run their agents as another user, and then only munge knows who is who.
        let munged = Uid::current().is_root().then(|| Munged::start(directory.path()));
        let auth = match &munged {
            Some(munged) => Auth::Munge { socket: Some(munged.socket()) },
            None => Auth::SingleUser,
        };
        let mut service = Self {
            executors: Vec::new(),
            harvester: Harvester::start(&auth, uid, host),
            auth,
            _munged: munged,
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            directory,
        };
        let mut config = Config::default();
        match &service.auth {
            Auth::Munge { socket } => config.cluster.munge_socket = socket.clone(),
            Auth::SingleUser => config.cluster.auth = gleaner_config::Auth::SingleUser,
        }
        config.harvester.user = "root".into();
        config.harvester.listen = service.harvester.address;
        config.harvester.address = service.harvester.address.to_string();
        config.executor.run_dir = service.directory.path().join("run");
        config.executor.listen = SocketAddr::from((host, 0));
        config.executor.user = "nobody".into();
        config.executor.cores = Some(4);
        config.executor.memory = Some(gleaner_config::ByteSize(2 << 30));
        config.executor.pool = 1;
        config.log.filter = "debug,h2=info,hyper=info,tower=info".into();
        change(&mut config);
        fs::write(service.config(), config.to_toml()).unwrap();
        for node in nodes {
            let executor = service.executor(node);
            service.executors.push(executor);
        }
        wait_until("every node is granted", PATIENCE, || {
            service.harvester.granted() == nodes.len()
        });
        service
    }

    fn config(&self) -> PathBuf {
        self.directory.path().join("gleaner.toml")
    }

    /// Starts a node's executor.
    pub(crate) fn executor(&self, node: &str) -> Daemon {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.path().join(format!("{node}.log")))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gleaner-executor"));
        command.arg("--config").arg(self.config()).args(["--node", node]);
        command.stdout(Stdio::null()).stderr(log);
        Daemon::start(node, command, None).unwrap()
    }

    /// A lease for a key of the test's own, as the harvester gives it.
    pub(crate) fn lease(&self, key: &SigningKey, ttl: Duration) -> v1::Lease {
        let request = v1::AcquireRequest {
            client_public_key: key.verifying_key().to_bytes().to_vec().into(),
            nodes_min: 1,
            nodes_max: 1,
            cores: 1,
            memory_bytes: 64 << 20,
            ttl_ms: ttl.as_millis() as u64,
            ..Default::default()
        };
        self.harvester.book().acquire(&request).unwrap().leases.remove(0)
    }

    /// The processes that a node's keeper has started, by what they are: "agent" or "worker".
    pub(crate) fn children(&self, index: usize, role: &str) -> Vec<i32> {
        let mut found = Vec::new();
        let mut look_at = vec![self.executors[index].pid()];
        while let Some(pid) = look_at.pop() {
            let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
            for child in children.unwrap_or_default().split_whitespace() {
                let child: i32 = child.parse().unwrap();
                let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
                if line.split(|byte| *byte == 0).any(|word| word == role.as_bytes()) {
                    found.push(child);
                }
                look_at.push(child);
            }
        }
        found
    }

    /// How many workers run a lease.
    pub(crate) fn workers_of_leases(&self, index: usize) -> usize {
        self.leased_workers(index).len()
    }

    /// Workers that run a lease, by the node's own table and the kernel's.
    pub(crate) fn leased_workers(&self, index: usize) -> Vec<Process> {
        let table = fs::read(self.run_dir(&self.nodes[index]).join(WORKERS_FILE)).unwrap();
        let lives = |process: Process| {
            let stat = fs::read(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
            parse_stat(&stat).is_some_and(|(state, start)| state != b'Z' && start == process.start)
        };
        let leased = entries(&table).filter(|entry| entry.lease_id != 0);
        leased.map(|entry| entry.process).filter(|process| lives(*process)).collect()
    }

    /// Waits until a call runs on a node: until some lease's board says that one was started.
    pub(crate) fn wait_started(&self, node: &str) {
        let index = self.nodes.iter().position(|known| known == node).unwrap();
        wait_until(format!("a call runs on {node}"), PATIENCE, || {
            let agents = self.children(index, "agent");
            let boards = agents.iter().flat_map(|agent| boards(*agent));
            boards.into_iter().any(|board| {
                (0..board.shape().sessions).any(|session| {
                    board.session_states(session).any(|(_, slot)| slot.phase == Phase::Started)
                })
            })
        });
    }

    /// Waits until this lease has ended, and returns how.
    pub(crate) fn wait_for_end(&self, lease: u64) -> v1::LeaseEnded {
        wait_until(format!("lease {lease} has ended"), PATIENCE, || {
            self.harvester.ended(lease).is_some()
        });
        self.harvester.ended(lease).unwrap()
    }

    /// A client of this service.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.options()).unwrap()
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            harvester: self.harvester.address.to_string(),
            auth: self.auth.clone(),
            ..Options::default()
        }
    }

    /// A node's runtime directory.
    pub(crate) fn run_dir(&self, node: &str) -> PathBuf {
        self.directory.path().join("run").join(node)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for node in &self.nodes {
                let log = self.directory.path().join(format!("{node}.log"));
                eprintln!("--- {node}\n{}", fs::read_to_string(log).unwrap_or_default());
            }
        }
        for executor in &mut self.executors {
            if executor.terminate(PATIENCE).is_none() {
                executor.kill();
            }
        }
    }
}

/// A request that fits a test's executor. Warm: a test that spins starves the workers, which run in the idle class.
pub(crate) fn request() -> Request {
    Request::new().memory(64 << 20).ttl(Duration::from_secs(30)).waiting(Waiting::Warm)
}

/// The functions that behave and misbehave, as a shared library: cargo has built it beside this test.
pub(crate) fn functions() -> Library {
    let own = std::env::current_exe().unwrap();
    Library::from_file(own.parent().unwrap().join("libgleaner_test_functions.so")).unwrap()
}

/// The boards of an agent's leases, as its workers see them.
fn boards(agent: i32) -> Vec<Board> {
    let descriptors = fs::read_dir(format!("/proc/{agent}/fd")).into_iter().flatten().flatten();
    descriptors
        .filter(|entry| {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            target.to_string_lossy().starts_with("/memfd:gleaner-board")
        })
        .filter_map(|entry| {
            let file = fs::OpenOptions::new().read(true).write(true).open(entry.path()).ok()?;
            Board::open(file.as_fd()).ok()
        })
        .collect()
}

/// A key pair of a test's own.
pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

/// The agent and the workers run as other users.
fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
