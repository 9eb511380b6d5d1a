//! Processes of the keeper's table: killed only if they still are the ones that it names.

// UNSAFETY: three system calls that no safe library of this program offers.
#![allow(unsafe_code)]

use std::{
    fs,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    time::Instant,
};

use gleaner_proto::workers::{Process, parse_stat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Most threads of one process that are looked at.
const THREADS_MAX: usize = 4096;

/// A process that was alive and the one that the table names, when it was looked at.
#[derive(Debug)]
pub(crate) struct Held {
    pid: u32,
    pidfd: OwnedFd,
}

impl Held {
    /// Takes hold of a process. The handle comes first: what is compared is then what will be killed, even if the pid
    /// is given to another process meanwhile.
    pub(crate) fn take(process: Process) -> Option<Self> {
        let pidfd = pidfd_open(process.pid)?;
        let stat = fs::read(format!("/proc/{}/stat", process.pid)).ok()?;
        let (_, start) = parse_stat(&stat)?;
        let held = Self { pid: process.pid, pidfd };
        // Not by its state: that is its first thread's, and the others may outlive it.
        (start == process.start && !held.gone_by(Instant::now())).then_some(held)
    }

    /// Kills it.
    pub(crate) fn kill(&self) {
        let none = ptr::null::<libc::siginfo_t>();
        let fd = self.pidfd.as_raw_fd();
        // SAFETY: a null siginfo is allowed. An error means that it is gone, or is not ours: then it stays.
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, none, 0) };
    }

    /// Lets its threads die soon: in the idle class they would when the node's own work leaves them a moment. The
    /// process was taken hold of and is not waited for by its stopped or dead keeper: its pid still is its own, or nobody's.
    pub(crate) fn hurry(&self) {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid));
        for task in tasks.into_iter().flatten().flatten().take(THREADS_MAX) {
            if let Some(thread) = task.file_name().to_str().and_then(|name| name.parse().ok()) {
                into_ordinary_class(thread);
            }
        }
    }

    /// Whether it is gone by then.
    pub(crate) fn gone_by(&self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now()).as_millis();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
    }
}

/// Never a real-time class: a dying thread that waits in the kernel for one that it keeps from running would wait for ever.
fn into_ordinary_class(thread: libc::pid_t) {
    let parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the call reads `parameter` only. A thread that is gone needs no hurry.
    unsafe { libc::sched_setscheduler(thread, libc::SCHED_OTHER, &parameter) };
}

fn pidfd_open(pid: u32) -> Option<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as RawFd;
    // SAFETY: a descriptor that is not negative is open, and nobody else owns it.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}
