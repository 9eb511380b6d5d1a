//! Clients give leases back.

use gleaner_lease::state::{EndReason, State};
use gleaner_proto::ids::LeaseId;

use super::{Core, Turn, storing::Then};
use crate::{
    effect::{Need, Reply, ToExecutor},
    event::{CallId, Identity},
    record::Record,
};

impl Core {
    /// Ends those that are live and the caller's; the others are no error. The executor is told at once, the slice is
    /// free on its word.
    pub(super) fn on_release(
        &mut self,
        turn: &mut Turn<'_>,
        call: CallId,
        who: &Identity,
        leases: &[LeaseId],
    ) {
        let mut released = Vec::new();
        for id in leases {
            let lease = self.issuer.lease(*id);
            let live =
                lease.is_some_and(|lease| lease.uid == who.uid && lease.state == State::Live);
            if !live {
                continue;
            }
            let Some(ending) = self.issuer.end(*id, EndReason::Released) else { continue };
            released.push(*id);
            turn.records.push(Record::LeaseEnding { lease: *id, reason: ending.reason });
            if let Some(conn) = self.nodes.get(&ending.node).and_then(|node| node.conn()) {
                let (lease, reason) = (ending.lease, ending.reason);
                turn.send(conn, &ending.node, ToExecutor::Revoke { lease, reason });
            }
        }
        let reply = Reply::Released(released);
        if turn.records.is_empty() {
            turn.reply(call, Ok(reply));
        } else {
            let records = std::mem::take(&mut turn.records);
            self.persist(turn, records, Need::Journal, Then::Reply { call, reply });
        }
    }
}
