//! What the core remembers of one node, beside the lease book's own entry.

use std::collections::BTreeMap;

use gleaner_lease::clock::{Instance, Stamp};
use gleaner_proto::ids::Uid;

use super::hold::Holds;
use crate::{
    event::{Conn, Join},
    picture::NodeView,
    record::CoreCounts,
    refusal::Expected,
};

/// One node.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// Slurm's view; `None`: Slurm does not have it, or has not been seen.
    pub(super) view: Option<NodeView>,
    /// Whether the policy offers it.
    pub(super) opted_in: bool,
    /// Whether the policy's reserve keeps it free.
    pub(super) withheld: bool,
    /// Since when Slurm calls it idle.
    pub(super) idle_since: Option<Stamp>,
    /// When its last epilog ran, if Slurm has not called it idle since.
    pub(super) epilog: Option<Stamp>,
    /// For which jobs it is held.
    pub(super) holds: Holds,
    /// What jobs' limits and plans say of it.
    pub(super) plan: Plan,
    /// The executor that joined last.
    pub(super) executor: Option<Executor>,
    /// A trusted executor has served it: no other user's may.
    pub(super) trusted_only: bool,
    /// What its executor has reported.
    pub(super) inbox: Inbox,
    /// The figures that were last recorded; `None`: none were.
    pub(super) recorded: Option<CoreCounts>,
}

/// What Slurm's jobs say of a node's future.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// When the last of its running jobs reaches its limit; `None`: nothing runs, or something without limit.
    pub(super) idle_at: Option<Expected>,
    /// Something runs there without limit.
    pub(super) unlimited: bool,
    /// When the next job is planned to start, Unix seconds.
    pub(super) planned_s: Option<i64>,
}

/// An executor, as it registered.
#[derive(Debug, Clone)]
pub(super) struct Executor {
    pub(super) join: Join,
    /// Its stream; `None`: lost.
    pub(super) conn: Option<Conn>,
}

impl Executor {
    /// Whether it runs this user's leases.
    pub(super) fn serves(&self, uid: Uid) -> bool {
        self.join.single_user.is_none_or(|only| only == uid)
    }
}

impl Node {
    /// The stream of its executor.
    pub(super) fn conn(&self) -> Option<Conn> {
        self.executor.as_ref().and_then(|executor| executor.conn)
    }

    /// When its idleness ends, as far as plans say. Unix seconds.
    pub(super) fn planned_s(&self) -> Option<i64> {
        let view = self.view.as_ref().and_then(|view| view.planned_start_unix_s);
        [view, self.plan.planned_s].into_iter().flatten().min()
    }
}

/// An executor's numbered events: applied once, acknowledged in order once stored.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    instance: Instance,
    /// Everything up to here was acknowledged.
    acked: u64,
    /// What came after: stored, or still being stored.
    stored: BTreeMap<u64, bool>,
    started: bool,
}

/// What to do with an event that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrived {
    /// Apply it, store it.
    New,
    /// It was applied, and is acknowledged in its turn.
    Underway,
    /// It is stored: acknowledge it again.
    Stored,
}

impl Inbox {
    /// An agent joined: a new life counts its events from 1 again.
    pub(super) fn joined(&mut self, instance: Instance) {
        if self.instance != instance {
            *self = Self { instance, ..Self::default() };
        }
    }

    /// The life that the numbers belong to.
    pub(super) fn instance(&self) -> Instance {
        self.instance
    }

    /// An event arrived; the first that this harvester hears follows on what an earlier one acknowledged.
    pub(super) fn arrived(&mut self, seq: u64) -> Arrived {
        if !self.started {
            (self.started, self.acked) = (true, seq.saturating_sub(1));
        }
        if seq <= self.acked {
            return Arrived::Stored;
        }
        if self.stored.contains_key(&seq) {
            return Arrived::Underway;
        }
        self.stored.insert(seq, false);
        Arrived::New
    }

    /// An event was stored. Returns what is to be acknowledged, in order.
    pub(super) fn stored(&mut self, instance: Instance, seq: u64) -> Vec<u64> {
        if instance != self.instance {
            return Vec::new();
        }
        if let Some(stored) = self.stored.get_mut(&seq) {
            *stored = true;
        }
        let mut acks = Vec::new();
        while self.stored.get(&(self.acked + 1)) == Some(&true) {
            self.acked += 1;
            self.stored.remove(&self.acked);
            acks.push(self.acked);
        }
        acks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Instance = Instance([1; 16]);

    fn inbox() -> Inbox {
        let mut inbox = Inbox::default();
        inbox.joined(LIFE);
        inbox
    }

    #[test]
    fn acknowledges_in_order_and_only_what_is_stored() {
        let mut inbox = inbox();
        assert_eq!(inbox.arrived(1), Arrived::New);
        assert_eq!(inbox.arrived(2), Arrived::New);
        assert_eq!(inbox.arrived(2), Arrived::Underway);
        assert_eq!(inbox.stored(LIFE, 2), []);
        assert_eq!(inbox.stored(LIFE, 1), [1, 2]);
        assert_eq!(inbox.arrived(1), Arrived::Stored);
    }

    #[test]
    fn goes_on_where_an_earlier_harvester_stopped_and_anew_with_a_new_life() {
        let mut inbox = inbox();
        assert_eq!(inbox.arrived(40), Arrived::New);
        assert_eq!(inbox.stored(LIFE, 40), [40]);
        let other = Instance([2; 16]);
        inbox.joined(other);
        assert_eq!(inbox.arrived(1), Arrived::New);
        assert_eq!(inbox.stored(LIFE, 1), [], "an answer for the earlier life");
        assert_eq!(inbox.stored(other, 1), [1]);
    }
}
