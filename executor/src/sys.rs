//! The executor's system calls that no safe library offers as the keeper needs them: without allocation, with every flag.
//!
//! The one module of the executor, beside the function loader, that may be unsafe. Called by keeper, agent and sandbox.
//! Decides nothing.

// UNSAFETY: raw system calls; each takes only memory that lives in the caller's frame.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    io::{self, Write},
    mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

pub use gleaner_fabric::passing::{recv_with_fd, send_with_fd};

/// A call's return value, or the system's error.
fn check(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Both ends of a Unix seqpacket socket, close-on-exec, non-blocking.
pub fn seqpacket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: `fds` has room for the two descriptors that the call writes.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so both are open and nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

/// The next connection of a listening socket, close-on-exec, non-blocking.
pub fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the peer's address is not asked for.
    let fd = check(unsafe {
        libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags)
    })?;
    // SAFETY: the call succeeded, so the descriptor is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Nanoseconds of this machine's CLOCK_BOOTTIME.
pub fn boottime_ns() -> u64 {
    clock_ns(libc::CLOCK_BOOTTIME)
}

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable for the call. The clocks that are asked for exist on every supported kernel.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Puts this thread, and all that it starts from now on, into the idle scheduling class.
pub fn become_idle() -> io::Result<()> {
    set_class(0, libc::SCHED_IDLE, 0)
}

fn set_class(thread: libc::pid_t, class: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    // SAFETY: all-zero is a valid parameter.
    let mut parameter: libc::sched_param = unsafe { mem::zeroed() };
    parameter.sched_priority = priority;
    // SAFETY: the call reads `parameter` only.
    check(unsafe { libc::sched_setscheduler(thread, class, &parameter) }).map(drop)
}

/// Locks this process's memory, present and future.
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) })?;
    Ok(())
}

/// Puts this process in the lowest real-time priority. What it starts falls back to the ordinary class.
pub fn become_realtime() -> io::Result<()> {
    set_class(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, 1)
}

/// Most threads of one process that [`hurry`] looks at.
const THREADS_MAX: usize = 4096;

/// Lets every thread of a process that was killed run soon. Threads in the idle class die when they next run, which
/// on a busy node may be seconds later; in the ordinary class they take their turn. Not in a real-time class: a dying
/// thread that waits there for another that it keeps from running would wait for ever. Takes an open `/proc`; allocates
/// nothing. Best effort: needs CAP_SYS_NICE.
pub fn hurry(proc_dir: BorrowedFd<'_>, pid: u32) {
    let mut path = [0u8; 32];
    if write!(&mut path[..31], "{pid}/task").is_err() {
        return;
    }
    // SAFETY: the path is NUL-terminated: its last byte was never written.
    let fd = unsafe {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC;
        libc::openat(proc_dir.as_raw_fd(), path.as_ptr().cast(), flags)
    };
    if fd < 0 {
        return;
    }
    // SAFETY: the descriptor is open, and nobody else owns it.
    let tasks = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut entries = [0u8; 4096];
    for _ in 0..THREADS_MAX {
        // SAFETY: the buffer is writable and has the stated length.
        let read = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                tasks.as_raw_fd(),
                entries.as_mut_ptr(),
                entries.len(),
            )
        };
        if read <= 0 {
            return;
        }
        each_thread(&entries[..read as usize], into_ordinary_class);
    }
}

/// Calls `act` for each entry of a `getdents64` buffer whose name is a number.
fn each_thread(mut entries: &[u8], act: impl Fn(libc::pid_t)) {
    // struct linux_dirent64: u64 inode, i64 offset, u16 length, u8 type, name.
    const NAME_AT: usize = 19;
    while let Some(&[low, high]) = entries.get(16..18) {
        let len = usize::from(u16::from_ne_bytes([low, high]));
        let Some(name) = entries.get(NAME_AT..len) else { return };
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let number = std::str::from_utf8(&name[..end]).ok().and_then(|name| name.parse().ok());
        number.into_iter().for_each(&act);
        entries = &entries[len..];
    }
}

/// One that is gone needs no hurry.
fn into_ordinary_class(thread: libc::pid_t) {
    let _ = set_class(thread, libc::SCHED_OTHER, 0);
}

/// Takes a descriptor that this process's parent left open at a fixed number.
///
/// Called once a number, at the start of `agent` and `worker`, before anything else opens descriptors.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD touches no memory, and fails if the descriptor is not open.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and by the callers' rule nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A handle on a process that stays the same process when its pid is given to another.
pub fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as libc::c_int)?;
    // SAFETY: the call succeeded, so the descriptor is open and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal to the process of a handle. One that is gone already is no error.
pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: libc::c_int) -> io::Result<()> {
    let none = ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    let sent =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    match check(sent as libc::c_int) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result.map(drop),
    }
}

/// A child that has ended, as the kernel accounts for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Which child.
    pub pid: u32,
    /// Its exit status, if it exited by itself.
    pub exit: Option<i32>,
    /// The signal, if one ended it.
    pub signal: Option<i32>,
    /// User and system time of all its threads.
    pub cpu_ns: u64,
    /// Its largest resident size.
    pub resident_peak_bytes: u64,
}

/// Whether this child has ended, all its threads; it stays a zombie until [`reap`]. Never blocks, and touches no lock that
/// the child may hold.
pub fn ended(pid: u32, pidfd: BorrowedFd<'_>) -> Option<Ended> {
    // SAFETY: all-zero is a valid siginfo and a valid rusage.
    let (mut info, mut usage): (libc::siginfo_t, libc::rusage) = unsafe { mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: both out-parameters live through the call. The system call, since libc's function has no rusage.
    let asked = unsafe {
        libc::syscall(
            libc::SYS_waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            &raw mut info,
            options,
            &raw mut usage,
        )
    };
    // SAFETY: the call filled both in as SIGCHLD's, or left them zero.
    let (found, status) = unsafe { (info.si_pid(), info.si_status()) };
    if asked < 0 || found == 0 {
        return None;
    }
    let nanos =
        |time: libc::timeval| time.tv_sec as u64 * 1_000_000_000 + time.tv_usec as u64 * 1000;
    let exited = info.si_code == libc::CLD_EXITED;
    Some(Ended {
        pid,
        exit: exited.then_some(status),
        signal: (!exited).then_some(status),
        cpu_ns: nanos(usage.ru_utime) + nanos(usage.ru_stime),
        resident_peak_bytes: usage.ru_maxrss as u64 * 1024,
    })
}

/// Takes a child that has [`ended`] off the kernel's table of processes. May spin in the kernel for as long as another
/// thread that looks at the same part of `/proc` does not get on: never from a thread in a real-time class.
pub fn reap(pidfd: BorrowedFd<'_>) {
    let info = ptr::null_mut::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed.
    unsafe { libc::waitid(libc::P_PIDFD, pidfd.as_raw_fd() as libc::id_t, info, libc::WEXITED) };
}

/// A pipe that carries descriptors of this same process from one thread to another: neither end allocates or locks.
pub fn descriptor_pipe() -> io::Result<(DescriptorSender, DescriptorReceiver)> {
    let (receiver, sender) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(&sender, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok((DescriptorSender(sender), DescriptorReceiver(receiver)))
}

/// One end of a [`descriptor_pipe`].
#[derive(Debug)]
pub struct DescriptorSender(OwnedFd);

/// The other end.
#[derive(Debug)]
pub struct DescriptorReceiver(OwnedFd);

impl DescriptorSender {
    /// Gives a descriptor away. A full pipe closes it.
    pub fn send(&self, fd: OwnedFd) -> io::Result<()> {
        nix::unistd::write(&self.0, &fd.as_raw_fd().to_ne_bytes())?;
        std::mem::forget(fd);
        Ok(())
    }
}

impl DescriptorReceiver {
    /// Waits for the next one; `None` when the sender is gone.
    pub fn receive(&self) -> Option<OwnedFd> {
        let mut number = [0; mem::size_of::<RawFd>()];
        loop {
            return match nix::unistd::read(&self.0, &mut number) {
                // A pipe's short writes are whole.
                // SAFETY: the sender owned it and forgot it.
                Ok(4) => Some(unsafe { OwnedFd::from_raw_fd(RawFd::from_ne_bytes(number)) }),
                Err(nix::errno::Errno::EINTR) => continue,
                _ => None,
            };
        }
    }
}

/// A program with its arguments and environment, laid out for `execveat` before the keeper stops allocating.
#[derive(Debug)]
pub struct Program {
    executable: OwnedFd,
    // The pointers below point into these.
    _words: Vec<CString>,
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
}

impl Program {
    /// The executable is a descriptor, so that an upgrade of the file does not mix two versions.
    pub fn new(executable: OwnedFd, arguments: Vec<CString>, environment: Vec<CString>) -> Self {
        let list = |words: &[CString]| -> Vec<*const libc::c_char> {
            words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
        };
        let (arguments_list, environment_list) = (list(&arguments), list(&environment));
        let words = arguments.into_iter().chain(environment).collect();
        Self { executable, _words: words, arguments: arguments_list, environment: environment_list }
    }
}

/// How a child starts.
#[derive(Debug)]
pub struct Start<'a> {
    /// What it runs.
    pub program: &'a Program,
    /// Its descriptors 3 and 4.
    pub inherits: [BorrowedFd<'a>; 2],
    /// Its standard input.
    pub input: BorrowedFd<'a>,
    /// The cgroup v2 directory that it starts in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The v1 controllers' `tasks` that it enters: the one thread that it still is.
    pub tasks_v1: [Option<BorrowedFd<'a>>; 2],
    /// In its own PID namespace, as its init.
    pub pid_namespace: bool,
    /// The user and group that it becomes.
    pub user: Option<(u32, u32)>,
    /// The first that the kernel kills when memory runs out, and the last that it gives a CPU.
    pub is_guest: bool,
}

/// The kernel's `struct clone_args`, up to the field that names a cgroup.
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Starts a child that dies with this thread. Allocates nothing.
pub fn spawn(start: &Start<'_>) -> io::Result<(u32, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = start.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    if start.pid_namespace {
        args.flags |= libc::CLONE_NEWPID as u64;
    }
    // SAFETY: plain system calls.
    let parent = unsafe { libc::getpid() };
    // SAFETY: without CLONE_VM this is a fork: the child runs on its own copy of this frame, and does nothing but
    // system calls until it becomes another program. `args` and `pidfd` live through the call.
    let pid =
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, mem::size_of::<CloneArgs>()) };
    if pid == 0 {
        // SAFETY: this is the child, whose one thread is this one.
        unsafe { child(start, parent) }
    }
    let pid = check(pid as libc::c_int)?;
    // SAFETY: clone3 succeeded with CLONE_PIDFD: the descriptor is open and nobody else owns it.
    Ok((pid as u32, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// The child's path to its own program. Leaves by `execveat` or `_exit` only.
///
/// # Safety
/// Only in a child just forked: makes system calls only, and takes all descriptors of the process.
unsafe fn child(start: &Start<'_>, parent: libc::pid_t) -> ! {
    // SAFETY: system calls on descriptors and constants; every pointer is to a live local or to `Program`'s own words.
    unsafe {
        let fail = |value: libc::c_int| {
            if value < 0 {
                libc::_exit(126)
            }
        };
        // By `tasks`: a thread that moves itself waits for nobody. Through `cgroup.procs` the kernel waits for RCU, some 10 ms, with
        // every group locked: a vacate that comes just then waits as long before it kills.
        for tasks in start.tasks_v1.into_iter().flatten() {
            fail(libc::write(tasks.as_raw_fd(), c"0".as_ptr().cast(), 1) as libc::c_int);
        }
        libc::setsid();
        if start.is_guest {
            write_file(c"/proc/self/oom_score_adj", b"1000");
            // Where there is no idle group: the session's own counts as little as it can.
            write_file(c"/proc/self/autogroup", b"19");
        }
        let mut none: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&mut none);
        fail(libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut()));
        if let Some((uid, gid)) = start.user {
            fail(libc::syscall(libc::SYS_setgroups, 0, ptr::null::<libc::gid_t>()) as libc::c_int);
            fail(libc::syscall(libc::SYS_setresgid, gid, gid, gid) as libc::c_int);
            fail(libc::syscall(libc::SYS_setresuid, uid, uid, uid) as libc::c_int);
        }
        fail(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
        // After the change of user, which clears it. In a PID namespace the parent has no pid; there the child finds its
        // socket closed if the keeper died before this line.
        fail(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL));
        if !start.pid_namespace && libc::getppid() != parent {
            libc::_exit(125);
        }
        fail(libc::chdir(c"/".as_ptr()));
        // Out of the way first: a source may be one of the targets.
        let high = |fd: BorrowedFd<'_>| libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 100);
        let (three, four) = (high(start.inherits[0]), high(start.inherits[1]));
        let executable = high(start.program.executable.as_fd());
        fail(three.min(four).min(executable));
        fail(libc::dup2(start.input.as_raw_fd(), 0));
        fail(libc::dup2(three, 3));
        fail(libc::dup2(four, 4));
        // Whatever else the keeper has open, or was started with: the child must not find it.
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        fail(libc::syscall(libc::SYS_close_range, 5, libc::c_uint::MAX, flags) as libc::c_int);
        libc::syscall(
            libc::SYS_execveat,
            executable,
            c"".as_ptr(),
            start.program.arguments.as_ptr(),
            start.program.environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
        libc::_exit(127)
    }
}

/// Writes a few bytes into a file that exists; what cannot be written stays as it is.
///
/// # Safety
/// None beyond the calls' own: for [`child`], which must not allocate.
unsafe fn write_file(path: &CStr, bytes: &[u8]) {
    // SAFETY: path is NUL-terminated, bytes has the stated length.
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, bytes.as_ptr().cast(), bytes.len());
            libc::close(fd);
        }
    }
}

/// Watches a descriptor in the agent's runtime.
pub fn watch(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as the runtime holds it.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(io::Error::from)
}

/// Descriptors to wait for, in a table of fixed size.
#[derive(Debug)]
pub struct Waits<const N: usize> {
    fds: [libc::pollfd; N],
    len: usize,
}

impl<const N: usize> Default for Waits<N> {
    fn default() -> Self {
        Self { fds: [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; N], len: 0 }
    }
}

impl<const N: usize> Waits<N> {
    /// Adds a descriptor; beyond `N` it is left out, and is looked at when one of the others wakes.
    pub fn push(&mut self, fd: BorrowedFd<'_>) {
        if let Some(place) = self.fds.get_mut(self.len) {
            place.fd = fd.as_raw_fd();
            self.len += 1;
        }
    }

    /// Sleeps until one of them can be read or is closed, at most `bound_ns` (`None`: for ever). Returns how many; a
    /// signal counts as none.
    pub fn wait(&mut self, bound_ns: Option<u64>) -> io::Result<usize> {
        let bound = bound_ns.map(|ns| libc::timespec {
            tv_sec: (ns / 1_000_000_000).min(i32::MAX as u64) as libc::time_t,
            tv_nsec: (ns % 1_000_000_000) as libc::c_long,
        });
        let bound = bound.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the first `len` entries are initialised and writable; the bound outlives the call.
        let ready = unsafe {
            libc::ppoll(self.fds.as_mut_ptr(), self.len as libc::nfds_t, bound, ptr::null())
        };
        match check(ready) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            result => result.map(|ready| ready as usize),
        }
    }
}
