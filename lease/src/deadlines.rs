//! The keeper's deadlines: which lease must be dead by when, in a table of fixed size that never allocates.
//!
//! Called by `executor/src/keeper` alone: [`Deadlines::tick`] before each message that it takes and whenever
//! [`Deadlines::next`] has come, so that a keeper that was stopped kills what is overdue before it starts anything.
//! The agent proposes, this table decides: a deadline that reaches too far ahead is cut to the site's bound, and
//! nothing starts under a grant that has ended or was fenced. Must not know processes: killing is the keeper's.

use std::time::Duration;

use gleaner_proto::ids::{Epoch, LeaseId};

use crate::clock::Stamp;

/// How far ahead of now an agent may set deadlines: the site's own bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// The longest grant.
    pub grant_max: Duration,
    /// The longest lease without a renewal.
    pub lease_max: Duration,
}

/// A lease whose worker must be killed now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The lease.
    pub lease: LeaseId,
    /// Its grant.
    pub epoch: Epoch,
    /// Which end it met.
    pub why: Why,
}

/// Which end a lease met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its own deadline.
    Deadline,
    /// Its grant's end.
    GrantEnd,
    /// Its epoch was fenced, or another grant took its place.
    Fenced,
}

/// Why the table refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeadlineError {
    /// The epoch is over, or was never granted.
    #[error(
        "epoch {0} is not being served here: it ended, was fenced, was not granted, or a batch job has the node"
    )]
    Epoch(Epoch),
    /// The moment has passed already.
    #[error("the deadline passed before it was set")]
    Past,
    /// No slot is free.
    #[error("all {0} slots hold a lease: end one first")]
    Full(usize),
    /// The lease has a slot already.
    #[error("lease {0} has been started already")]
    Known(LeaseId),
    /// The lease has no slot, or its end has come.
    #[error("lease {0} is not running, or its end has come")]
    Unknown(LeaseId),
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    lease: LeaseId,
    epoch: Epoch,
    deadline: Stamp,
    /// Its end has passed, whatever comes after.
    over: bool,
    /// Its end has been told; it stays until the keeper says that it is gone.
    told: bool,
}

/// The table, for at most `N` leases.
#[derive(Debug)]
pub struct Deadlines<const N: usize> {
    bounds: Bounds,
    epoch: Epoch,
    until: Stamp,
    fenced: Epoch,
    held: bool,
    slots: [Option<Slot>; N],
}

impl<const N: usize> Deadlines<N> {
    /// An empty table: nothing may start.
    pub const fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            epoch: Epoch(0),
            until: Stamp(0),
            fenced: Epoch(0),
            held: false,
            slots: [None; N],
        }
    }

    /// Takes a grant, or another end of the present one; returns the end that holds. An epoch that replaces another makes
    /// the other's leases due. If the present one's end has passed, because this keeper was stopped while its agent
    /// went on, its leases are due all the same, and the epoch goes on without them.
    pub fn grant(
        &mut self,
        now: Stamp,
        epoch: Epoch,
        until: Stamp,
    ) -> Result<Stamp, DeadlineError> {
        if self.held || epoch <= self.fenced || epoch < self.epoch {
            return Err(DeadlineError::Epoch(epoch));
        }
        if until <= now {
            return Err(DeadlineError::Past);
        }
        self.end_overdue(now);
        self.epoch = epoch;
        self.until = until.min(now.after(self.bounds.grant_max));
        Ok(self.until)
    }

    /// Takes a lease before its worker starts; returns the deadline that holds.
    pub fn start(
        &mut self,
        now: Stamp,
        lease: LeaseId,
        epoch: Epoch,
        deadline: Stamp,
    ) -> Result<Stamp, DeadlineError> {
        if !self.serves(now, epoch) {
            return Err(DeadlineError::Epoch(epoch));
        }
        if deadline <= now {
            return Err(DeadlineError::Past);
        }
        if self.slots.iter().flatten().any(|slot| slot.lease == lease) {
            return Err(DeadlineError::Known(lease));
        }
        let deadline = deadline.min(now.after(self.bounds.lease_max));
        let free =
            self.slots.iter_mut().find(|slot| slot.is_none()).ok_or(DeadlineError::Full(N))?;
        *free = Some(Slot { lease, epoch, deadline, over: false, told: false });
        Ok(deadline.min(self.until))
    }

    /// Moves a running lease's deadline; returns the one that holds. One that has passed is not revived.
    pub fn extend(
        &mut self,
        now: Stamp,
        lease: LeaseId,
        deadline: Stamp,
    ) -> Result<Stamp, DeadlineError> {
        let unknown = DeadlineError::Unknown(lease);
        let index = self.slots.iter().position(|slot| slot.is_some_and(|slot| slot.lease == lease));
        let index = index.ok_or(unknown)?;
        let slot = self.slots[index].ok_or(unknown)?;
        if slot.told || self.end_of(&slot).0 <= now {
            return Err(unknown);
        }
        let deadline = deadline.min(now.after(self.bounds.lease_max));
        self.slots[index] = Some(Slot { deadline, ..slot });
        Ok(deadline.min(self.until))
    }

    /// Epochs up to this one are dead from now on: their leases are due, and nothing of them starts again.
    pub fn fence(&mut self, epoch: Epoch) {
        self.fenced = self.fenced.max(epoch);
    }

    /// [`Deadlines::fence`] of whatever was granted last; returns that epoch.
    pub fn fence_all(&mut self) -> Epoch {
        self.fence(self.epoch);
        self.epoch
    }

    /// A batch job has the node (or has left it): while it is held nothing is granted and nothing starts, whatever epoch.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// The keeper's own kill of a lease, or its worker's end: the slot is free again.
    pub fn gone(&mut self, lease: LeaseId) -> bool {
        let slot = self.slots.iter_mut().find(|slot| slot.is_some_and(|slot| slot.lease == lease));
        slot.is_some_and(|slot| slot.take().is_some())
    }

    /// One lease that must be killed now; each is told once. Call until `None`.
    pub fn tick(&mut self, now: Stamp) -> Option<Due> {
        for index in 0..N {
            let Some(slot) = self.slots[index] else {
                continue;
            };
            let (end, why) = self.end_of(&slot);
            if !slot.told && end <= now {
                self.slots[index] = Some(Slot { told: true, ..slot });
                return Some(Due { lease: slot.lease, epoch: slot.epoch, why });
            }
        }
        None
    }

    /// When [`Deadlines::tick`] has something to tell next: what the keeper's timer is set to.
    pub fn next(&self) -> Option<Stamp> {
        self.slots.iter().flatten().filter(|slot| !slot.told).map(|slot| self.end_of(slot).0).min()
    }

    /// The epoch being served and its end, if there is one at `now`.
    pub fn serving(&self, now: Stamp) -> Option<(Epoch, Stamp)> {
        self.serves(now, self.epoch).then_some((self.epoch, self.until))
    }

    /// Makes final what has met its end by now.
    fn end_overdue(&mut self, now: Stamp) {
        for index in 0..N {
            if let Some(slot) = self.slots[index]
                && self.end_of(&slot).0 <= now
            {
                self.slots[index] = Some(Slot { over: true, ..slot });
            }
        }
    }

    fn serves(&self, now: Stamp, epoch: Epoch) -> bool {
        !self.held && epoch == self.epoch && epoch > self.fenced && now < self.until
    }

    /// When a lease is over, and which of its ends comes first.
    fn end_of(&self, slot: &Slot) -> (Stamp, Why) {
        if slot.over || slot.epoch != self.epoch || slot.epoch <= self.fenced {
            (Stamp(0), Why::Fenced)
        } else if self.until < slot.deadline {
            (self.until, Why::GrantEnd)
        } else {
            (slot.deadline, Why::Deadline)
        }
    }
}
