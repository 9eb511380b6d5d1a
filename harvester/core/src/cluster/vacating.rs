//! Acts on the verdict: grants what may be harvested, leaves what may not. Sends first; nothing here waits for the store.

use std::time::Duration;

use gleaner_lease::{
    issuer::{GrantError, Granted},
    state::{EndReason, State},
};
use gleaner_proto::ids::{Epoch, NodeName};

use super::{
    Core, Turn,
    judge::{Then, Why},
};
use crate::effect::ToExecutor;

impl Core {
    /// What a change of view, policy or command means for one node.
    pub(super) fn act(&mut self, turn: &mut Turn<'_>, name: &NodeName) {
        let Some(node) = self.nodes.get(name) else { return };
        let live = self.issuer.node(name).is_some_and(|book| book.state == State::Live);
        match self.judge(turn.now, turn.wall_ms, name, node) {
            Ok(()) if !live => self.grant(turn, name),
            Ok(()) => {}
            Err(why) if live => self.leave_or_pause(turn, name, why, Epoch(0)),
            Err(_) => {}
        }
    }

    /// Grants the node to its executor, from its last heartbeat on.
    pub(super) fn grant(&mut self, turn: &mut Turn<'_>, name: &NodeName) {
        let Some(node) = self.nodes.get(name) else { return };
        let (Some(conn), Some(view)) = (node.conn(), &node.view) else { return };
        let (cores, memory_bytes) = (view.cpus, view.real_memory_mb << 20);
        let mut ttl = self.policy.grant_ttl;
        if let Some(left_ms) = self.left_before_plan_ms(turn.wall_ms, node) {
            ttl = ttl.min(Duration::from_millis(left_ms.max(0).unsigned_abs()));
        }
        match self.issuer.grant(turn.now, name, cores, memory_bytes, ttl) {
            Ok(Granted { epoch, answers_seq, ttl, cores, memory_bytes, .. }) => {
                turn.send(
                    conn,
                    name,
                    ToExecutor::Grant { epoch, answers_seq, ttl, cores, memory_bytes },
                );
                self.touched.insert(name.clone());
            }
            Err(GrantError::Numbers) => {
                turn.log(true, format!("{name} is not granted: {}", GrantError::Numbers));
            }
            // Its first heartbeat will be answered.
            Err(GrantError::NoHeartbeat(_) | GrantError::NoExecutor(_)) => {}
        }
    }

    /// Leaves the node, or lets its grant run out. `serving` is the epoch that the executor last said it serves.
    pub(super) fn leave_or_pause(
        &mut self,
        turn: &mut Turn<'_>,
        name: &NodeName,
        why: Why,
        serving: Epoch,
    ) {
        if let Then::Leave(reason) = why.then() {
            self.leave(turn, name, reason, serving);
        }
    }

    /// Ends the node's grant and leases, and tells its executor.
    pub(super) fn leave(
        &mut self,
        turn: &mut Turn<'_>,
        name: &NodeName,
        reason: EndReason,
        serving: Epoch,
    ) {
        let vacating = self.issuer.vacate(name, reason);
        self.touched.insert(name.clone());
        let epoch = vacating.map_or(serving, |vacating| vacating.epoch.max(serving));
        let conn = self.nodes.get(name).and_then(|node| node.conn());
        if let Some(conn) = conn.filter(|_| epoch > Epoch(0)) {
            turn.send(conn, name, ToExecutor::Vacate { epoch, reason });
        }
    }
}
