//! How an executor joins: with a new epoch, or resuming the one that it still serves.

use gleaner_proto::ids::{Epoch, NodeName};

use super::{Executor, Issuer, Join, JoinError, Joined, LeaseEnding};
use crate::{
    clock::Stamp,
    state::{EndReason, Event, State},
};

impl Issuer {
    /// An executor registers. If the same life of the agent still serves an epoch that is live here, both go on with it.
    /// Else it gets a new epoch: what it held is over if it says that nothing is left, or comes from another boot;
    /// otherwise it is held until its word that the old epoch is vacated, or the old grant's end.
    pub fn executor_joined(
        &mut self,
        now: Stamp,
        node: &NodeName,
        join: &Join,
    ) -> Result<Joined, JoinError> {
        self.refuse_replay(node, join)?;
        let mut ended = self.lapse(now, node);
        let resumed = self.resumes(node, join);
        if !resumed && self.next.epoch >= self.reserved.epoch {
            return Err(JoinError::Numbers);
        }
        let Join { boot, instance, stamp, cores, memory_bytes, .. } = *join;
        let known = self.nodes.entry(node.clone()).or_default();
        let rebooted = known.identity.is_some_and(|(known, _)| known != boot);
        known.identity = Some((boot, instance));
        known.newest_stamp = stamp;
        known.executor = Some(Executor { cores, memory_bytes, seq: 0, stamp, received: now });
        if resumed {
            let revoke = self.endings(node);
            return Ok(Joined { epoch: join.resume_epoch, resumed, revoke, ended });
        }
        if join.resume_epoch == Epoch(0) || rebooted {
            let all = self.leases_of(node, |_| true);
            ended.extend(self.finish(all, Event::Gone, EndReason::ExecutorLost));
        }
        let epoch = self.begin_epoch(node).ok_or(JoinError::Numbers)?;
        Ok(Joined { epoch, resumed, revoke: Vec::new(), ended })
    }

    /// A registration that came late or twice would free what is held: its stamp is not newer than what came since.
    fn refuse_replay(&self, node: &NodeName, join: &Join) -> Result<(), JoinError> {
        let known = self.nodes.get(node);
        let same_boot =
            known.and_then(|known| known.identity).is_some_and(|(boot, _)| boot == join.boot);
        if same_boot && known.is_some_and(|known| join.stamp <= known.newest_stamp) {
            return Err(JoinError::Replayed { node: node.clone() });
        }
        Ok(())
    }

    fn resumes(&self, node: &NodeName, join: &Join) -> bool {
        let Some(known) = self.nodes.get(node) else {
            return false;
        };
        let same = known.identity == Some((join.boot, join.instance));
        let grant = known.grants.last().filter(|grant| grant.epoch == join.resume_epoch);
        same && grant.is_some_and(|grant| matches!(grant.state, State::Live | State::Reserved))
    }

    /// The node's leases that shall end and are not known to have.
    fn endings(&self, node: &NodeName) -> Vec<LeaseEnding> {
        let ending = self.leases_of(node, |lease| lease.state == State::Ending);
        let ending = ending.iter().filter_map(|id| self.leases.get(id));
        ending
            .map(|lease| LeaseEnding {
                lease: lease.id,
                node: node.clone(),
                reason: lease.ending.unwrap_or(EndReason::Released),
            })
            .collect()
    }
}
