//! Real executors under a small harvester, and real clients: for tests of the agent and the client together.

#![allow(dead_code)] // each test program uses a part

pub(crate) mod harvester;
mod munged;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use gleaner::{Client, Library, Options, Request};
use gleaner_config::Config;
use gleaner_identity::Auth;
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
            harvester: Harvester::start(&auth, uid),
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
        config.executor.listen = SocketAddr::from(([127, 0, 0, 1], 0));
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

/// A request that fits a test's executor.
pub(crate) fn request() -> Request {
    Request::new().memory(64 << 20).ttl(Duration::from_secs(30))
}

/// The functions that behave and misbehave, as a shared library: cargo has built it beside this test.
pub(crate) fn functions() -> Library {
    let own = std::env::current_exe().unwrap();
    Library::from_file(own.parent().unwrap().join("libgleaner_test_functions.so")).unwrap()
}

/// The agent and the workers run as other users.
fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}
