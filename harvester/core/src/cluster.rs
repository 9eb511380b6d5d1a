//! The core itself: one struct, one entry.

use std::time::Duration;

use gleaner_proto::ids::NodeName;

use crate::{
    effect::Effect,
    event::Event,
    policy::Policy,
    record::Restored,
    view::{LeaseInfo, NodeInfo, Status},
};

/// At least this often the core wants [`Event::Tick`].
pub const TICK: Duration = Duration::from_millis(200);

/// The cluster as the harvester knows it, and every decision about it.
#[derive(Debug)]
pub struct Core {
    policy: Policy,
}

impl Core {
    /// A harvester that starts: `restored` is what its store has. Pushes the first effects (its term, its numbers).
    pub fn restore(
        policy: Policy,
        restored: Restored,
        now_ns: u64,
        wall_ms: i64,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let _ = (restored, now_ns, wall_ms, effects);
        Self { policy }
    }

    /// Takes one event. `now_ns` is the harvester's `CLOCK_BOOTTIME` and never goes back; `wall_ms` its wall clock, for
    /// records and sentences only.
    pub fn handle(&mut self, now_ns: u64, wall_ms: i64, event: Event, effects: &mut Vec<Effect>) {
        let _ = (now_ns, wall_ms, event, effects, &self.policy);
    }

    /// The cluster in figures.
    pub fn status(&self, now_ns: u64) -> Status {
        let _ = now_ns;
        Status::default()
    }

    /// Every node that Slurm or an executor names, or those listed.
    pub fn nodes(&self, now_ns: u64, wall_ms: i64, only: Option<&[NodeName]>) -> Vec<NodeInfo> {
        let _ = (now_ns, wall_ms, only);
        Vec::new()
    }

    /// The leases that are not over.
    pub fn leases(&self, now_ns: u64) -> Vec<LeaseInfo> {
        let _ = now_ns;
        Vec::new()
    }
}
