//! A real keeper under test, with an agent that passes everything on to the test and a worker that does what it is told.
//!
//! The test program is its own keeper, agent and worker: the keeper executes its own file, so [`play_role`] comes first in
//! `main`. Everything lives in a temporary directory, and nothing outlives a [`Bench`].

#![allow(dead_code)] // two test programs use different parts

pub(crate) mod worker;

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use gleaner_config::Config;
use gleaner_executor::{
    keeper::{
        self, Isolation,
        ipc::{Notice, Order, Socket},
        journal::Reader,
    },
    sys::{self, Waits},
};
use gleaner_proto::{
    hook::HOOK_SOCKET,
    vacates::VacateRecord,
    workers::{Entry, Process, WORKERS_FILE, entries, parse_stat},
};
use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt,
            listen, socket, sockopt,
        },
    },
    unistd::Pid,
};

/// The node that every bench serves.
pub(crate) const NODE: &str = "n1";
/// The user of leases that are not root's.
pub(crate) const NOBODY: u32 = 65534;
/// Far longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const BRIDGE: &str = "GLEANER_TEST_BRIDGE";
const LOOK: Duration = Duration::from_millis(2);

/// Becomes keeper, agent or worker if this process was started as one; returns if it is the test.
pub(crate) fn play_role() {
    let words: Vec<String> = std::env::args().collect();
    match words.get(1).map(String::as_str) {
        Some("worker") => worker::run(),
        Some("keeper") => {
            let arguments = arguments(&words[2..]);
            if let Err(error) = keeper::run(&arguments) {
                eprintln!("{error}");
                std::process::exit(1);
            }
            std::process::exit(0)
        }
        _ if words.iter().any(|word| word == "--run-dir") => run_agent(),
        _ => {}
    }
}

fn arguments(words: &[String]) -> keeper::Arguments {
    let path = PathBuf::from(&words[0]);
    let isolation = match words[1].as_str() {
        "auto" => Isolation::Auto,
        "namespace" => Isolation::Namespace,
        _ => Isolation::Single,
    };
    keeper::Arguments {
        config: Config::load(&path).unwrap().config,
        config_path: Some(path),
        set: Vec::new(),
        node: NODE.parse().unwrap(),
        isolation,
    }
}

/// Passes records on between the keeper and the test, until one of them is gone.
fn run_agent() -> ! {
    let keeper = sys::inherited(3).unwrap();
    let test = seqpacket();
    let path = std::env::var(BRIDGE).unwrap();
    connect(test.as_raw_fd(), &UnixAddr::new(path.as_str()).unwrap()).unwrap();
    let pass = |from: &OwnedFd, to: &OwnedFd| {
        let mut bytes = [0; 256];
        match sys::recv_with_fd(from.as_fd(), &mut bytes) {
            Ok((0, _)) => std::process::exit(0),
            Ok((len, fd)) => {
                sys::send_with_fd(to.as_fd(), &bytes[..len], fd.as_ref().map(AsFd::as_fd)).unwrap()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => std::process::exit(0),
        }
    };
    loop {
        let mut waits = Waits::<2>::default();
        waits.push(keeper.as_fd());
        waits.push(test.as_fd());
        waits.wait(None).unwrap();
        pass(&keeper, &test);
        pass(&test, &keeper);
    }
}

/// A socket as the hook and the keeper use it.
pub(crate) fn seqpacket() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap()
}

/// Polls until it is so; panics if it never is.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "never happened: {what}");
        thread::sleep(LOOK);
    }
}

/// Whether the process still runs, and still is the one.
pub(crate) fn lives(process: Process) -> bool {
    let stat = fs::read(format!("/proc/{}/stat", process.pid)).unwrap_or_default();
    parse_stat(&stat)
        .is_some_and(|(state, start)| start == process.start && !b"ZX".contains(&state))
}

/// The process that has this pid now.
pub(crate) fn process(pid: u32) -> Process {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    Process { pid, start: parse_stat(&stat).map_or(0, |(_, start)| start) }
}

/// Sends a signal.
pub(crate) fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid as i32), signal).unwrap();
}

/// One node: its keeper, and this test in the place of its agent.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) keeper: Option<Child>,
    bridge: OwnedFd,
    pub(crate) agent: Option<Socket>,
    pub(crate) agent_pid: u32,
    isolation: &'static str,
    user: u32,
}

impl Bench {
    /// A keeper with the best isolation there is, as this user.
    pub(crate) fn start() -> Self {
        Self::start_with("auto", 0, 1)
    }

    /// A keeper with that many workers started in advance.
    pub(crate) fn start_with(isolation: &'static str, user: u32, pool: u32) -> Self {
        let mut bench = Self::prepare(isolation, user, pool);
        bench.restart();
        bench
    }

    /// Everything but the keeper.
    pub(crate) fn prepare(isolation: &'static str, user: u32, pool: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let run_dir = dir.path().join("run");
        fs::create_dir(&run_dir).unwrap();
        std::os::unix::fs::chown(&run_dir, Some(user), Some(user)).unwrap();
        let text = format!(
            "[executor]\nrun_dir = {run_dir:?}\nuser = \"nobody\"\nworker_user = \"nobody\"\n\
             cores = 64\nmemory = \"8GiB\"\npool = {pool}\n[policy]\ngrant_ttl = \"600s\"\n"
        );
        fs::write(dir.path().join("gleaner.toml"), text).unwrap();
        let bridge = seqpacket();
        let path = dir.path().join("bridge");
        bind(bridge.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        listen(&bridge, Backlog::new(4).unwrap()).unwrap();
        Self { dir, keeper: None, bridge, agent: None, agent_pid: 0, isolation, user }
    }

    /// Starts the keeper, and waits for its agent.
    pub(crate) fn restart(&mut self) {
        self.keeper = Some(self.command().spawn().unwrap());
        self.next_agent();
    }

    /// The keeper's command.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("keeper").arg(self.dir.path().join("gleaner.toml")).arg(self.isolation);
        command.env(BRIDGE, self.dir.path().join("bridge"));
        if self.user != 0 {
            command.uid(self.user).gid(self.user);
        }
        command
    }

    /// Waits for an agent's connection, and for its welcome.
    pub(crate) fn next_agent(&mut self) -> Notice {
        let socket = until("an agent starts", || sys::accept(self.bridge.as_fd()).ok());
        self.agent_pid = getsockopt(&socket, sockopt::PeerCredentials).unwrap().pid() as u32;
        self.agent = Some(Socket::new(socket));
        let welcome = self.notice().0;
        assert!(matches!(welcome, Notice::Welcome { .. }), "{welcome:?}");
        welcome
    }

    /// The node's runtime directory.
    pub(crate) fn node_dir(&self) -> PathBuf {
        self.dir.path().join("run").join(NODE)
    }

    /// Connects to the hook's socket without waiting; fails when its queue is full.
    pub(crate) fn dial_hook(&self) -> nix::Result<OwnedFd> {
        let peer = seqpacket();
        connect(peer.as_raw_fd(), &UnixAddr::new(&self.node_dir().join(HOOK_SOCKET))?)?;
        Ok(peer)
    }

    pub(crate) fn keeper_pid(&self) -> u32 {
        self.keeper.as_ref().unwrap().id()
    }

    pub(crate) fn order(&self, order: Order) {
        self.agent.as_ref().unwrap().order(&order).unwrap();
    }

    /// The next notice.
    pub(crate) fn notice(&self) -> (Notice, Option<OwnedFd>) {
        let agent = self.agent.as_ref().unwrap();
        until("a notice comes", || match agent.notice() {
            Ok(notice) => Some(notice),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("the agent's socket: {error}"),
        })
    }

    /// Notices up to the first that fits; the one is returned.
    pub(crate) fn find<T>(&self, mut fits: impl FnMut(&Notice) -> Option<T>) -> T {
        loop {
            let (notice, _) = self.notice();
            if let Some(found) = fits(&notice) {
                return found;
            }
        }
    }

    /// A grant for `ttl` from now.
    pub(crate) fn grant(&self, epoch: u64, ttl: Duration) {
        let until_ns = sys::boottime_ns() + ttl.as_nanos() as u64;
        self.order(Order::Grant { epoch, until_ns });
    }

    /// The order for a lease of one core and 64 MiB, for `ttl` from now.
    pub(crate) fn wanted(lease_id: u64, epoch: u64, uid: u32, ttl: Duration) -> Order {
        let deadline_ns = sys::boottime_ns() + ttl.as_nanos() as u64;
        Order::Start {
            lease_id,
            epoch,
            uid,
            gid: uid,
            cores: 1,
            memory_bytes: 64 << 20,
            deadline_ns,
        }
    }

    /// Starts a lease and waits for its worker.
    pub(crate) fn lease(&self, lease_id: u64, epoch: u64, ttl: Duration) -> worker::Remote {
        self.order(Self::wanted(lease_id, epoch, self.user, ttl));
        match self.notice() {
            (Notice::Started { lease_id: started, pid }, Some(socket)) if started == lease_id => {
                worker::Remote::new(process(pid), socket)
            }
            other => panic!("not started: {other:?}"),
        }
    }

    /// Epoch 1 and lease 1, both for longer than any test.
    pub(crate) fn leased(&self) -> worker::Remote {
        self.grant(1, Duration::from_secs(600));
        self.lease(1, 1, Duration::from_secs(600))
    }

    /// The workers that the keeper's table names now.
    pub(crate) fn table(&self) -> Vec<Entry> {
        let bytes = fs::read(self.node_dir().join(WORKERS_FILE)).unwrap_or_default();
        entries(&bytes).collect()
    }

    /// The journal.
    pub(crate) fn records(&self) -> Vec<VacateRecord> {
        let reader = Reader::open(&self.node_dir()).unwrap();
        reader.unacknowledged().unwrap().into_iter().map(|journalled| journalled.record).collect()
    }

    /// Waits for the keeper's end.
    pub(crate) fn keeper_ends(&mut self) -> ExitStatus {
        let mut keeper = self.keeper.take().unwrap();
        until("the keeper ends", || keeper.try_wait().unwrap())
    }

    /// Ends the keeper in order.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        signal(self.keeper_pid(), Signal::SIGTERM);
        self.keeper_ends()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(keeper) = &mut self.keeper {
            let _ = kill(Pid::from_raw(keeper.id() as i32), Signal::SIGCONT);
            let _ = kill(Pid::from_raw(keeper.id() as i32), Signal::SIGTERM);
            let end = Instant::now() + Duration::from_secs(5);
            while Instant::now() < end && matches!(keeper.try_wait(), Ok(None)) {
                thread::sleep(LOOK);
            }
            let _ = keeper.kill();
            let _ = keeper.wait();
        }
        remove_groups(&self.node_dir());
    }
}

/// The cgroups of the node with this runtime directory: in all hierarchies, or in the only one.
pub(crate) fn groups(node_dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), &keeper::group_name(node_dir), 5, &mut found);
    found
}

fn walk(dir: &Path, name: &str, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name() == name {
            found.push(path);
        } else if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, name, depth - 1, found);
        }
    }
}

/// What a keeper that was killed leaves: its empty groups.
fn remove_groups(node_dir: &Path) {
    for group in groups(node_dir) {
        for worker in fs::read_dir(&group).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(worker.path());
        }
        let _ = fs::remove_dir(group);
    }
}
