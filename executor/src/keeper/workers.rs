//! The table of workers: starts them in advance, hands them over to leases, kills them, and says when they are gone.
//!
//! ```text
//!            start             hand_over            Confined
//!   Empty ─────────▶ Waiting ─────────▶ Becoming ───────────▶ Running
//!     ▲                 │ kill, or its own end   │                │
//!     └──── Outcome ── Ended ◀───────────────────┴────────────────┘
//! ```
//!
//! A place is free again only when its process has ended and its group is empty. Called by the keeper's loop alone.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use gleaner_proto::{ids::LeaseId, workers::WORKERS_MAX};

use super::{
    cgroup::{Group, Hierarchy},
    cores::Cores,
    handover::{Become, CONFINED_LEN, Confined},
    idle_group::Rank,
    ipc::{End, StartRefusal},
    reaper::Reaper,
    slot::{Slot, State},
    table::Table,
};
use crate::sys::{self, Program, Start};

/// What a worker itself needs beside the lease's memory: code, stacks, its share of the links.
pub(super) const OVERHEAD_BYTES: u64 = 64 << 20;
/// How long a worker may take to confine itself, its start included.
const BECOME_BOUND_NS: u64 = 5_000_000_000;
/// Hand-overs at a time; more wait in the agent's socket.
pub(super) const BECOMING_MAX: usize = 64;

/// How a worker's processes are kept together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bond {
    /// Its own cgroup with `cgroup.kill`.
    Group,
    /// Its own PID namespace: its init's end is the end of all.
    Namespace,
    /// One process that cannot fork.
    Single,
}

/// A lease to start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub(super) lease: LeaseId,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) cores: u32,
    pub(super) memory_bytes: u64,
}

/// Why a lease did not start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    pub(super) refusal: StartRefusal,
    pub(super) errno: i32,
}

/// What became of a lease's worker.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It serves: the agent's end of its socket.
    Started { lease: LeaseId, pid: u32, socket: OwnedFd },
    /// It never served, and is gone.
    Failed { lease: LeaseId, refusal: StartRefusal, errno: i32, step: u32 },
    /// It served, and is gone.
    Gone { lease: LeaseId, end: End, cpu_ns: u64, memory_peak_bytes: u64 },
}

/// What the node offers to all leases together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    pub(super) cores: u32,
    pub(super) memory_bytes: u64,
}

/// All workers of the node.
#[derive(Debug)]
pub(super) struct Workers {
    slots: Vec<Slot>,
    hierarchy: Hierarchy,
    bond: Bond,
    program: Program,
    null: OwnedFd,
    table: Table,
    cores: Cores,
    offer: Offer,
    rdma_objects: Option<u32>,
    /// A worker ended by itself while it waited: starting another at once would only spin.
    waiting_died: bool,
}

/// What [`Workers`] is made of.
pub(super) struct Parts {
    pub(super) hierarchy: Hierarchy,
    pub(super) bond: Bond,
    pub(super) program: Program,
    pub(super) null: OwnedFd,
    pub(super) table: Table,
    pub(super) cores: Cores,
    pub(super) offer: Offer,
    /// Objects of an RDMA device that a worker may hold for each of its cores; `None`: it opens none.
    pub(super) rdma_objects: Option<u32>,
}

impl Workers {
    /// An empty table of fixed size.
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { hierarchy, bond, program, null, table, cores, offer, rdma_objects } = parts;
        let slots = (0..WORKERS_MAX).map(|_| Slot::EMPTY).collect();
        let waiting_died = false;
        Self {
            slots,
            hierarchy,
            bond,
            program,
            null,
            table,
            cores,
            offer,
            rdma_objects,
            waiting_died,
        }
    }

    /// Workers that wait for a lease.
    pub(super) fn waiting(&self) -> usize {
        self.slots.iter().filter(|slot| slot.is_waiting()).count()
    }

    /// Places whose process or group is not gone.
    pub(super) fn present(&self) -> usize {
        self.slots.iter().filter(|slot| slot.state != State::Empty).count()
    }

    /// Leases that have a worker.
    pub(super) fn leases(&self) -> usize {
        self.slots.iter().filter(|slot| slot.lease.is_some()).count()
    }

    /// Hand-overs under way, with the socket that the answer comes on.
    pub(super) fn becoming(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let becoming = self.slots.iter().enumerate();
        becoming
            .filter(|(_, slot)| {
                matches!(slot.state, State::Becoming { .. }) && slot.killed.is_none()
            })
            .filter_map(|(index, slot)| Some((index, slot.handover.as_ref()?.as_fd())))
    }

    /// Starts one worker in advance.
    pub(super) fn start_one(&mut self) -> io::Result<usize> {
        let free = self.slots.iter().position(|slot| slot.state == State::Empty);
        let index = free.ok_or(io::ErrorKind::StorageFull)?;
        let group = self.hierarchy.make_group(index)?;
        let started = self.start_in(&group);
        let (handover, socket, pid, pidfd) = started.inspect_err(|_| {
            let _ = self.hierarchy.remove(&group);
        })?;
        let process = self.table.process(pid);
        self.slots[index] = Slot {
            state: State::Waiting,
            process,
            pidfd: Some(pidfd),
            group: Some(group),
            handover: Some(handover),
            socket: Some(socket),
            ..Slot::EMPTY
        };
        self.table.set(index, Some((process, 0)))?;
        Ok(index)
    }

    fn start_in(&self, group: &Group) -> io::Result<(OwnedFd, OwnedFd, u32, OwnedFd)> {
        let (handover, theirs) = sys::seqpacket_pair()?;
        let (socket, served) = sys::seqpacket_pair()?;
        let tasks_v1 = self.hierarchy.tasks_v1(group)?;
        self.hierarchy.rank(Rank::Idle);
        let (pid, pidfd) = sys::spawn(&Start {
            program: &self.program,
            inherits: [theirs.as_fd(), served.as_fd()],
            input: self.null.as_fd(),
            cgroup: group.v2(),
            tasks_v1: tasks_v1.each_ref().map(|procs| procs.as_ref().map(AsFd::as_fd)),
            pid_namespace: self.bond == Bond::Namespace,
            user: None,
            is_guest: true,
        })?;
        Ok((handover, socket, pid, pidfd))
    }

    /// Makes a waiting worker, or a new one, the worker of a lease. Its [`Outcome`] follows.
    pub(super) fn hand_over(&mut self, now_ns: u64, wanted: Wanted) -> Result<(), Refused> {
        let mut lease = self.shape(wanted)?;
        let waiting = self.slots.iter().position(Slot::is_waiting);
        let index = match waiting {
            Some(index) => index,
            None => self.start_one().map_err(Refused::system)?,
        };
        if !self.cores.take(wanted.cores, &mut lease) {
            self.cores.give_back(&lease);
            return Err(Refused { refusal: StartRefusal::Shape, errno: 0 });
        }
        let slot = &mut self.slots[index];
        slot.lease = Some(lease);
        slot.state = State::Becoming { until_ns: now_ns.saturating_add(BECOME_BOUND_NS) };
        let process = slot.process;
        let given = slot.give(&lease, self.rdma_objects);
        let noted = self.table.set(index, Some((process, wanted.lease.0)));
        if let Err(error) = given.and(noted) {
            // The worker's end frees the cores and answers the agent.
            self.slots[index].failed =
                Some(Confined { step: 0, errno: error.raw_os_error().unwrap_or(0) });
            self.kill(index, End::Stopped);
        }
        Ok(())
    }

    /// Checks that the lease fits what the node offers beside the other leases.
    fn shape(&self, wanted: Wanted) -> Result<Become, Refused> {
        let (mut cores, mut memory) = (u64::from(wanted.cores), wanted.memory_bytes);
        for lease in self.slots.iter().filter_map(|slot| slot.lease.as_ref()) {
            cores += lease.cores().len() as u64;
            memory = memory.saturating_add(lease.memory_bytes);
        }
        let Offer { cores: cores_max, memory_bytes } = self.offer;
        if wanted.cores == 0
            || wanted.memory_bytes == 0
            || cores > u64::from(cores_max)
            || memory > memory_bytes
        {
            return Err(Refused { refusal: StartRefusal::Shape, errno: 0 });
        }
        let limit_self = !self.hierarchy.limits_memory();
        Ok(Become::new(wanted.lease, wanted.uid, wanted.gid, wanted.memory_bytes, limit_self))
    }

    /// Reads a hand-over's answer. `None`: nothing to tell the agent yet.
    pub(super) fn answer(&mut self, index: usize) -> Option<Outcome> {
        let slot = &mut self.slots[index];
        let handover = slot.handover.as_ref()?;
        let mut bytes = [0; CONFINED_LEN];
        let confined = match sys::recv_with_fd(handover.as_fd(), &mut bytes) {
            Ok((len, _)) => Confined::decode(&bytes[..len]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
            Err(_) => None,
        };
        // Whatever it said, it says no more: a socket that its peer has closed would wake the loop for ever.
        slot.handover = None;
        match (confined, slot.lease, slot.socket.take()) {
            (Some(Confined { step: 0, .. }), Some(lease), Some(socket)) => {
                slot.state = State::Running;
                Some(Outcome::Started { lease: lease.lease_id, pid: slot.process.pid, socket })
            }
            (failed, ..) => {
                slot.failed = failed;
                self.kill(index, End::Stopped);
                None
            }
        }
    }

    /// Kills the hand-overs that take too long; returns when the next one would.
    pub(super) fn overdue(&mut self, now_ns: u64) -> Option<u64> {
        let mut next = None;
        for index in 0..self.slots.len() {
            let State::Becoming { until_ns } = self.slots[index].state else { continue };
            if until_ns <= now_ns {
                self.kill(index, End::Stopped);
            } else {
                next = Some(next.unwrap_or(u64::MAX).min(until_ns));
            }
        }
        next
    }

    /// Kills one lease's worker; false if it has none.
    pub(super) fn kill_lease(&mut self, lease: LeaseId, end: End) -> bool {
        let has = |slot: &Slot| slot.lease.is_some_and(|own| own.lease_id == lease);
        let index = self.slots.iter().position(has);
        if let Some(index) = index {
            self.kill(index, end);
        }
        index.is_some()
    }

    /// Kills every worker.
    pub(super) fn kill_all(&mut self, end: End) {
        // Before the kill: who waits for a turn to die gets it at once.
        self.hierarchy.rank(Rank::Ordinary);
        let at_once = self.hierarchy.kill_all();
        for slot in &mut self.slots {
            slot.note_kill(end);
            if !at_once {
                slot.kill();
            }
        }
        for slot in &self.slots {
            slot.hurry(&self.table);
        }
    }

    fn kill(&mut self, index: usize, end: End) {
        let slot = &mut self.slots[index];
        slot.note_kill(end);
        slot.kill();
        slot.hurry(&self.table);
    }

    /// Notes which workers have ended. What they leave is [`settle`](Self::settle)'s.
    pub(super) fn look(&mut self) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(pidfd) = slot.lives() else { continue };
            let Some(ended) = sys::ended(slot.process.pid, pidfd) else { continue };
            self.waiting_died |= slot.is_waiting();
            slot.state = State::Ended { ended, served: slot.state == State::Running };
            slot.handover = None;
            // A stale entry names a process that is gone: harmless.
            let _ = self.table.set(index, None);
        }
    }

    /// One that has not ended yet, to wait for.
    pub(super) fn living(&self) -> Option<BorrowedFd<'_>> {
        self.slots.iter().find_map(Slot::lives)
    }

    /// Processes that are left: at least so many.
    pub(super) fn remaining(&self) -> usize {
        match self.slots.iter().filter_map(Slot::lives).count() {
            0 => usize::from(self.hierarchy.is_populated()),
            living => living,
        }
    }

    /// Memory that the leases' ended processes had at most.
    pub(super) fn freed_bytes(&self) -> u64 {
        let of = |slot: &Slot| match slot.state {
            State::Ended { ended, .. } if slot.lease.is_some() => ended.resident_peak_bytes,
            _ => 0,
        };
        self.slots.iter().map(of).sum()
    }

    /// Frees the places of those that ended and whose group is empty too, and has them reaped; returns the outcome of one
    /// that had a lease. Call until `None`.
    pub(super) fn settle(&mut self, reaper: &Reaper) -> Option<Outcome> {
        for index in 0..self.slots.len() {
            let State::Ended { ended, served } = self.slots[index].state else { continue };
            let slot = &self.slots[index];
            // Before its group goes, which knows.
            let outcome = slot.lease.map(|lease| slot.outcome(&lease, &ended, served));
            if slot.group.as_ref().is_some_and(|group| self.hierarchy.remove(group).is_err()) {
                // Something of it still ends, or got away from its main process: again.
                slot.group.as_ref().map(Group::kill);
                continue;
            }
            let slot = std::mem::replace(&mut self.slots[index], Slot::EMPTY);
            slot.pidfd.into_iter().for_each(|pidfd| reaper.bury(pidfd));
            if let Some(lease) = slot.lease {
                self.cores.give_back(&lease);
            }
            if outcome.is_some() {
                return outcome;
            }
        }
        None
    }

    /// Whether a worker has ended by itself while it waited, since this was last asked.
    pub(super) fn take_waiting_died(&mut self) -> bool {
        std::mem::take(&mut self.waiting_died)
    }

    /// Places that wait for their group to be empty.
    pub(super) fn lingering(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.state, State::Ended { .. }))
    }

    /// The groups go with the keeper.
    pub(super) fn remove_groups(&self) {
        self.hierarchy.remove_leftovers();
        self.hierarchy.remove_all();
    }
}

impl Refused {
    fn system(error: io::Error) -> Self {
        let full = error.kind() == io::ErrorKind::StorageFull && error.raw_os_error().is_none();
        let refusal = if full { StartRefusal::Full } else { StartRefusal::System };
        Self { refusal, errno: error.raw_os_error().unwrap_or(0) }
    }
}
