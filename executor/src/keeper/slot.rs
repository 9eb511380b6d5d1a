//! One place in the table of [workers](super::workers): a process from its start to its end, and what it has of the keeper's.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use gleaner_proto::workers::Process;

use super::{
    cgroup::Group,
    handover::{Become, Confined},
    ipc::{End, StartRefusal},
    table::Table,
    workers::{OVERHEAD_BYTES, Outcome},
};
use crate::sys::{self, Ended};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Empty,
    Waiting,
    Becoming {
        until_ns: u64,
    },
    Running,
    /// All its threads are gone; `served` tells whether the agent was told `Started`.
    Ended {
        ended: Ended,
        served: bool,
    },
}

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) state: State,
    pub(super) process: Process,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) group: Option<Group>,
    /// To the worker, until it is confined.
    pub(super) handover: Option<OwnedFd>,
    /// The agent's end, until the agent has it.
    pub(super) socket: Option<OwnedFd>,
    pub(super) lease: Option<Become>,
    /// Why the keeper killed it, if it did.
    pub(super) killed: Option<End>,
    /// What the worker said about its own confinement, if that failed.
    pub(super) failed: Option<Confined>,
}

impl Slot {
    /// Nobody.
    pub(super) const EMPTY: Self = Self {
        state: State::Empty,
        process: Process { pid: 0, start: 0 },
        pidfd: None,
        group: None,
        handover: None,
        socket: None,
        lease: None,
        killed: None,
        failed: None,
    };

    /// It waits for a lease, and nobody has killed it.
    pub(super) fn is_waiting(&self) -> bool {
        self.state == State::Waiting && self.killed.is_none()
    }

    /// Its process, until that has ended.
    pub(super) fn lives(&self) -> Option<BorrowedFd<'_>> {
        let ended = matches!(self.state, State::Ended { .. });
        self.pidfd.as_ref().filter(|_| !ended).map(AsFd::as_fd)
    }

    /// It is killed now, and why: the first reason counts.
    pub(super) fn note_kill(&mut self, end: End) {
        if !matches!(self.state, State::Empty | State::Ended { .. }) {
            self.killed.get_or_insert(end);
        }
    }

    /// Kills its processes: the one error there can be is that they are dead.
    pub(super) fn kill(&self) {
        let at_once = self.group.as_ref().is_some_and(Group::kill);
        if let (false, Some(pidfd)) = (at_once, self.lives()) {
            let _ = sys::pidfd_signal(pidfd, libc::SIGKILL);
        }
    }

    /// Lets the killed process die now: in the idle class it would do so when the node's own work leaves it a moment.
    pub(super) fn hurry(&self, table: &Table) {
        if self.lives().is_some() {
            sys::hurry(table.proc_dir(), self.process.pid);
        }
    }

    /// Limits the group and sends the hand-over.
    pub(super) fn give(&self, lease: &Become, rdma_objects: Option<u32>) -> io::Result<()> {
        if let Some(group) = &self.group {
            group.limit_memory(lease.memory_bytes.saturating_add(OVERHEAD_BYTES))?;
            if let Some(objects) = rdma_objects {
                group.limit_rdma(objects.saturating_mul(lease.cores().len() as u32))?;
            }
        }
        let handover = self.handover.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        sys::send_with_fd(handover.as_fd(), &lease.encode(), None)
    }

    /// What the agent is told of its lease.
    pub(super) fn outcome(&self, lease: &Become, ended: &Ended, served: bool) -> Outcome {
        let lease = lease.lease_id;
        if served {
            let group = self.group.as_ref();
            let peak = group.and_then(Group::memory_peak);
            return Outcome::Gone {
                lease,
                end: self.killed.unwrap_or_else(|| end_of(ended, group)),
                cpu_ns: ended.cpu_ns,
                memory_peak_bytes: peak.unwrap_or(ended.resident_peak_bytes),
            };
        }
        let (refusal, errno, step) = match self.failed {
            Some(Confined { step: 0, errno }) => (StartRefusal::System, errno, 0),
            Some(Confined { step, errno }) => (StartRefusal::Sandbox, errno, step),
            None => (StartRefusal::Died, 0, 0),
        };
        Outcome::Failed { lease, refusal, errno, step }
    }
}

/// How a worker ended that the keeper did not kill.
fn end_of(ended: &Ended, group: Option<&Group>) -> End {
    match (ended.exit, ended.signal) {
        (Some(status), _) => End::Exited(status),
        (None, Some(libc::SIGKILL)) if group.is_some_and(Group::ran_out_of_memory) => {
            End::OutOfMemory
        }
        (None, signal) => End::Signalled(signal.unwrap_or(0)),
    }
}
