//! Between the wire's generated messages and the core's plain types, in both directions. Any message may come in.
//!
//! Called by the services beside it. It checks lengths and counts, and names the field that is wrong.

use std::time::Duration;

use gleaner_harvester_core::{
    effect::{Leased, ToExecutor},
    event::{
        Acquire, CallId, Conn, ExecutorEvent, Heartbeat, Identity, Join, LeaseReport, StepTimes,
        Trigger, Usage, Vacated,
    },
    refusal::{Refusal, RefusalKind},
};
use gleaner_lease::{
    clock::{BootId, Instance, Stamp},
    state::EndReason,
    token::SigningKey,
};
use gleaner_proto::{
    hostlist::HOSTLIST_MAX,
    ids::{Epoch, JobId, LeaseId, NodeName, Term, Uid},
    v1,
};
use tonic::Status;

use super::auth::Known;
use crate::driver::Unanswered;

/// Longest text of any one field, in bytes.
const TEXT_MAX: usize = 1024;
/// Most texts of one list.
const TEXTS_MAX: usize = 64;
/// Most leases that one release names.
const RELEASES_MAX: usize = 4096;

fn invalid(field: &str, problem: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("{field}: {problem}"))
}

fn array<const N: usize>(field: &str, bytes: &[u8]) -> Result<[u8; N], Status> {
    let length = bytes.len();
    bytes.try_into().map_err(|_| invalid(field, format_args!("{length} bytes, it has {N}")))
}

fn text(field: &str, text: String) -> Result<String, Status> {
    if text.len() > TEXT_MAX || text.chars().any(char::is_control) {
        return Err(invalid(
            field,
            format_args!("longer than {TEXT_MAX} bytes, or holds control characters"),
        ));
    }
    Ok(text)
}

fn node(field: &str, name: &str) -> Result<NodeName, Status> {
    NodeName::new(name).map_err(|bad| invalid(field, bad))
}

impl Known {
    /// The caller as the core knows it.
    pub(super) fn identity(&self) -> Identity {
        Identity { uid: Uid(self.caller.uid), gid: self.caller.gid, user: self.user.clone() }
    }
}

pub(super) fn acquire(
    request: v1::AcquireRequest,
    who: Identity,
) -> Result<impl FnOnce(CallId) -> Acquire, Status> {
    if request.avoid_nodes.len() > HOSTLIST_MAX {
        return Err(invalid("avoid_nodes", "too many names"));
    }
    let avoid = request.avoid_nodes.iter().map(|name| node("avoid_nodes", name));
    let avoid = avoid.collect::<Result<_, _>>()?;
    let request_id = array("request_id", &request.request_id)?;
    let client_key = array("client_public_key", &request.client_public_key)?;
    let partition = text("partition", request.partition)?;
    let account = text("account", request.account)?;
    Ok(move |call| Acquire {
        call,
        who,
        account,
        request_id,
        client_key,
        nodes_min: request.nodes_min,
        nodes_max: request.nodes_max,
        cores: request.cores,
        memory_bytes: request.memory_bytes,
        ttl: Duration::from_millis(request.ttl_ms),
        partition,
        avoid,
    })
}

pub(super) fn release(request: v1::ReleaseRequest) -> Result<Vec<LeaseId>, Status> {
    if request.lease_ids.len() > RELEASES_MAX {
        return Err(invalid("lease_ids", format_args!("more than {RELEASES_MAX}")));
    }
    Ok(request.lease_ids.into_iter().map(LeaseId).collect())
}

/// A lease for its holder, with the signed token.
pub(super) fn leased(leased: Leased, key: &SigningKey) -> v1::Lease {
    let Leased { claims, node, address, local_socket, executor_key, safe_for } = leased;
    v1::Lease {
        lease_id: claims.lease.0,
        node: node.to_string(),
        cores: claims.cores,
        memory_bytes: claims.memory_bytes,
        grant_epoch: claims.epoch.0,
        token: claims.sign(key).to_vec().into(),
        address,
        executor_public_key: executor_key.to_vec().into(),
        local_socket,
        safe_for_ms: milliseconds(safe_for),
    }
}

/// A registration; `trusted` says whether its sender may register any node.
pub(super) fn join(
    register: v1::Register,
    conn: Conn,
    caller: u32,
    trusted: bool,
) -> Result<Join, Status> {
    if register.limitations.len() > TEXTS_MAX {
        return Err(invalid("limitations", format_args!("more than {TEXTS_MAX}")));
    }
    let limitations = register.limitations.into_iter().map(|line| text("limitations", line));
    Ok(Join {
        conn,
        node: node("node", &register.node)?,
        caller: Uid(caller),
        trusted,
        public_key: array("executor_public_key", &register.executor_public_key)?,
        address: text("address", register.address)?,
        local_socket: text("local_socket", register.local_socket)?,
        boot: BootId(array("boot_id", &register.boot_id)?),
        instance: Instance(array("instance", &register.instance)?),
        stamp: Stamp(register.stamp_ns),
        cores: register.cores,
        memory_bytes: register.memory_bytes,
        single_user: register.single_user.then_some(Uid(register.uid)),
        limitations: limitations.collect::<Result<_, _>>()?,
        version: text("version", register.version)?,
        resume_epoch: Epoch(register.resume_epoch),
        last_term: Term(register.last_term),
        hold_job: JobId(register.hold_job_id),
    })
}

/// What a stream says after its registration.
pub(super) enum FromExecutor {
    Heartbeat(Heartbeat),
    Event { seq: u64, what: ExecutorEvent },
}

pub(super) fn from_executor(message: v1::FromExecutor, conn: Conn) -> Result<FromExecutor, Status> {
    use v1::from_executor::Message;
    let what = match message.message {
        Some(Message::Heartbeat(beat)) => {
            return Ok(FromExecutor::Heartbeat(heartbeat(beat, conn)));
        }
        Some(Message::LeaseEnded(ended)) => ExecutorEvent::LeaseEnded {
            lease: LeaseId(ended.lease_id),
            reason: EndReason::from_number(ended.reason)
                .ok_or_else(|| invalid("reason", ended.reason))?,
            detail: text("detail", ended.detail)?,
            usage: usage(ended.usage.as_ref()),
        },
        Some(Message::Vacated(record)) => ExecutorEvent::Vacated(vacated(record)?),
        Some(Message::JobEvent(event)) => job_event(event),
        Some(Message::LeaseRenewed(renewed)) => ExecutorEvent::LeaseRenewed {
            lease: LeaseId(renewed.lease_id),
            expires: Stamp(renewed.expires_stamp_ns),
        },
        Some(Message::Register(_)) => {
            return Err(invalid("register", "a stream registers once: open another"));
        }
        None => return Err(invalid("message", "none that this version knows")),
    };
    Ok(FromExecutor::Event { seq: message.event_seq, what })
}

fn heartbeat(beat: v1::Heartbeat, conn: Conn) -> Heartbeat {
    let report = |lease: v1::LeaseUsage| LeaseReport {
        lease: LeaseId(lease.lease_id),
        usage: usage(lease.usage.as_ref()),
        expires: Stamp(lease.expires_stamp_ns),
    };
    Heartbeat {
        conn,
        seq: beat.seq,
        stamp: Stamp(beat.stamp_ns),
        epoch: Epoch(beat.grant_epoch),
        leases: beat.leases.into_iter().map(report).collect(),
    }
}

fn job_event(event: v1::JobEvent) -> ExecutorEvent {
    let (job, job_uid, hook_us) = (JobId(event.job_id), Uid(event.job_uid), event.hook_us);
    if event.ended {
        ExecutorEvent::JobEnded { job, job_uid, hook_us }
    } else {
        ExecutorEvent::JobStarting { job, job_uid, hook_us }
    }
}

fn vacated(record: v1::Vacated) -> Result<Vacated, Status> {
    let steps = record.steps.unwrap_or_default();
    Ok(Vacated {
        record_id: array("record_id", &record.record_id)?,
        trigger: Trigger::from_number(record.trigger)
            .ok_or_else(|| invalid("trigger", record.trigger))?,
        epoch: Epoch(record.grant_epoch),
        job: JobId(record.job_id),
        job_uid: Uid(record.job_uid),
        leases: record.leases,
        processes: record.processes,
        memory_bytes: record.memory_bytes,
        steps: StepTimes {
            fence_us: steps.fence_us,
            kill_us: steps.kill_us,
            gone_us: steps.gone_us,
            release_us: steps.release_us,
            answer_us: steps.answer_us,
        },
        stamp: Stamp(record.stamp_ns),
        unix_ms: record.unix_ms,
    })
}

fn usage(usage: Option<&v1::Usage>) -> Usage {
    let usage = usage.copied().unwrap_or_default();
    Usage {
        allocated_core_ns: usage.allocated_core_ns,
        cpu_ns: usage.cpu_ns,
        executing_ns: usage.executing_ns,
        polling_ns: usage.polling_ns,
        calls: usage.calls,
        memory_peak_bytes: usage.memory_peak_bytes,
    }
}

pub(super) fn usage_out(usage: Usage) -> v1::Usage {
    v1::Usage {
        allocated_core_ns: usage.allocated_core_ns,
        cpu_ns: usage.cpu_ns,
        executing_ns: usage.executing_ns,
        polling_ns: usage.polling_ns,
        calls: usage.calls,
        memory_peak_bytes: usage.memory_peak_bytes,
    }
}

pub(super) fn steps_out(steps: StepTimes) -> v1::StepTimes {
    v1::StepTimes {
        fence_us: steps.fence_us,
        kill_us: steps.kill_us,
        gone_us: steps.gone_us,
        release_us: steps.release_us,
        answer_us: steps.answer_us,
    }
}

/// A message for an executor. `registered` adds what only the daemon knows.
pub(super) fn to_executor(
    message: ToExecutor,
    registered: impl FnOnce(v1::Registered) -> v1::Registered,
) -> v1::ToExecutor {
    use v1::to_executor::Message;
    let message = match message {
        ToExecutor::Registered { epoch, term, heartbeat } => {
            Message::Registered(registered(v1::Registered {
                term: term.0,
                heartbeat_ms: milliseconds(heartbeat),
                grant_epoch: epoch.0,
                ..v1::Registered::default()
            }))
        }
        ToExecutor::Grant { epoch, answers_seq, ttl, cores, memory_bytes } => {
            Message::Grant(v1::Grant {
                grant_epoch: epoch.0,
                answers_seq,
                ttl_ms: milliseconds(ttl),
                cores,
                memory_bytes,
            })
        }
        ToExecutor::Vacate { epoch, reason } => {
            Message::Vacate(v1::Vacate { grant_epoch: epoch.0, reason: reason as i32 })
        }
        ToExecutor::Revoke { lease, reason } => {
            Message::Revoke(v1::Revoke { lease_id: lease.0, reason: reason as i32 })
        }
        ToExecutor::Ack { seq } => Message::Ack(v1::Ack { event_seq: seq }),
        ToExecutor::Refused(refusal) => {
            Message::Refused(v1::Refused { reason: refusal.to_string() })
        }
    };
    v1::ToExecutor { message: Some(message) }
}

/// Rounds down: a duration that is promised must not grow on its way.
pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The core's refusal, its sentence unchanged.
pub(super) fn refused(refusal: Refusal) -> Status {
    let text = refusal.to_string();
    match refusal.kind() {
        RefusalKind::Invalid => Status::invalid_argument(text),
        RefusalKind::Over => Status::not_found(text),
        RefusalKind::Denied => Status::permission_denied(text),
        RefusalKind::Exhausted => Status::resource_exhausted(text),
        RefusalKind::Unavailable => Status::unavailable(text),
    }
}

impl From<Unanswered> for Status {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Stopping => Self::unavailable(unanswered.to_string()),
            Unanswered::Late => Self::deadline_exceeded(unanswered.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    fn anybody() -> Identity {
        Identity { uid: Uid(1), gid: 1, user: "ada".into() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_message_is_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64), tag in 1_u8..9) {
            // A field's tag and length before random bytes reaches deeper than random bytes alone.
            let mut inner = vec![tag << 3 | 2, bytes.len() as u8];
            inner.extend(&bytes);
            for bytes in [&bytes, &inner] {
                if let Ok(message) = v1::FromExecutor::decode(bytes.as_slice()) {
                    let _ = from_executor(message, Conn(1));
                }
                if let Ok(register) = v1::Register::decode(bytes.as_slice()) {
                    let _ = join(register, Conn(1), 0, true);
                }
                if let Ok(request) = v1::AcquireRequest::decode(bytes.as_slice()) {
                    let _ = acquire(request, anybody());
                }
            }
        }
    }

    #[test]
    fn the_field_that_is_wrong_is_named() {
        let request = v1::AcquireRequest {
            request_id: vec![0; 16].into(),
            client_public_key: vec![0; 31].into(),
            ..v1::AcquireRequest::default()
        };
        let status = acquire(request, anybody()).err().unwrap();
        assert!(status.message().contains("client_public_key: 31 bytes, it has 32"), "{status}");
    }
}
