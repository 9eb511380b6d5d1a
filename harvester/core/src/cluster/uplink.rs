//! Executors' streams: who may join, what a heartbeat is answered with, what a lost stream means.

use gleaner_lease::{
    clock::Stamp,
    issuer::{self, Beat, JoinError},
    state::{EndReason, State},
};
use gleaner_proto::ids::{Epoch, JobId, LeaseId, NodeName};

use super::{Core, Turn, node::Executor};
use crate::{
    effect::{JoinRefusal, ToExecutor},
    event::{Conn, Heartbeat, Join, LeaseReport},
    record::Record,
};

impl Core {
    pub(super) fn on_joined(&mut self, turn: &mut Turn<'_>, join: Join) {
        let (conn, name) = (join.conn, join.node.clone());
        if let Err(refusal) = self.admit(turn, &join).and_then(|()| self.register(turn, join)) {
            turn.log(true, format!("executor of {name} is refused: {refusal}"));
            turn.send(conn, &name, ToExecutor::Refused(refusal));
        }
    }

    /// Whether this caller may serve this node.
    fn admit(&mut self, turn: &mut Turn<'_>, join: &Join) -> Result<(), JoinRefusal> {
        if !self.store.term_stored {
            return Err(JoinRefusal::Store);
        }
        if join.last_term > self.term {
            return Err(JoinRefusal::OldTerm { seen: join.last_term, term: self.term });
        }
        match join.single_user {
            None if !join.trusted => return Err(JoinRefusal::NotTrusted),
            Some(uid) if !join.trusted && uid != join.caller => return Err(JoinRefusal::OtherUser),
            _ => {}
        }
        if join.cores == 0 || join.memory_bytes == 0 {
            return Err(JoinRefusal::Nothing);
        }
        let in_slurm = self.nodes.get(&join.node).is_some_and(|node| node.view.is_some());
        if !in_slurm && (self.slurm.asked.is_some() || !join.trusted) {
            return Err(JoinRefusal::NoSuchNode);
        }
        self.outrank(turn, join)
    }

    /// Two users' executors must not share a node: neither knows what the other runs. A trusted one comes first, but
    /// waits until the other's grant has surely ended.
    fn outrank(&mut self, turn: &mut Turn<'_>, join: &Join) -> Result<(), JoinRefusal> {
        let Some(node) = self.nodes.get_mut(&join.node) else { return Ok(()) };
        if node.trusted_only && !join.trusted {
            return Err(JoinRefusal::Taken);
        }
        let Some(incumbent) = &node.executor else { return Ok(()) };
        if incumbent.join.trusted || incumbent.join.caller == join.caller {
            return Ok(());
        }
        let connected = incumbent.conn;
        node.trusted_only |= join.trusted;
        if let Some(conn) = connected.filter(|_| join.trusted) {
            self.leave(turn, &join.node, EndReason::ExecutorLost, Epoch(0));
            turn.send(conn, &join.node, ToExecutor::Refused(JoinRefusal::Taken));
            self.forget_conn(turn, conn);
        }
        let held = self.issuer.node(&join.node).and_then(|book| book.held_until);
        let busy =
            held.is_some_and(|until| until > turn.now) || (connected.is_some() && !join.trusted);
        if busy { Err(JoinRefusal::Taken) } else { Ok(()) }
    }

    fn register(&mut self, turn: &mut Turn<'_>, join: Join) -> Result<(), JoinRefusal> {
        let (conn, name) = (join.conn, join.node.clone());
        let Join { boot, instance, stamp, resume_epoch, cores, memory_bytes, .. } = join;
        let told = issuer::Join { boot, instance, stamp, resume_epoch, cores, memory_bytes };
        let joined =
            self.issuer.executor_joined(turn.now, &name, &told).map_err(|error| match error {
                JoinError::Replayed { .. } => JoinRefusal::Replayed,
                JoinError::Numbers => JoinRefusal::Store,
            })?;
        self.record_ended(turn, joined.ended, "the executor restarted, or holds nothing of it");
        let node = self.nodes.entry(name.clone()).or_default();
        if let Some(old) = node.conn() {
            self.conns.remove(&old);
            if node.inbox.instance() != instance {
                turn.send(old, &name, ToExecutor::Refused(JoinRefusal::Taken));
            }
        }
        node.trusted_only |= join.trusted;
        node.inbox.joined(instance);
        if join.hold_job != JobId(0) && !node.holds.knows(join.hold_job) {
            node.holds.starting(turn.now, join.hold_job);
        }
        node.executor = Some(Executor { join, conn: Some(conn) });
        self.conns.insert(conn, name.clone());
        self.touched.insert(name.clone());
        let (term, heartbeat) = (self.term, self.policy.heartbeat);
        turn.send(conn, &name, ToExecutor::Registered { epoch: joined.epoch, term, heartbeat });
        for ending in joined.revoke {
            let (lease, reason) = (ending.lease, ending.reason);
            turn.send(conn, &name, ToExecutor::Revoke { lease, reason });
        }
        Ok(())
    }

    /// The node at the other end of a stream that still counts.
    pub(super) fn node_of(&self, conn: Conn) -> Option<NodeName> {
        self.conns.get(&conn).cloned()
    }

    pub(super) fn on_heartbeat(&mut self, turn: &mut Turn<'_>, beat: &Heartbeat) {
        let Some(name) = self.node_of(beat.conn) else { return };
        let Some(node) = self.nodes.get(&name) else { return };
        let Heartbeat { seq, stamp, .. } = *beat;
        let told = Beat { instance: node.inbox.instance(), seq, stamp };
        let held: Vec<(LeaseId, Stamp)> =
            beat.leases.iter().map(|report| (report.lease, report.expires)).collect();
        let ended = self.issuer.heartbeat(turn.now, &name, &told, &held);
        self.record_ended(turn, ended, "");
        for report in &beat.leases {
            self.on_lease_report(turn, beat.conn, &name, report);
        }
        let Some(node) = self.nodes.get(&name) else { return };
        let live = self.issuer.node(&name).is_some_and(|book| book.state == State::Live);
        match self.judge(turn.now, turn.wall_ms, &name, node) {
            Ok(()) => self.grant(turn, &name),
            Err(why) if live || beat.epoch > Epoch(0) => {
                self.leave_or_pause(turn, &name, why, beat.epoch)
            }
            Err(_) => {}
        }
    }

    /// One lease in a heartbeat: its usage is noted; one that shall end, or that nobody here knows, is revoked again.
    fn on_lease_report(
        &mut self,
        turn: &mut Turn<'_>,
        conn: Conn,
        name: &NodeName,
        report: &LeaseReport,
    ) {
        let LeaseReport { lease, usage, .. } = *report;
        let revoke = match self.issuer.lease(lease).filter(|known| known.node == *name) {
            None => Some(EndReason::ExecutorLost),
            Some(known) => known.ending,
        };
        if let Some(reason) = revoke {
            turn.send(conn, name, ToExecutor::Revoke { lease, reason });
        }
        let ours = self.book.holder(lease).is_some_and(|holder| holder.node == *name);
        if ours && self.book.used(turn.now, lease, usage) {
            turn.records.push(Record::Usage { lease, usage, unix_ms: turn.wall_ms });
        }
    }

    pub(super) fn on_executor_lost(&mut self, turn: &mut Turn<'_>, conn: Conn) {
        self.forget_conn(turn, conn);
    }

    fn forget_conn(&mut self, turn: &mut Turn<'_>, conn: Conn) {
        let Some(name) = self.conns.remove(&conn) else { return };
        self.issuer.executor_lost(&name);
        if let Some(executor) = self.nodes.get_mut(&name).and_then(|node| node.executor.as_mut()) {
            executor.conn = None;
        }
        turn.log(
            false,
            format!(
                "the stream of {name}'s executor is gone; its leases go on until its grant ends"
            ),
        );
        self.touched.insert(name);
    }
}
