//! May this node be harvested now, and if not, why not: the one place where Slurm's view, the policy, holds and
//! admins' words come together.

use gleaner_lease::{clock::Stamp, state::EndReason};
use gleaner_proto::ids::{JobId, NodeName};

use super::{Core, node::Node};
use crate::{moment::Span, picture::Base, policy::Mode};

/// Why a node is not harvested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// Slurm does not have it.
    Unknown,
    /// The policy does not offer it.
    NotOffered,
    /// The kill switch.
    Off,
    /// An admin drained it.
    Drained,
    /// Slurm has not been seen for too long.
    Stale,
    /// Its state forbids it.
    State(&'static str),
    /// Batch jobs run there.
    Busy,
    /// A job is starting there.
    Held(JobId),
    /// A hook spoke, and Slurm has not been seen since.
    Unsettled,
    /// A planned job is about to start.
    Planned,
    /// It has not been idle for long enough.
    Soon,
    /// The reserve keeps it free.
    Reserve,
    /// The policy only observes.
    Observe,
}

/// What a live grant on such a node is in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It ends now.
    Leave(EndReason),
    /// It is not renewed, and ends by itself unless the cause passes.
    Pause,
}

impl Why {
    /// What a live grant on such a node is in for.
    pub(super) fn then(self) -> Then {
        match self {
            Self::Unknown | Self::State(_) | Self::Busy | Self::Held(_) | Self::Planned => {
                Then::Leave(EndReason::BatchJob)
            }
            Self::Off => Then::Leave(EndReason::SwitchedOff),
            Self::Drained => Then::Leave(EndReason::Drained),
            Self::NotOffered | Self::Soon | Self::Reserve | Self::Observe => {
                Then::Leave(EndReason::Policy)
            }
            Self::Stale | Self::Unsettled => Then::Pause,
        }
    }

    /// One word for the state column.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NotOffered => "not-offered",
            Self::Off => "off",
            Self::Drained => "drained",
            Self::Stale => "unseen",
            Self::State(_) => "untouched",
            Self::Busy => "busy",
            Self::Held(_) => "held",
            Self::Unsettled => "settling",
            Self::Planned => "planned",
            Self::Soon => "waiting",
            Self::Reserve => "reserve",
            Self::Observe => "observed",
        }
    }

    /// What such nodes are: completes "2 nodes are …".
    pub(super) fn predicate(self) -> &'static str {
        match self {
            Self::Unknown => "not in Slurm",
            Self::NotOffered => "not offered by the policy",
            Self::Off => "switched off",
            Self::Drained => "drained by an administrator",
            Self::Stale => "not seen in Slurm lately",
            Self::State(_) => "in a Slurm state that is never touched",
            Self::Busy => "busy with batch jobs",
            Self::Held(_) => "held for a starting job",
            Self::Unsettled => "just left by a job",
            Self::Planned => "about to run a planned job",
            Self::Soon => "idle for less than policy.min_idle",
            Self::Reserve => "kept free by policy.reserve_nodes",
            Self::Observe => "only observed",
        }
    }
}

impl Core {
    /// Whether the node may be harvested now.
    pub(super) fn judge(
        &self,
        now: Stamp,
        wall_ms: i64,
        name: &NodeName,
        node: &Node,
    ) -> Result<(), Why> {
        self.grantable(now, wall_ms, name, node)?;
        match self.policy.mode {
            Mode::Observe => Err(Why::Observe),
            Mode::Enforce => Ok(()),
        }
    }

    /// The same, as if the policy enforced.
    pub(super) fn grantable(
        &self,
        now: Stamp,
        wall_ms: i64,
        name: &NodeName,
        node: &Node,
    ) -> Result<(), Why> {
        self.idle_and_offered(now, wall_ms, name, node)?;
        if node.withheld { Err(Why::Reserve) } else { Ok(()) }
    }

    /// The same, as if nothing was kept in reserve.
    pub(super) fn idle_and_offered(
        &self,
        now: Stamp,
        wall_ms: i64,
        name: &NodeName,
        node: &Node,
    ) -> Result<(), Why> {
        let seen = self.slurm.asked.filter(|_| self.slurm.fresh(now, &self.policy));
        if !node.opted_in {
            // Right after a restart nothing of Slurm is known, which is no reason to leave a node.
            let unknown = if seen.is_some() { Why::Unknown } else { Why::Stale };
            return Err(if node.view.is_some() { Why::NotOffered } else { unknown });
        }
        if self.switched_off.is_some() {
            return Err(Why::Off);
        }
        if self.drained.contains_key(name) {
            return Err(Why::Drained);
        }
        let asked = seen.ok_or(Why::Stale)?;
        slurm_idle(node)?;
        if let Some(job) = node.holds.job() {
            return Err(Why::Held(job));
        }
        if node.holds.outdate(asked) {
            return Err(Why::Unsettled);
        }
        if self.left_before_plan_ms(wall_ms, node).is_some_and(|left| left <= 0) {
            return Err(Why::Planned);
        }
        let long_enough =
            node.idle_since.is_some_and(|since| now.since(since) >= self.policy.min_idle);
        if long_enough { Ok(()) } else { Err(Why::Soon) }
    }

    /// How long until the node must be left for a planned job, if one is known.
    pub(super) fn left_before_plan_ms(&self, wall_ms: i64, node: &Node) -> Option<i64> {
        let margin_ms = i64::try_from(self.policy.planned_margin.as_millis()).unwrap_or(i64::MAX);
        let planned_s = node.planned_s()?;
        Some(planned_s.saturating_mul(1000).saturating_sub(margin_ms).saturating_sub(wall_ms))
    }

    /// Chooses the nodes that the reserve keeps free: of each partition so many that, with the idle nodes which are not
    /// offered anyway, `reserve_nodes` stay free. Those that cost least go first: without executor, without grant,
    /// without lease.
    pub(super) fn keep_reserve(&mut self, now: Stamp, wall_ms: i64) {
        self.nodes.values_mut().for_each(|node| node.withheld = false);
        if self.policy.reserve_nodes == 0 {
            return;
        }
        let mut free = std::collections::BTreeMap::<String, u32>::new();
        let mut offered = Vec::new();
        for (name, node) in &self.nodes {
            let Some(view) = node.view.as_ref().filter(|_| slurm_idle(node).is_ok()) else {
                continue;
            };
            for partition in &view.partitions {
                free.entry(partition.clone()).or_default();
            }
            if self.idle_and_offered(now, wall_ms, name, node).is_ok() {
                let book = self.issuer.node(name);
                let leased = book.is_some_and(|book| book.leases > 0);
                let granted =
                    book.is_some_and(|book| book.held_until.is_some_and(|until| until > now));
                offered.push((leased, granted, node.conn().is_some(), name.clone()));
            } else if node.holds.job().is_none() {
                for partition in &view.partitions {
                    *free.entry(partition.clone()).or_default() += 1;
                }
            }
        }
        offered.sort();
        for (.., name) in offered {
            let Some(node) = self.nodes.get_mut(&name) else { continue };
            let partitions = node.view.iter().flat_map(|view| &view.partitions);
            let short = partitions.clone().any(|name| free[name] < self.policy.reserve_nodes);
            node.withheld = short;
            if short {
                partitions.for_each(|name| *free.entry(name.clone()).or_default() += 1);
            }
        }
    }

    /// Why the node is not harvested, for people.
    pub(super) fn explain(&self, why: Why, now: Stamp, name: &NodeName, node: &Node) -> String {
        match why {
            Why::Unknown => "Slurm does not have it".into(),
            Why::NotOffered => {
                "policy.partitions, policy.nodes and policy.features do not name it".into()
            }
            Why::Off => format!(
                "switched off: {}",
                self.switched_off.as_ref().map_or("", |off| &off.reason)
            ),
            Why::Drained => {
                format!("drained: {}", self.drained.get(name).map_or("", |drain| &drain.reason))
            }
            Why::Stale => "Slurm has not been seen for too long".into(),
            Why::State(word) => format!("Slurm has it in {word}"),
            Why::Busy => "batch jobs run there".into(),
            Why::Held(job) => format!("job {job} is starting there"),
            Why::Unsettled => "a job's hook ran there and Slurm has not been seen since".into(),
            Why::Planned => "a planned job is about to start there".into(),
            Why::Soon => {
                let idle = node.idle_since.map_or_else(Default::default, |since| now.since(since));
                format!(
                    "idle for {}, policy.min_idle is {}",
                    Span(idle),
                    Span(self.policy.min_idle)
                )
            }
            Why::Reserve => {
                format!("kept free: policy.reserve_nodes is {}", self.policy.reserve_nodes)
            }
            Why::Observe => "policy.mode is \"observe\": it would be granted".into(),
        }
    }
}

/// Whether the node is idle in Slurm's eyes and may be touched at all.
pub(super) fn slurm_idle(node: &Node) -> Result<(), Why> {
    let view = node.view.as_ref().ok_or(Why::Unknown)?;
    if let Some(word) = view.state.untouchable() {
        return Err(Why::State(word));
    }
    if view.occupied() || view.state.base != Base::Idle { Err(Why::Busy) } else { Ok(()) }
}
