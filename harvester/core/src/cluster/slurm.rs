//! What the core knows of Slurm, and what follows from each look.

use std::collections::{BTreeMap, BTreeSet};

use gleaner_lease::clock::Stamp;
use gleaner_proto::ids::NodeName;

use super::{Core, Turn, judge, node::Plan};
use crate::{
    picture::{JobView, NodeView, Picture},
    policy::Policy,
    refusal::Expected,
};

/// The last look.
#[derive(Debug, Default)]
pub(super) struct Slurm {
    /// When the picture in use was asked for.
    pub(super) asked: Option<Stamp>,
    pub(super) took_us: u64,
    /// Why the last look failed, if it did.
    pub(super) error: Option<String>,
}

impl Slurm {
    /// Whether the picture may be acted upon.
    pub(super) fn fresh(&self, now: Stamp, policy: &Policy) -> bool {
        self.asked.is_some_and(|asked| now.since(asked) <= policy.picture_max_age)
    }
}

impl Core {
    pub(super) fn on_picture(&mut self, turn: &mut Turn<'_>, picture: Picture) {
        let asked = Stamp(picture.asked_ns.min(turn.now.0));
        if self.slurm.asked.is_some_and(|known| asked < known) {
            return;
        }
        self.slurm = Slurm { asked: Some(asked), took_us: picture.took_us, error: None };
        let names: BTreeSet<NodeName> =
            picture.nodes.iter().map(|view| view.name.clone()).collect();
        for (name, node) in &mut self.nodes {
            if !names.contains(name) {
                (node.view, node.opted_in, node.idle_since) = (None, false, None);
            }
        }
        self.nodes.retain(|name, node| {
            node.view.is_some()
                || names.contains(name)
                || node.executor.is_some()
                || node.recorded.is_some_and(|cores| cores != Default::default())
                || self.issuer.node(name).is_some_and(|book| book.leases > 0)
        });
        for view in picture.nodes {
            self.see(turn.now, asked, view);
        }
        self.check_names(turn);
        self.keep_watch(turn);
        self.reassess(turn);
    }

    fn see(&mut self, now: Stamp, asked: Stamp, view: NodeView) {
        let node = self.nodes.entry(view.name.clone()).or_default();
        node.holds.picture(asked, view.occupied(), self.policy.hold_max);
        node.opted_in = self.policy.opts_in(&view);
        node.view = Some(view);
        // A picture from before the last hook may call the node idle for the wrong job.
        if node.holds.outdate(asked) {
            return;
        }
        node.idle_since = match judge::slurm_idle(node) {
            Ok(()) => node.idle_since.or(node.epilog.take()).or(Some(now)),
            Err(_) => None,
        };
    }

    pub(super) fn on_picture_failed(&mut self, turn: &mut Turn<'_>, error: String) {
        if self.slurm.error.is_none() {
            turn.log(
                true,
                format!(
                    "Slurm could not be read: {error}; the last picture counts for a while yet"
                ),
            );
        }
        self.slurm.error = Some(error);
        self.keep_watch(turn);
    }

    pub(super) fn on_jobs(&mut self, turn: &mut Turn<'_>, jobs: &[JobView]) {
        let mut plans = BTreeMap::<&NodeName, Plan>::new();
        for job in jobs {
            for name in &job.nodes {
                add(plans.entry(name).or_default(), job);
            }
        }
        for (name, node) in &mut self.nodes {
            let plan = plans.get(name).copied().unwrap_or_default();
            if plan.planned_s != node.plan.planned_s {
                self.touched.insert(name.clone());
            }
            node.plan = plan;
        }
        let touched: Vec<NodeName> = self.touched.iter().cloned().collect();
        touched.iter().for_each(|name| self.act(turn, name));
    }

    /// Warns of names in the policy that Slurm does not have, once for each change.
    pub(super) fn check_names(&mut self, turn: &mut Turn<'_>) {
        if self.slurm.asked.is_none() {
            return;
        }
        let views = self.nodes.values().filter_map(|node| node.view.as_ref());
        let warnings = self.policy.unknown_names(views);
        for warning in warnings.iter().filter(|warning| !self.warnings.contains(warning)) {
            turn.log(true, warning.clone());
        }
        self.warnings = warnings;
    }

    /// Looks at every node again: who is kept in reserve, who must be left, who may be granted.
    pub(super) fn reassess(&mut self, turn: &mut Turn<'_>) {
        self.keep_reserve(turn.now, turn.wall_ms);
        let names: Vec<NodeName> = self.nodes.keys().cloned().collect();
        names.iter().for_each(|name| self.act(turn, name));
        self.touched.extend(names);
    }
}

/// Adds what one job says of a node.
fn add(plan: &mut Plan, job: &JobView) {
    if let Some(start) = job.start_unix_s {
        plan.planned_s = Some(plan.planned_s.map_or(start, |planned| planned.min(start)));
        return;
    }
    match job.end_unix_s {
        None => plan.unlimited = true,
        Some(unix_s) if plan.idle_at.is_none_or(|at| at.unix_s < unix_s) => {
            plan.idle_at = Some(Expected { unix_s, job: job.id });
        }
        Some(_) => {}
    }
}
