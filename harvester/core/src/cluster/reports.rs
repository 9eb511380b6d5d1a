//! Executors' numbered events: applied once, stored, then acknowledged.

use std::time::Duration;

use gleaner_lease::state::EndReason;
use gleaner_proto::ids::{Epoch, JobId, NodeName, Uid};

use super::{Core, Turn, VACATES_REMEMBERED, node::Arrived, storing::Then};
use crate::{
    effect::{Effect, Need, ToExecutor},
    event::{Conn, ExecutorEvent, Trigger, Vacated},
    record::{JobRecord, Record},
};

/// The record id of an epoch's end that found nothing to clear: it frees the node's slices, and is no vacate.
const NOTHING_CLEARED: [u8; 16] = [0; 16];

impl Core {
    pub(super) fn on_report(
        &mut self,
        turn: &mut Turn<'_>,
        conn: Conn,
        seq: u64,
        what: ExecutorEvent,
    ) {
        let Some(name) = self.node_of(conn) else { return };
        let Some(node) = self.nodes.get_mut(&name) else { return };
        let instance = node.inbox.instance();
        match node.inbox.arrived(seq) {
            Arrived::Stored => turn.send(conn, &name, ToExecutor::Ack { seq }),
            Arrived::Underway => {}
            Arrived::New => {
                self.apply_report(turn, &name, seq, what);
                let records = std::mem::take(&mut turn.records);
                let node = name.clone();
                self.persist(turn, records, Need::Journal, Then::Ack { node, instance, seq });
                self.touched.insert(name);
            }
        }
    }

    fn apply_report(
        &mut self,
        turn: &mut Turn<'_>,
        name: &NodeName,
        seq: u64,
        what: ExecutorEvent,
    ) {
        match what {
            ExecutorEvent::JobStarting { job, job_uid, hook_us } => {
                self.job_starting(turn, name, job);
                self.record_job(turn, name, seq, (job, job_uid, false, hook_us));
            }
            ExecutorEvent::JobEnded { job, job_uid, hook_us } => {
                self.job_ended(turn, name, job);
                self.record_job(turn, name, seq, (job, job_uid, true, hook_us));
            }
            ExecutorEvent::Vacated(vacated) => self.vacated(turn, name, vacated),
            ExecutorEvent::LeaseEnded { lease, reason, detail, usage } => {
                let ours = self.issuer.lease(lease).is_some_and(|known| known.node == *name);
                if ours {
                    turn.records.push(Record::Usage { lease, usage, unix_ms: turn.wall_ms });
                    let ended = self.issuer.lease_ended(name, lease, reason);
                    self.record_ended(turn, ended.into_iter().collect(), &detail);
                }
            }
            ExecutorEvent::LeaseRenewed { lease, expires } => {
                let ours = self.issuer.lease(lease).is_some_and(|known| known.node == *name);
                if ours {
                    self.issuer.renewed(name, lease, expires);
                    turn.records.push(Record::LeaseRenewed { lease, expires });
                }
            }
        }
    }

    fn record_job(
        &self,
        turn: &mut Turn<'_>,
        name: &NodeName,
        seq: u64,
        (job, job_uid, ended, hook_us): (JobId, Uid, bool, u64),
    ) {
        let instance =
            self.nodes.get(name).map_or_else(Default::default, |node| node.inbox.instance());
        let (node, unix_ms) = (name.clone(), turn.wall_ms);
        turn.records.push(Record::Job(JobRecord {
            node,
            instance,
            seq,
            job,
            job_uid,
            ended,
            hook_us,
            unix_ms,
        }));
    }

    /// The node is held, and its grant is over: the keeper has left it already, or is about to.
    fn job_starting(&mut self, turn: &mut Turn<'_>, name: &NodeName, job: JobId) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.holds.starting(turn.now, job);
        (node.idle_since, node.epilog) = (None, None);
        // The keeper has vacated by itself; a grant that was on its way while the prolog ran it has not.
        self.leave(turn, name, EndReason::BatchJob, Epoch(0));
    }

    /// Slurm is asked at once whether the node is idle; its idleness counts from now.
    fn job_ended(&mut self, turn: &mut Turn<'_>, name: &NodeName, job: JobId) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        node.holds.ended(turn.now, job);
        node.epilog = Some(turn.now);
        turn.effects.push(Effect::LookSoon);
    }

    fn vacated(&mut self, turn: &mut Turn<'_>, name: &NodeName, vacated: Vacated) {
        let Vacated { trigger, epoch, job, .. } = vacated;
        let ended = self.issuer.vacated(name, epoch, trigger.end_reason());
        let detail = if job == JobId(0) { String::new() } else { format!("job {job}") };
        self.record_ended(turn, ended, &detail);
        let recent =
            Duration::from_millis(turn.wall_ms.abs_diff(vacated.unix_ms)) < self.policy.hold_max;
        let prolog = matches!(trigger, Trigger::Prolog | Trigger::HookAlone) && job != JobId(0);
        let knows = self.nodes.get(name).is_some_and(|node| node.holds.knows(job));
        if prolog && recent && !knows {
            self.job_starting(turn, name, job);
        }
        if vacated.record_id == NOTHING_CLEARED {
            return;
        }
        if epoch > Epoch(0) && !self.vacates_seen.contains(&vacated.record_id) {
            if self.vacates_seen.len() == VACATES_REMEMBERED {
                self.vacates_seen.pop_front();
            }
            self.vacates_seen.push_back(vacated.record_id);
            self.vacates += 1;
        }
        turn.records.push(Record::Vacate { node: name.clone(), vacated });
    }
}
