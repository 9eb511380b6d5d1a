//! From the configuration to a keeper that is ready to loop: directory, lock, sockets, groups, programs, leftovers.
//!
//! The only part of the keeper that may allocate, block and read files at length.

use std::{
    ffi::{CString, OsString},
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStringExt,
            fs::{DirBuilderExt, MetadataExt, chown},
        },
    },
    path::{Path, PathBuf},
};

use gleaner_fabric::rdma::OBJECTS_PER_LINK;
use gleaner_lease::deadlines::{Bounds, Deadlines};
use gleaner_proto::{
    hook::HOOK_SOCKET,
    ids::{Epoch, NodeName},
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        socket::{AddressFamily, Backlog, SockFlag, SockType, listen, socket},
        sysinfo::sysinfo,
    },
    unistd::geteuid,
};

use super::{
    Arguments, Isolation, KeeperError,
    agent_process::AgentProcess,
    cgroup::Hierarchy,
    cores::Cores,
    holds::Holds,
    hooks::{self, Hooks},
    journal::{ACKNOWLEDGED_FILE, Appender},
    leftovers,
    log::say,
    reaper::Reaper,
    run::Keeper,
    table::Table,
    users::{self, Users},
    workers::{Bond, Offer, Parts, Workers},
};
use crate::sys::{self, Program};

/// The local clients' socket in the node's runtime directory.
pub const AGENT_SOCKET: &str = "agent.sock";
/// The kill switch, beside the nodes' runtime directories: while it is there nothing starts.
pub const SWITCH_FILE: &str = "off";
/// Objects of an RDMA device that some drivers make for themselves.
const RDMA_OVERHEAD_OBJECTS: u32 = 64;
const LOCK_FILE: &str = "keeper.pid";
const CLIENTS_BACKLOG: i32 = 128;

/// Everything that lives as long as the keeper.
pub(super) struct Ready {
    pub(super) keeper: Keeper,
    pub(super) limitations: Vec<String>,
    /// Dropped last: another keeper may then take the node.
    _lock: Flock<File>,
}

fn step<T, E: Into<io::Error>>(step: &'static str, result: Result<T, E>) -> Result<T, KeeperError> {
    result.map_err(|error| KeeperError::Step { step, source: error.into() })
}

/// Makes the keeper.
pub(super) fn prepare(arguments: &Arguments) -> Result<Ready, KeeperError> {
    let config = &arguments.config.executor;
    let run_dir = make_run_dir(&config.run_dir, &arguments.node)?;
    let lock = lock(&run_dir, &arguments.node)?;
    let users = Users::of_this_process(config)?;
    let root = geteuid().is_root();
    let agent_user = if root { Some(users::look_up("user", &config.user)?) } else { None };
    let boot_id = step("read the boot id", boot_id())?;
    let left = leftovers::sweep(&run_dir, boot_id);
    let hierarchy = Hierarchy::find(&group_name(&run_dir), arguments.isolation == Isolation::Auto);
    hierarchy.remove_leftovers();
    let bond = bond(&hierarchy, arguments.isolation, root);
    let limitations = limitations(&hierarchy, bond, root);
    let table = Table::create(&run_dir, boot_id, hierarchy.kill_path());
    let table = step("make the table of workers", table)?;
    let cores = step("read the CPUs of this process", Cores::own())?;
    let offer = offer(config, &cores)?;
    let (agent_program, worker_program) = programs(arguments, &run_dir, &limitations, offer)?;
    let null = || step("open /dev/null", File::open("/dev/null").map(OwnedFd::from));
    let journal = step("open the journal of vacates", Appender::open(&run_dir))?;
    if let Some((uid, gid)) = agent_user {
        let given = chown(run_dir.join(ACKNOWLEDGED_FILE), Some(uid), Some(gid));
        step("give the agent its place in the journal", given)?;
    }
    let listener = step("listen for local clients", listen_local(&run_dir.join(AGENT_SOCKET)))?;
    let rdma_objects = config.rdma.then(|| rdma_objects(config));
    let (program, null_worker) = (worker_program, null()?);
    let parts =
        Parts { hierarchy, bond, program, null: null_worker, table, cores, offer, rdma_objects };
    let policy = &arguments.config.policy;
    let bounds = Bounds { grant_max: policy.grant_ttl, lease_max: policy.lease_ttl_max };
    let mut keeper = Keeper {
        workers: Workers::new(parts),
        agent: AgentProcess::new(agent_program, agent_user, null()?, listener),
        hooks: step("listen for the hook", Hooks::listen(&run_dir.join(HOOK_SOCKET)))?,
        holds: step("read the held jobs", Holds::open(&run_dir))?,
        journal,
        deadlines: Box::new(Deadlines::new(bounds)),
        epoch: Epoch(0),
        until: None,
        signals: step("take signals", take_signals())?,
        reaper: step("start the reaper", Reaper::start())?,
        stopping: false,
        agent_died: false,
        users,
        pool: config.pool as usize,
        refill_not_before_ns: 0,
        switch_file: config.run_dir.join(SWITCH_FILE),
        boot_id,
    };
    if let Some(record) = left {
        say(format_args!(
            "the last keeper left {} leases and {} live processes",
            record.leases, record.processes
        ));
        keeper.record(&record);
    }
    Ok(Ready { keeper, limitations, _lock: lock })
}

/// Makes the node's directory. Nobody else may write there: root trusts what lies in it.
fn make_run_dir(parent: &Path, node: &NodeName) -> Result<PathBuf, KeeperError> {
    let path = parent.join(node.as_str());
    let failed = |source| KeeperError::RunDir { path: path.clone(), source };
    DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(failed)?;
    for checked in [parent, &path] {
        let found = fs::metadata(checked).map_err(failed)?;
        let trusted = found.uid() == 0 || found.uid() == geteuid().as_raw();
        let sticky = found.mode() & 0o1000 != 0 && checked == parent;
        if !trusted || (found.mode() & 0o022 != 0 && !sticky) {
            return Err(KeeperError::RunDirOpen { path: checked.to_owned() });
        }
    }
    fs::canonicalize(&path).map_err(failed)
}

fn lock(run_dir: &Path, node: &NodeName) -> Result<Flock<File>, KeeperError> {
    let path = run_dir.join(LOCK_FILE);
    let opened = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = step("open keeper.pid", opened)?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        let pid = fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
        KeeperError::Running { node: node.to_string(), pid }
    })?;
    let written = lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id()));
    step("write keeper.pid", written)?;
    Ok(lock)
}

/// The group's name, different for two keepers of one machine that serve a node of the same name.
pub fn group_name(run_dir: &Path) -> String {
    let bytes = run_dir.as_os_str().as_encoded_bytes();
    let mix = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix);
    let node = run_dir.file_name().unwrap_or_default().to_string_lossy();
    format!("gleaner-{node}-{:08x}", sum as u32)
}

fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&digits, 16).map_err(io::Error::other)?;
    Ok(id.to_be_bytes())
}

fn bond(hierarchy: &Hierarchy, isolation: Isolation, root: bool) -> Bond {
    match (hierarchy.kill_path(), isolation) {
        (Some(_), Isolation::Auto) => Bond::Group,
        (_, Isolation::Auto | Isolation::Namespace) if root => Bond::Namespace,
        _ => Bond::Single,
    }
}

/// What this node cannot do, in sentences for people.
fn limitations(hierarchy: &Hierarchy, bond: Bond, root: bool) -> Vec<String> {
    let mut list = Vec::new();
    if !root {
        let uid = geteuid();
        list.push(format!("runs without root: serves leases of uid {uid} alone"));
        list.push("no locked memory: the keeper may be paged out".to_owned());
    }
    match bond {
        Bond::Group => {}
        Bond::Namespace => {
            list.push("no cgroup v2: a lease's processes end with their PID namespace".to_owned());
        }
        Bond::Single => {
            list.push("no own cgroup: a lease is one process that cannot fork".to_owned())
        }
    }
    if !hierarchy.is_idle() {
        list.push("no own CPU cgroup: workers give way less than they could (nice 19)".to_owned());
    }
    if !hierarchy.limits_memory() {
        list.push("no own memory cgroup: memory is limited by RLIMIT_DATA only".to_owned());
    }
    if root && let Err(error) = sys::lock_memory() {
        list.push(format!("no locked memory ({error}): the keeper may be paged out"));
    }
    if let Err(error) = sys::become_realtime() {
        list.push(format!(
            "no real-time priority ({error}): a busy node may delay the keeper and its workers' end"
        ));
    }
    list
}

fn offer(config: &gleaner_config::Executor, cores: &Cores) -> Result<Offer, KeeperError> {
    let info = step("read the machine's memory", sysinfo())?;
    let memory_bytes = match config.memory {
        Some(bytes) => bytes.0,
        None => info.ram_total() / 10 * 9,
    };
    Ok(Offer { cores: config.cores.unwrap_or(cores.len() as u32), memory_bytes })
}

/// A link for each session on a core.
fn rdma_objects(config: &gleaner_config::Executor) -> u32 {
    config.sessions_per_lease.saturating_mul(OBJECTS_PER_LINK).saturating_add(RDMA_OVERHEAD_OBJECTS)
}

/// The agent's and the worker's command lines: this same executable, even if its file is replaced meanwhile.
fn programs(
    arguments: &Arguments,
    run_dir: &Path,
    limitations: &[String],
    offer: Offer,
) -> Result<(Program, Program), KeeperError> {
    let own = || step("open this executable", File::open("/proc/self/exe").map(OwnedFd::from));
    let mut words: Vec<OsString> = vec!["gleaner-executor".into()];
    if let Some(path) = &arguments.config_path {
        let path = step("find the configuration", fs::canonicalize(path))?;
        words.extend(["--config".into(), path.into()]);
    }
    for value in &arguments.set {
        words.extend(["--set".into(), value.into()]);
    }
    words.extend(["--node".into(), arguments.node.as_str().into()]);
    let mut worker = words[..1].to_vec();
    worker.push("worker".into());
    if let Some(settings) = crate::rdma::settings(&arguments.config) {
        worker.extend(["--rdma".into(), settings.to_string().into()]);
    }
    words.extend(["agent".into(), "--run-dir".into(), run_dir.into()]);
    words.extend(["--cores".into(), offer.cores.to_string().into()]);
    words.extend(["--memory".into(), offer.memory_bytes.to_string().into()]);
    if !geteuid().is_root() {
        words.push("--single-user".into());
    }
    for limitation in limitations {
        words.extend(["--limitation".into(), limitation.into()]);
    }
    let environment = std::env::vars_os().map(|(mut key, value)| {
        key.push("=");
        key.push(value);
        key
    });
    let agent = Program::new(own()?, c_strings(words), c_strings(environment));
    Ok((agent, Program::new(own()?, c_strings(worker), Vec::new())))
}

fn c_strings(words: impl IntoIterator<Item = OsString>) -> Vec<CString> {
    let words = words.into_iter().map(|word| CString::new(word.into_vec()));
    // None holds a NUL: they come from the environment, a path that was opened, and text made here.
    words.filter_map(Result::ok).collect()
}

fn listen_local(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let listener = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    hooks::bind_at(&listener, path, 0o666)?;
    listen(&listener, Backlog::new(CLIENTS_BACKLOG)?)?;
    Ok(listener)
}

fn take_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT] {
        set.add(signal);
    }
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Tells systemd that the keeper is ready, if systemd asked to be told.
pub(super) fn notify_systemd() -> io::Result<()> {
    use std::os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    };
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let bytes = name.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(abstract_name) => SocketAddr::from_abstract_name(abstract_name)?,
        None => SocketAddr::from_pathname(&name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address)?;
    Ok(())
}

/// Removes what an ordered end leaves nothing of: sockets. The journal and the held jobs stay.
pub(super) fn clean_up(run_dir: &Path) {
    for name in [HOOK_SOCKET, AGENT_SOCKET] {
        let _ = fs::remove_file(run_dir.join(name));
    }
}
