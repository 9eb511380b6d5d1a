//! What the keeper says, and what becomes of leases by it: the other half of [`Node`](super::node::Node).

use std::{io, os::fd::OwnedFd, sync::Arc};

use gleaner_lease::state::EndReason;
use gleaner_proto::{
    ids::{Epoch, LeaseId},
    v1,
    vacates::Trigger,
};
use tracing::info;

use super::{
    AgentError, clock,
    lease::Worker,
    meter::{self, Kernel},
    node::Node,
    workers,
};
use crate::keeper::ipc::{End, Notice};

impl Node {
    /// Takes what the keeper says, as far as it is here.
    pub(super) fn keeper_notices(&mut self) -> Result<(), AgentError> {
        loop {
            match self.keeper.notice() {
                Ok((notice, fd)) => self.notice(notice, fd),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(AgentError::Keeper(error)),
            }
        }
    }

    fn notice(&mut self, notice: Notice, fd: Option<OwnedFd>) {
        match notice {
            Notice::Welcome { hold_job_id, .. } => self.reports.hold_job_id = hold_job_id,
            Notice::Started { lease_id, pid } => self.started(LeaseId(lease_id), pid, fd),
            Notice::StartFailed { lease_id, refusal, errno, step } => {
                let detail = start_detail(errno, step);
                self.start_failed(LeaseId(lease_id), refusal, &detail);
            }
            Notice::Gone { lease_id, end, cpu_ns, memory_peak_bytes } => {
                self.gone(LeaseId(lease_id), end, Kernel { cpu_ns, memory_peak_bytes });
            }
            Notice::Fenced { trigger, epoch, job_id, .. } => {
                let reason = reason_of(trigger);
                info!(?trigger, epoch, job_id, "node is being vacated");
                self.fenced = Some((Epoch(epoch), reason));
                self.holder.vacate(Epoch(epoch), reason);
                for stop in self.holder.tick(clock::now()) {
                    self.stop(stop);
                }
            }
            Notice::Vacated(_) => {
                self.fenced = None;
                self.reports.vacated();
            }
            Notice::JobEvent { ended, job_id, job_uid, stamp_ns, hook_us } => {
                self.reports.hold_job_id = if ended { 0 } else { job_id };
                let hook_us = u64::from(hook_us);
                let event = v1::JobEvent { ended, job_id, job_uid, stamp_ns, hook_us };
                self.reports.job_event(event);
            }
        }
    }

    fn started(&mut self, id: LeaseId, pid: u32, socket: Option<OwnedFd>) {
        let (Some(lease), Some(socket)) = (self.leases.get_mut(&id), socket) else {
            return;
        };
        let socket = Arc::new(socket);
        let told = lease.started(Worker { pid, socket: socket.clone() });
        let watched = told.map_err(|error| error.to_string()).and_then(|()| {
            let inputs = self.shared.inputs.clone();
            workers::watch(id, &socket, inputs).map_err(|error| error.to_string())
        });
        if let Err(why) = watched {
            self.turn_away(id, &why);
            return self.worker_lost(id, &why);
        }
        info!(lease = %id, pid, "worker started");
        let waiters = std::mem::take(&mut lease.waiters);
        waiters.into_iter().for_each(|waiter| self.begin_session(id, waiter));
    }

    /// The keeper's word that nothing of the lease is left: the verdicts are final, and everybody is told.
    fn gone(&mut self, id: LeaseId, end: End, kernel: Kernel) {
        let now = clock::now();
        let stops = self.holder.tick(now);
        stops.into_iter().for_each(|stop| self.stop(stop));
        self.turn_away(id, "the lease's worker died before it was ready");
        let Some(mut lease) = self.leases.remove(&id) else {
            return;
        };
        let reason = match (&lease.ending, end) {
            (Some((reason, _)), _) => *reason,
            (None, End::Deadline) => EndReason::Expired,
            (None, End::Vacated) => {
                self.fenced.map_or(EndReason::ExecutorLost, |(_, reason)| reason)
            }
            (None, _) => EndReason::WorkerFailed,
        };
        let detail = lease.epitaph(end);
        lease.evict(reason, &detail);
        self.sessions.retain(|_, of| *of != id);
        let held = now.since(lease.since);
        let usage = meter::usage(lease.claims.cores, held, kernel, lease.board.usage_total());
        self.finished(id, reason, &detail, usage);
    }

    /// Nothing of the lease is left here: the harvester may hand its slice out again.
    pub(super) fn finished(
        &mut self,
        id: LeaseId,
        reason: EndReason,
        detail: &str,
        usage: v1::Usage,
    ) {
        info!(lease = %id, ?reason, detail, "lease ended");
        self.holder.gone(id);
        self.reports.lease_ended(id, reason, detail, usage);
    }
}

/// What the session's clients are told about a vacate.
fn reason_of(trigger: Trigger) -> EndReason {
    match trigger {
        Trigger::Prolog | Trigger::HookAlone | Trigger::Poll => EndReason::BatchJob,
        Trigger::GrantEnd => EndReason::GrantEnded,
        Trigger::Drain => EndReason::Drained,
        Trigger::SwitchOff => EndReason::SwitchedOff,
        Trigger::AgentDead | Trigger::KeeperStart | Trigger::Shutdown => EndReason::ExecutorLost,
    }
}

fn start_detail(errno: i32, step: u32) -> String {
    match (errno, step) {
        (0, _) => String::new(),
        (errno, 0) => format!(": {}", io::Error::from_raw_os_error(errno)),
        (errno, step) => {
            let step = crate::worker::sandbox::step_name(step);
            format!(": {step}: {}", io::Error::from_raw_os_error(errno))
        }
    }
}
