//! What the harvester is told: heartbeats with each lease's usage, and events until it has stored them.
//!
//! Owned by [`super::node`]. Vacates come from the node's journal, where keeper and hook wrote them: they outlive this
//! agent, and are reported again after a restart until they are acknowledged.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use gleaner_lease::{clock::Stamp, holder::Holder, state::EndReason};
use gleaner_proto::{
    ids::{Epoch, LeaseId},
    v1::{self, FromExecutor, from_executor::Message},
    vacates::VacateRecord,
};
use tokio::sync::mpsc;
use tracing::warn;

use super::{
    lease::Lease,
    meter,
    outbox::Outbox,
    tune::{HEARTBEAT, RECORD_WAIT},
};
use crate::keeper::journal::{Journalled, Reader};

/// The way up: outbox, journal, and the stream while there is one.
pub(super) struct Reports {
    /// A prolog was seen and its epilog not yet.
    pub(super) hold_job_id: u32,
    outbox: Outbox,
    journal: Reader,
    /// The journal's position behind each vacate that waits for its acknowledgement, by event number.
    vacates: BTreeMap<u64, u64>,
    /// The last position that was made an event.
    reported: u64,
    acknowledged: BTreeSet<u64>,
    stream: Option<mpsc::Sender<FromExecutor>>,
    period: Duration,
    next: Stamp,
    /// The newest epoch that a vacate in the journal has ended.
    journalled: Epoch,
    /// An epoch that ended here, and until when the keeper's record of it is awaited.
    over: Option<(Epoch, Stamp)>,
}

impl Reports {
    /// Nothing to report but what the journal holds from before.
    pub(super) fn new(journal: Reader) -> Self {
        let mut reports = Self {
            hold_job_id: 0,
            outbox: Outbox::default(),
            journal,
            vacates: BTreeMap::new(),
            reported: 0,
            acknowledged: BTreeSet::new(),
            stream: None,
            period: HEARTBEAT.1,
            next: Stamp(u64::MAX),
            journalled: Epoch(0),
            over: None,
        };
        reports.vacated();
        reports
    }

    /// The harvester has registered this executor: everything that it has not acknowledged goes again, then heartbeats.
    pub(super) fn connected(
        &mut self,
        stream: mpsc::Sender<FromExecutor>,
        period: Duration,
        now: Stamp,
    ) {
        self.period = period.clamp(HEARTBEAT.0, HEARTBEAT.1);
        self.next = now;
        for event in self.outbox.unacknowledged() {
            if stream.try_send(event).is_err() {
                break;
            }
        }
        self.stream = Some(stream);
    }

    /// The stream is gone. Leases go on until the grant ends.
    pub(super) fn disconnected(&mut self) {
        self.stream = None;
        self.next = Stamp(u64::MAX);
    }

    /// When [`report_if_due`](Self::report_if_due) has something to say next.
    pub(super) fn next_due(&self) -> Stamp {
        self.over.map_or(self.next, |(_, at)| at.min(self.next))
    }

    /// An epoch ended here and nothing of it is left. The harvester goes on granting it until it is told: by the
    /// keeper's record of the vacate, or, where the keeper had nothing to clear, by an event without one.
    pub(super) fn epoch_over(&mut self, epoch: Epoch, now: Stamp) {
        self.over = Some((epoch, now.after(RECORD_WAIT)));
    }

    /// Sends a heartbeat if it is time, and tells of an epoch that ended without a record.
    pub(super) fn report_if_due(
        &mut self,
        now: Stamp,
        holder: &mut Holder,
        leases: &BTreeMap<LeaseId, Lease>,
    ) {
        if let Some((epoch, _)) = self.over.take_if(|(_, at)| *at <= now)
            && epoch > self.journalled
        {
            self.event(Message::Vacated(unrecorded(epoch, now)));
        }
        let Some(stream) = self.stream.as_ref().filter(|_| self.next <= now) else {
            return;
        };
        let beat = holder.heartbeat(now);
        let leases = holder
            .held()
            .map(|(id, expires)| v1::LeaseUsage {
                lease_id: id.0,
                usage: leases.get(&id).map(|lease| usage(lease, now)),
                expires_stamp_ns: expires.0,
            })
            .collect();
        let heartbeat = v1::Heartbeat {
            seq: beat.seq,
            stamp_ns: beat.stamp.0,
            grant_epoch: beat.epoch.0,
            leases,
        };
        // A full stream is a harvester that does not read: the next heartbeat tries again.
        let message = Some(Message::Heartbeat(heartbeat));
        let _ = stream.try_send(FromExecutor { event_seq: 0, message });
        self.next = now.after(self.period);
    }

    /// A lease is over, and nothing of it is left.
    pub(super) fn lease_ended(
        &mut self,
        id: LeaseId,
        reason: EndReason,
        detail: &str,
        usage: v1::Usage,
    ) {
        self.event(Message::LeaseEnded(v1::LeaseEnded {
            lease_id: id.0,
            reason: reason as i32,
            detail: detail.to_owned(),
            usage: Some(usage),
            stamp_ns: super::clock::now().0,
        }));
    }

    /// A client renewed its lease.
    pub(super) fn lease_renewed(&mut self, id: LeaseId, expires: Stamp) {
        let expires_stamp_ns = expires.0;
        self.event(Message::LeaseRenewed(v1::LeaseRenewed { lease_id: id.0, expires_stamp_ns }));
    }

    /// A batch job started or ended here.
    pub(super) fn job_event(&mut self, event: v1::JobEvent) {
        self.event(Message::JobEvent(event));
    }

    /// The journal has grown: reports what is new in it.
    pub(super) fn vacated(&mut self) {
        let records = match self.journal.unacknowledged() {
            Ok(records) => records,
            Err(error) => return warn!(%error, "cannot read the journal of vacates"),
        };
        for Journalled { record, position } in records {
            if position > self.reported {
                self.reported = position;
                self.journalled = self.journalled.max(Epoch(record.epoch));
                let seq = self.event(Message::Vacated(vacated(&record)));
                self.vacates.insert(seq, position);
            }
        }
    }

    /// The harvester has stored an event.
    pub(super) fn acknowledge(&mut self, seq: u64) {
        self.outbox.acknowledge(seq);
        let Some(position) = self.vacates.remove(&seq) else {
            return;
        };
        self.acknowledged.insert(position);
        let waiting = self.vacates.values().min().copied().unwrap_or(u64::MAX);
        let behind = self.acknowledged.range(..waiting).next_back().copied();
        let Some(position) = behind else { return };
        match self.journal.acknowledge(position) {
            Ok(()) => self.acknowledged = self.acknowledged.split_off(&(position + 1)),
            Err(error) => {
                warn!(%error, "cannot note how far the journal of vacates was acknowledged")
            }
        }
    }

    fn event(&mut self, event: Message) -> u64 {
        let event = self.outbox.push(event);
        let seq = event.event_seq;
        if let Some(stream) = &self.stream {
            // What does not fit goes again after the next reconnect; a harvester that lags so far loses its stream.
            if stream.try_send(event).is_err() {
                self.stream = None;
            }
        }
        seq
    }
}

fn usage(lease: &Lease, now: Stamp) -> v1::Usage {
    let kernel = lease.worker.as_ref().map(|worker| meter::live(worker.pid)).unwrap_or_default();
    let claims = lease.board.usage_total();
    meter::usage(lease.claims.cores, now.since(lease.since), kernel, claims)
}

/// An epoch's end at which there was nothing to clear: no vacate, hence no record's id.
fn unrecorded(epoch: Epoch, now: Stamp) -> v1::Vacated {
    v1::Vacated {
        trigger: v1::Trigger::GrantEnd as i32,
        grant_epoch: epoch.0,
        stamp_ns: now.0,
        record_id: vec![0; 16].into(),
        steps: Some(v1::StepTimes::default()),
        ..Default::default()
    }
}

fn vacated(record: &VacateRecord) -> v1::Vacated {
    let [fence_us, kill_us, gone_us, release_us, answer_us] = record.steps_us.map(u64::from);
    v1::Vacated {
        trigger: record.trigger as i32,
        grant_epoch: record.epoch,
        job_id: record.job_id,
        job_uid: record.job_uid,
        leases: record.leases,
        processes: record.processes,
        memory_bytes: record.memory_bytes,
        steps: Some(v1::StepTimes { fence_us, kill_us, gone_us, release_us, answer_us }),
        stamp_ns: record.stamp_ns,
        unix_ms: record.unix_ms,
        record_id: record.id.to_vec().into(),
    }
}
