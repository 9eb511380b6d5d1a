//! Confines a worker: called once by the worker's `run`, before any foreign byte is loaded.
//!
//! ```text
//!   wait for Become → groups, gid, uid → dies with the keeper → limits → the worker starts its threads
//!        → no new privileges, filter on all threads → Confined → SCHED_IDLE
//! ```
//!
//! The process was started by the keeper with an empty environment, in its own cgroup. After [`enter`] it can run threads,
//! use memory and the descriptors that it holds or is handed, and read files as the lease's user; nothing else.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
};

use gleaner_fabric::rdma::{Adapter, RdmaError, Settings};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        resource::{Resource, getrlimit, rlim_t, setrlimit},
        signal::Signal,
        stat::{Mode, umask},
    },
    unistd::{self, Gid, Uid, dup2_stderr, dup2_stdin, dup2_stdout, geteuid},
};

use super::filter::{self, FilterError};
use crate::{
    keeper::handover::{BECOME_LEN, Become, Confined},
    sys,
};

/// Threads of the lease's user on this node, the worker's included, beyond which no thread starts.
const THREADS_MAX: rlim_t = 4096;
/// Descriptors a worker may have: links, libraries and its own.
const DESCRIPTORS_MAX: rlim_t = 4096;
/// Private memory beyond the lease's that a worker needs to be one: stacks, code, tables. Only where no cgroup limits it.
const OVERHEAD_BYTES: u64 = 64 << 20;
/// The same, for each thread.
const OVERHEAD_THREAD_BYTES: u64 = 16 << 20;

/// A step of the confinement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// Waiting for the keeper's word.
    Receive = 1,
    /// Giving up supplementary groups.
    Groups = 2,
    /// Becoming the group.
    Group = 3,
    /// Becoming the user.
    User = 4,
    /// Tying its life to the keeper's.
    Tie = 5,
    /// Hiding memory and descriptors from the user's other processes.
    Hide = 6,
    /// Setting resource limits.
    Limits = 7,
    /// Going into the idle class.
    Idle = 8,
    /// Leaving the keeper's standard streams.
    Streams = 9,
    /// The worker's own preparation: its threads.
    Prepare = 10,
    /// The system-call filter.
    Filter = 11,
    /// Telling the keeper.
    Answer = 12,
}

/// The name of a step by its number, for people.
pub fn step_name(step: u32) -> &'static str {
    match step {
        1 => "receive the hand-over",
        2 => "give up groups",
        3 => "become the group",
        4 => "become the user",
        5 => "tie to the keeper",
        6 => "hide from other processes",
        7 => "set limits",
        8 => "go into the idle class",
        9 => "leave the keeper's streams",
        10 => "start threads",
        11 => "apply the system-call filter",
        12 => "answer the keeper",
        _ => "unknown step",
    }
}

/// Why a worker is not confined: it must exit at once.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The keeper ended, or does not need this worker: no fault.
    #[error("the keeper no longer needs this worker")]
    NotNeeded,
    /// A step failed.
    #[error("sandbox: {}: {source}", step_name(*step as u32))]
    Step {
        /// Which one.
        step: Step,
        /// The system's answer.
        source: io::Error,
    },
    /// The filter failed.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

fn step<T, E: Into<io::Error>>(step: Step, result: Result<T, E>) -> Result<T, SandboxError> {
    result.map_err(|error| SandboxError::Step { step, source: error.into() })
}

impl SandboxError {
    fn confined(&self) -> Confined {
        match self {
            Self::NotNeeded => Confined { step: Step::Receive as u32, errno: 0 },
            Self::Step { step, source } => {
                Confined { step: *step as u32, errno: source.raw_os_error().unwrap_or(0) }
            }
            Self::Filter(_) => Confined { step: Step::Filter as u32, errno: 0 },
        }
    }
}

/// What came out of the confinement.
#[derive(Debug)]
pub struct Confinement<T> {
    /// The lease.
    pub lease: Become,
    /// What was prepared.
    pub prepared: T,
    /// The RDMA device, if one was to be opened.
    pub adapter: Option<Result<Adapter, RdmaError>>,
}

/// Waits for the keeper's word on `keeper`, confines this process, and tells the keeper. The process must have one thread.
///
/// `prepare` runs as the lease's user, before the filter: threads are started and pinned there, since afterwards no thread
/// may choose its CPU. Each ends its own start with [`sys::become_idle`]. No foreign code may run in it. On an error the keeper has been told; exit.
///
/// With `rdma`, the device is opened: as the lease's user too, since the kernel ties an open device to who opened it. Without
/// it the lease is served all the same.
pub fn enter<T>(
    keeper: OwnedFd,
    rdma: Option<&Settings>,
    prepare: impl FnOnce(&Become) -> io::Result<T>,
) -> Result<Confinement<T>, SandboxError> {
    let result = confine(&keeper, rdma, prepare);
    let confined = match &result {
        Ok(_) => Confined { step: 0, errno: 0 },
        Err(error) => error.confined(),
    };
    // The keeper gone is the one way that this fails, and then this process is dead already.
    let told = sys::send_with_fd(keeper.as_fd(), &confined.encode(), None);
    let value = result?;
    step(Step::Answer, told)?;
    // The last step: on a busy node a thread of the idle class may not run for seconds, and the keeper waits no longer.
    step(Step::Idle, sys::become_idle())?;
    Ok(value)
}

fn confine<T>(
    keeper: &OwnedFd,
    rdma: Option<&Settings>,
    prepare: impl FnOnce(&Become) -> io::Result<T>,
) -> Result<Confinement<T>, SandboxError> {
    let mut programs = filter::build(std::process::id(), None)?;
    let lease = receive(keeper)?;
    if rdma.is_some() {
        allow_pinning(&lease)?;
    }
    change_user(&lease)?;
    tie_to_keeper(keeper)?;
    step(Step::Hide, prctl::set_dumpable(false))?;
    limit(&lease)?;
    leave_streams()?;
    let adapter = rdma.map(Adapter::open);
    if let Some(Ok(adapter)) = &adapter {
        programs = filter::build(std::process::id(), Some(adapter.device.command_fd()))?;
    }
    let prepared = step(Step::Prepare, prepare(&lease))?;
    filter::apply(&programs)?;
    Ok(Confinement { lease, prepared, adapter })
}

/// A device takes pinned memory only, and the lease has so much. As root; otherwise what the user has.
fn allow_pinning(lease: &Become) -> Result<(), SandboxError> {
    let (_, hard) = step(Step::Limits, getrlimit(Resource::RLIMIT_MEMLOCK))?;
    let most = match geteuid().is_root() {
        true => lease.memory_bytes,
        false => lease.memory_bytes.min(hard),
    };
    step(Step::Limits, setrlimit(Resource::RLIMIT_MEMLOCK, most, most))
}

fn receive(keeper: &OwnedFd) -> Result<Become, SandboxError> {
    let mut bytes = [0; BECOME_LEN];
    loop {
        match sys::recv_with_fd(keeper.as_fd(), &mut bytes) {
            Ok((0, _)) => return Err(SandboxError::NotNeeded),
            Ok((len, _)) => {
                let read = Become::decode(&bytes[..len]);
                return step(Step::Receive, read.ok_or(Errno::EBADMSG));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(keeper.as_fd(), PollFlags::POLLIN)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return step(Step::Receive, Err(error)),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                return Err(SandboxError::NotNeeded);
            }
            Err(error) => return step(Step::Receive, Err(error)),
        }
    }
}

/// As root: becomes the lease's user for good. Otherwise the lease must be this user's own.
fn change_user(lease: &Become) -> Result<(), SandboxError> {
    let (uid, gid) = (Uid::from_raw(lease.uid), Gid::from_raw(lease.gid));
    if !geteuid().is_root() {
        let own = geteuid() == uid;
        return step(Step::User, if own { Ok(()) } else { Err(Errno::EPERM) });
    }
    step(Step::Groups, unistd::setgroups(&[]))?;
    step(Step::Group, unistd::setresgid(gid, gid, gid))?;
    step(Step::User, unistd::setresuid(uid, uid, uid))?;
    // Must not come back: a kernel or a container that lets it would undo everything below.
    let back = unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0));
    step(Step::User, if back.is_ok() { Err(Errno::EPERM) } else { Ok(()) })
}

/// Dies with the keeper. Changing the user has cleared what the keeper set at the start; a keeper that died since then
/// has left its socket closed.
fn tie_to_keeper(keeper: &OwnedFd) -> Result<(), SandboxError> {
    step(Step::Tie, prctl::set_pdeathsig(Signal::SIGKILL))?;
    let mut fds = [PollFd::new(keeper.as_fd(), PollFlags::empty())];
    step(Step::Tie, poll(&mut fds, PollTimeout::ZERO))?;
    let events = fds[0].revents().unwrap_or(PollFlags::POLLERR);
    if events.is_empty() { Ok(()) } else { Err(SandboxError::NotNeeded) }
}

fn limit(lease: &Become) -> Result<(), SandboxError> {
    umask(Mode::from_bits_truncate(0o077));
    let mut limits = vec![
        (Resource::RLIMIT_CORE, 0),
        (Resource::RLIMIT_FSIZE, 0),
        (Resource::RLIMIT_NPROC, THREADS_MAX),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS_MAX),
    ];
    if lease.limit_self {
        let threads = lease.cores().len() as u64;
        let overhead = OVERHEAD_BYTES + threads * OVERHEAD_THREAD_BYTES;
        limits.push((Resource::RLIMIT_DATA, lease.memory_bytes.saturating_add(overhead)));
    }
    for (resource, most) in limits {
        let (_, hard) = step(Step::Limits, getrlimit(resource))?;
        let most = most.min(hard);
        step(Step::Limits, setrlimit(resource, most, most))?;
    }
    Ok(())
}

/// The keeper's log is no place for foreign output, and a function that prints must not fail.
fn leave_streams() -> Result<(), SandboxError> {
    let nowhere = File::options().read(true).write(true).open("/dev/null");
    let nowhere = step(Step::Streams, nowhere)?;
    step(Step::Streams, dup2_stdin(&nowhere))?;
    step(Step::Streams, dup2_stdout(&nowhere))?;
    step(Step::Streams, dup2_stderr(&nowhere))
}
