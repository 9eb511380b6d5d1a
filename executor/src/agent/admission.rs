//! Who is let in: tokens and proofs checked offline, sessions begun, lanes handed to workers.
//!
//! Part of [`super::node`]: the first attach of a lease starts its worker, and its client is answered when that is done.

use std::{os::fd::OwnedFd, time::Duration};

use ed25519_dalek::{Signature, VerifyingKey};
use gleaner_fabric::{Geometry, rdma::Adapter};
use gleaner_lease::{
    holder::AdmitError,
    state::EndReason,
    token::{self, Claims},
};
use gleaner_proto::{
    control::{attach_digest, lane_digest},
    ids::LeaseId,
    v1::{self, control_error::Code},
};
use prost::bytes::Bytes;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::{
    clock,
    connection::{Carrier, Joined, Proved, Refused},
    lease::Lease,
    node::Node,
};
use crate::keeper::ipc::{Order, StartRefusal};

/// Answers an attach.
pub(super) type AttachReply = oneshot::Sender<Result<Joined, Refused>>;

/// A client that waits for its lease's worker.
#[derive(Debug)]
pub(super) struct Waiter {
    wanted: v1::Attach,
    reply: AttachReply,
}

impl Node {
    /// A client shows a token, and proves that it is the token's client.
    pub(super) fn attach(&mut self, wanted: v1::Attach, proved: &Proved, reply: AttachReply) {
        let waiter = Waiter { wanted, reply };
        match self.admit(&waiter.wanted.token, proved) {
            Err(refused) => drop(waiter.reply.send(Err(refused))),
            Ok(lease) => match self.leases.get_mut(&lease) {
                Some(held) if held.worker.is_none() => held.waiters.push(waiter),
                Some(_) => self.begin_session(lease, waiter),
                None => {}
            },
        }
    }

    /// Checks in the order of ADR 1, the client's proof after the harvester's signature; starts the lease's worker if
    /// this is its first client.
    fn admit(&mut self, shown: &[u8], proved: &Proved) -> Result<LeaseId, Refused> {
        let Some(harvester) = &self.harvester else {
            let message =
                "this executor has not been told yet which harvester to trust: try again".into();
            return Err(Refused { code: Code::Token, message });
        };
        let invalid = |error: AdmitError| Refused { code: Code::Token, message: error.to_string() };
        let claims =
            token::verify_signature(shown, harvester).map_err(|error| invalid(error.into()))?;
        let Proved { client_nonce, executor_nonce, signature } = proved;
        prove(&claims.client_key, &attach_digest(client_nonce, executor_nonce, shown), signature)?;
        if let Some(uid) = self.single_uid.filter(|uid| *uid != claims.uid.0) {
            let message = format!("this executor runs without root and serves uid {uid} alone");
            return Err(Refused { code: Code::Token, message });
        }
        let now = clock::now();
        let admitted = self.holder.admit(now, &claims).map_err(|error| match error {
            AdmitError::Occupied { .. } => {
                Refused { code: Code::Limit, message: error.to_string() }
            }
            other => invalid(other),
        })?;
        if admitted.first {
            self.start(&claims)?;
        }
        Ok(claims.lease)
    }

    /// Orders a worker for a lease that was just admitted.
    fn start(&mut self, claims: &Claims) -> Result<(), Refused> {
        let lease = claims.lease;
        let held = Lease::new(*claims, clock::now(), self.sessions_max).map_err(|error| {
            warn!(%lease, %error, "no board for the lease");
            self.holder.end(lease, EndReason::WorkerFailed);
            self.finished(lease, EndReason::WorkerFailed, &error.to_string(), v1::Usage::default());
            Refused { code: Code::Internal, message: error.to_string() }
        })?;
        self.leases.insert(lease, held);
        info!(%lease, uid = claims.uid.0, cores = claims.cores, "lease admitted");
        self.order(Order::Start {
            lease_id: lease.0,
            epoch: claims.epoch.0,
            uid: claims.uid.0,
            gid: claims.gid,
            cores: claims.cores,
            memory_bytes: claims.memory_bytes,
            deadline_ns: claims.expires.0,
        });
        Ok(())
    }

    /// The worker is there: begins a waiting client's session.
    pub(super) fn begin_session(&mut self, lease: LeaseId, waiter: Waiter) {
        let now = clock::now();
        let safe_for = self.holder.deadline(lease).map(|deadline| deadline.since(now));
        let Some(held) = self.leases.get_mut(&lease) else {
            return;
        };
        let Some(safe_for) = safe_for.filter(|_| held.ending.is_none()) else {
            let message = format!("lease {lease} has ended on this node: acquire a new one");
            drop(waiter.reply.send(Err(Refused { code: Code::Token, message })));
            return;
        };
        self.last_session += 1;
        let id = self.last_session;
        let v1::Attach { waiting, hot_timeout_ns, .. } = waiter.wanted;
        let hot = hot_for(self.hot_timeout, waiting, hot_timeout_ns);
        match held.attach(id, &waiter.wanted, hot) {
            Ok((mut attached, messages)) => {
                attached.safe_for_ms = safe_for.as_millis() as u64;
                attached.rdma_addresses = rdma_addresses(self.adapter.as_ref());
                self.sessions.insert(id, lease);
                let joined = Joined { id, uid: held.claims.uid.0, attached, messages };
                if waiter.reply.send(Ok(joined)).is_err() {
                    self.end_session(id, false);
                }
            }
            Err(error) => {
                if held.sessions.is_empty() {
                    held.orphan_since = Some(now);
                }
                let refused = Refused { code: Code::Limit, message: error.to_string() };
                drop(waiter.reply.send(Err(refused)));
            }
        }
    }

    /// The keeper could not start the lease's worker.
    pub(super) fn start_failed(&mut self, lease: LeaseId, refusal: StartRefusal, detail: &str) {
        let message = format!("{}{detail}", explain(refusal));
        warn!(%lease, %message, "lease not started");
        let reason = match refusal {
            StartRefusal::Held => EndReason::BatchJob,
            StartRefusal::SwitchedOff => EndReason::SwitchedOff,
            StartRefusal::Epoch => EndReason::GrantEnded,
            StartRefusal::Identity => EndReason::Policy,
            _ => EndReason::WorkerFailed,
        };
        self.holder.end(lease, reason);
        self.turn_away(lease, &message);
        self.leases.remove(&lease);
        self.finished(lease, reason, &message, v1::Usage::default());
    }

    /// Refuses every client that waits for this lease's worker.
    pub(super) fn turn_away(&mut self, lease: LeaseId, message: &str) {
        let waiters = self.leases.get_mut(&lease).map(|held| std::mem::take(&mut held.waiters));
        for waiter in waiters.into_iter().flatten() {
            let refused = Refused { code: Code::Internal, message: message.to_owned() };
            drop(waiter.reply.send(Err(refused)));
        }
    }

    /// Whether a connection may become a lane of a session: its client must hold the session's key.
    pub(super) fn lane(
        &mut self,
        wanted: &v1::DataLane,
        proved: &Proved,
    ) -> Result<Geometry, Refused> {
        let v1::DataLane { session_id: id, lane, .. } = *wanted;
        let unknown = || Refused {
            code: Code::Session,
            message: format!("session {id} is not here: it ended, or was of another executor"),
        };
        let lease = *self.sessions.get(&id).ok_or_else(unknown)?;
        let held = self.leases.get_mut(&lease).ok_or_else(unknown)?;
        let Proved { client_nonce, executor_nonce, signature } = proved;
        let digest = lane_digest(client_nonce, executor_nonce, id, lane, &wanted.endpoint);
        prove(&held.claims.client_key, &digest, signature)?;
        held.reserve_lane(id, lane)
            .map_err(|error| Refused { code: Code::Session, message: error.to_string() })
    }

    /// A session's client waits in another way from now on, and so do its workers.
    pub(super) fn set_waiting(&mut self, id: u64, lease: LeaseId, wanted: &v1::SetWaiting) {
        let hot = hot_for(self.hot_timeout, wanted.waiting, wanted.hot_timeout_ns);
        let told = self.leases.get_mut(&lease).map(|held| held.set_hot(id, hot));
        match told {
            Some(Err(error)) => self.worker_lost(lease, &error.to_string()),
            _ => {
                let hot_timeout_ns = u64::try_from(hot.as_nanos()).unwrap_or(u64::MAX);
                self.answer(
                    id,
                    v1::from_agent::Message::WaitingSet(v1::WaitingSet { hot_timeout_ns }),
                );
            }
        }
    }

    /// A lane's connection is ready for the worker.
    pub(super) fn lane_ready(&mut self, id: u64, lane: u32, socket: &OwnedFd, carrier: Carrier) {
        let Some(lease) = self.sessions.get(&id).copied() else {
            return;
        };
        let told = self.leases.get_mut(&lease).map(|held| held.add_link(id, lane, socket, carrier));
        if let Some(Err(error)) = told {
            self.worker_lost(lease, &error.to_string());
        }
    }
}

/// Where this node's workers are reached by RDMA now.
fn rdma_addresses(adapter: Option<&Adapter>) -> Vec<Bytes> {
    let addresses = adapter.map(Adapter::addresses).unwrap_or_default();
    addresses.iter().map(|address| Bytes::copy_from_slice(&address.encode())).collect()
}

/// How long a worker looks for calls after each one, as its client wants it and the configuration allows.
fn hot_for((usual, most): (Duration, Duration), waiting: i32, hot_timeout_ns: u64) -> Duration {
    match hot_timeout_ns {
        _ if waiting == v1::Waiting::Warm as i32 => Duration::ZERO,
        0 => usual.min(most),
        wanted => Duration::from_nanos(wanted).min(most),
    }
}

/// Whether this signature over the digest is this key's.
fn prove(key: &[u8; 32], digest: &[u8; 32], signature: &[u8]) -> Result<(), Refused> {
    let signed = VerifyingKey::from_bytes(key)
        .ok()
        .zip(Signature::from_slice(signature).ok())
        .is_some_and(|(key, signature)| key.verify_strict(digest, &signature).is_ok());
    if signed {
        return Ok(());
    }
    let message = "the proof is not signed with the key that the lease is bound to: \
                   only the client that acquired it can attach";
    Err(Refused { code: Code::Proof, message: message.into() })
}

/// A start's refusal, for people.
fn explain(refusal: StartRefusal) -> &'static str {
    match refusal {
        StartRefusal::Epoch => "the node's grant has ended meanwhile",
        StartRefusal::Held => "a batch job has taken the node",
        StartRefusal::SwitchedOff => "Gleaner is switched off on this node",
        StartRefusal::Full => "the node holds as many leases as its keeper has places for",
        StartRefusal::Identity => "this uid or gid may not run workers here: see uid_min",
        StartRefusal::Shape => "the lease has no core, too many cores, or no memory",
        StartRefusal::Duplicate => "the lease was started already",
        StartRefusal::System => "the system refused to start the worker",
        StartRefusal::Sandbox => "the worker could not be confined",
        StartRefusal::Died => "the worker died before it was ready",
    }
}
