//! Keeps the record of what was idle, grantable, granted and leased, so that reports are exact (see [`crate::record`]).

use std::time::Duration;

use gleaner_lease::{clock::Stamp, state::State};
use gleaner_proto::ids::NodeName;

use super::{Core, Turn, judge};
use crate::record::{CoreCounts, Record, Transition};

/// How often the harvester's being alive is stored: what a report may miss of a killed one.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// What was recorded last.
#[derive(Debug, Default)]
pub(super) struct Account {
    alive: Option<Stamp>,
    watching: Option<bool>,
}

impl Core {
    /// Records that the harvester lives, and whether it sees Slurm.
    pub(super) fn keep_watch(&mut self, turn: &mut Turn<'_>) {
        let (term, unix_ms) = (self.term, turn.wall_ms);
        if self.account.alive.is_none_or(|alive| turn.now.since(alive) >= ALIVE_EVERY) {
            self.account.alive = Some(turn.now);
            turn.records.push(Record::Alive { term, unix_ms });
        }
        let fresh = self.slurm.fresh(turn.now, &self.policy);
        if self.account.watching == Some(fresh) {
            return;
        }
        let gap = (!fresh).then(|| match (&self.slurm.error, self.slurm.asked) {
            (Some(error), _) => format!("Slurm could not be read: {error}"),
            (None, Some(_)) => "Slurm was not read in time".to_owned(),
            (None, None) => "the harvester had just started".to_owned(),
        });
        if let Some(why) = gap.as_ref().filter(|_| self.account.watching.is_some()) {
            turn.log(
                true,
                format!("{why}: no lease is given and no grant renewed until Slurm is seen again"),
            );
        }
        self.account.watching = Some(fresh);
        turn.records.push(Record::Watch { term, unix_ms, gap });
        self.touched.extend(self.nodes.keys().cloned());
    }

    /// Grants end by themselves: their figures are looked at again as time passes.
    pub(super) fn touch_granted(&mut self) {
        let granted = self.nodes.iter().filter(|(_, node)| {
            node.recorded.is_some_and(|cores| cores.granted > 0 || cores.leased > 0)
        });
        self.touched.extend(granted.map(|(name, _)| name.clone()));
    }

    /// Records the figures of the nodes where they changed in this turn.
    pub(super) fn record_transitions(&mut self, turn: &mut Turn<'_>) {
        for name in std::mem::take(&mut self.touched) {
            let cores = self.cores(turn.now, turn.wall_ms, &name);
            let Some(node) = self.nodes.get_mut(&name) else { continue };
            if node.recorded != Some(cores) {
                node.recorded = Some(cores);
                let (term, unix_ms) = (self.term, turn.wall_ms);
                turn.records.push(Record::Transition(Transition {
                    node: name,
                    term,
                    unix_ms,
                    cores,
                }));
            }
        }
    }

    /// How many of a node's cores are what, now.
    fn cores(&self, now: Stamp, wall_ms: i64, name: &NodeName) -> CoreCounts {
        let Some(node) = self.nodes.get(name) else { return CoreCounts::default() };
        let total = node.view.as_ref().map_or(0, |view| view.cpus);
        let seen = self.slurm.fresh(now, &self.policy);
        let idle = if seen && judge::slurm_idle(node).is_ok() { total } else { 0 };
        let grantable = if self.grantable(now, wall_ms, name, node).is_ok() { total } else { 0 };
        let leases = self.book.on_node(name).filter_map(|lease| self.issuer.lease(lease));
        let leased =
            leases.filter(|lease| lease.state != State::Reserved).map(|lease| lease.cores).sum();
        let book = self.issuer.node(name);
        let held = book.filter(|book| book.held_until.is_some_and(|until| until > now));
        let granted = held.map_or(0, |book| book.cores).max(leased);
        CoreCounts { total, idle, grantable, granted, leased }
    }
}
