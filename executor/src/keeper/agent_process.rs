//! The keeper's side of the agent: starts it, speaks with it, starts it again after a bounded back-off.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{
    ipc::{Notice, Order, Socket},
    log::say,
    reaper::Reaper,
};
use crate::sys::{self, Program, Start};

const BACK_OFF_MIN_NS: u64 = 20_000_000;
const BACK_OFF_MAX_NS: u64 = 5_000_000_000;
/// An agent that lived this long was well: the back-off starts anew.
const WELL_NS: u64 = 10_000_000_000;

#[derive(Debug)]
struct Live {
    pid: u32,
    pidfd: OwnedFd,
    socket: Socket,
    started_ns: u64,
}

/// The agent, or the wait for the next one.
#[derive(Debug)]
pub(super) struct AgentProcess {
    program: Program,
    user: Option<(u32, u32)>,
    null: OwnedFd,
    listener: OwnedFd,
    live: Option<Live>,
    back_off_ns: u64,
    not_before_ns: u64,
}

impl AgentProcess {
    /// None yet. `listener` is the local clients' socket, which outlives each agent.
    pub(super) fn new(
        program: Program,
        user: Option<(u32, u32)>,
        null: OwnedFd,
        listener: OwnedFd,
    ) -> Self {
        let (back_off_ns, not_before_ns) = (BACK_OFF_MIN_NS, 0);
        Self { program, user, null, listener, live: None, back_off_ns, not_before_ns }
    }

    /// Starts the agent if there is none and it is time; returns when it will be. True: a new one runs.
    pub(super) fn ensure(&mut self, now_ns: u64) -> (bool, Option<u64>) {
        if self.live.is_some() {
            return (false, None);
        }
        if now_ns < self.not_before_ns {
            return (false, Some(self.not_before_ns));
        }
        match self.start(now_ns) {
            Ok(live) => {
                self.live = Some(live);
                (true, None)
            }
            Err(error) => {
                say(format_args!("the agent does not start: {error}; trying again"));
                (false, Some(self.wait(now_ns)))
            }
        }
    }

    fn start(&self, now_ns: u64) -> io::Result<Live> {
        let (socket, theirs) = Socket::pair()?;
        let (pid, pidfd) = sys::spawn(&Start {
            program: &self.program,
            inherits: [theirs.as_fd(), self.listener.as_fd()],
            input: self.null.as_fd(),
            cgroup: None,
            tasks_v1: [None, None],
            pid_namespace: false,
            user: self.user,
            is_guest: false,
        })?;
        Ok(Live { pid, pidfd, socket, started_ns: now_ns })
    }

    fn wait(&mut self, now_ns: u64) -> u64 {
        self.not_before_ns = now_ns + self.back_off_ns;
        self.back_off_ns = (self.back_off_ns * 2).min(BACK_OFF_MAX_NS);
        self.not_before_ns
    }

    /// Notes whether the agent has ended since the last look, and has it reaped.
    pub(super) fn look(&mut self, reaper: &Reaper, now_ns: u64) -> bool {
        let has_ended = |live: &mut Live| sys::ended(live.pid, live.pidfd.as_fd()).is_some();
        let Some(live) = self.live.take_if(has_ended) else { return false };
        reaper.bury(live.pidfd);
        if now_ns.saturating_sub(live.started_ns) >= WELL_NS {
            self.back_off_ns = BACK_OFF_MIN_NS;
        }
        self.wait(now_ns);
        true
    }

    /// Whether it runs.
    pub(super) fn lives(&self) -> bool {
        self.live.is_some()
    }

    /// What to wait for.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.live.as_ref().map(|live| live.socket.as_fd())
    }

    /// The next order. An agent that closed its socket or speaks nonsense is killed.
    pub(super) fn next_order(&self) -> Option<Order> {
        match self.live.as_ref()?.socket.next_order() {
            Ok(order) => Some(order),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                say(format_args!("killing the agent: its socket: {error}"));
                self.signal(libc::SIGKILL);
                None
            }
        }
    }

    /// Tells the agent. One that has not read for long is killed: its leases end, and the next one starts clean.
    pub(super) fn notify(&self, notice: &Notice, fd: Option<BorrowedFd<'_>>) {
        let Some(live) = &self.live else { return };
        match live.socket.notify(notice, fd) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                say(format_args!("killing the agent: it has not read for long"));
                self.signal(libc::SIGKILL);
            }
            // It is gone; its end is on the way as a signal.
            Err(_) => {}
        }
    }

    /// Signals it.
    pub(super) fn signal(&self, signal: libc::c_int) {
        if let Some(live) = &self.live {
            let _ = sys::pidfd_signal(live.pidfd.as_fd(), signal);
        }
    }
}
