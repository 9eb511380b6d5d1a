//! What the harvester says, and what this node makes of it.
//!
//! Part of [`super::node`]. Messages may be late, doubled or of another epoch: the holder's book decides what they change.

use std::time::Duration;

use gleaner_lease::{holder::GrantMessage, state::EndReason};
use gleaner_proto::{
    ids::{Epoch, LeaseId, Term},
    v1::{Registered, Usage, to_executor::Message},
};
use tracing::{debug, warn};

use super::{
    clock,
    node::Node,
    uplink::{FromUplink, Registering},
};
use crate::keeper::ipc::Order;

impl Node {
    /// Something happened on the way to the harvester.
    pub(super) fn uplink(&mut self, event: FromUplink) {
        let now = clock::now();
        match event {
            FromUplink::Registering(reply) => {
                let resume_epoch = self.holder.resume_epoch(now).0;
                let last_term = self.holder.term().0;
                let hold_job_id = self.reports.hold_job_id;
                let stamp_ns = now.0;
                drop(reply.send(Registering { stamp_ns, resume_epoch, last_term, hold_job_id }));
            }
            FromUplink::Registered { registered, key, stream, taken } => {
                let Registered { grant_epoch, term, heartbeat_ms, .. } = *registered;
                let known = self.holder.registered(now, Epoch(grant_epoch), Term(term));
                if let Err(error) = &known {
                    warn!("{error}");
                } else {
                    self.harvester = Some(*key);
                    // The harvester has just begun this epoch: it knows that those before are over.
                    let _ = self.holder.take_vacated();
                    self.reports.connected(stream, Duration::from_millis(heartbeat_ms), now);
                }
                // A node that is gone takes nothing.
                let _ = taken.send(known.is_ok());
            }
            FromUplink::Message(message) => self.harvester_says(message),
            FromUplink::Disconnected => self.reports.disconnected(),
        }
    }

    fn harvester_says(&mut self, message: Message) {
        match message {
            Message::Grant(grant) => {
                let grant = GrantMessage {
                    epoch: Epoch(grant.grant_epoch),
                    answers_seq: grant.answers_seq,
                    ttl: Duration::from_millis(grant.ttl_ms),
                    cores: grant.cores,
                    memory_bytes: grant.memory_bytes,
                };
                match self.holder.grant(clock::now(), &grant) {
                    Ok(until) => {
                        self.order(Order::Grant { epoch: grant.epoch.0, until_ns: until.0 });
                    }
                    Err(error) => debug!("{error}"),
                }
            }
            Message::Vacate(vacate) => {
                let reason = EndReason::from_number(vacate.reason).unwrap_or(EndReason::BatchJob);
                self.vacate(Epoch(vacate.grant_epoch), reason);
            }
            Message::Revoke(revoke) => {
                let reason = EndReason::from_number(revoke.reason).unwrap_or(EndReason::Policy);
                let lease = LeaseId(revoke.lease_id);
                if !self.holder.end(lease, reason) {
                    let detail = "the lease had not been attached here, or had ended";
                    self.reports.lease_ended(lease, reason, detail, Usage::default());
                }
            }
            Message::Ack(ack) => self.reports.acknowledge(ack.event_seq),
            Message::Registered(_) | Message::Refused(_) => {}
        }
    }
}
