//! Vacating the node: fence, kill all at once, wait until all are gone, record. One routine for every trigger.

use std::{os::fd::AsFd, time::SystemTime};

use gleaner_proto::{
    hook::{HookAnswer, HookMessage},
    vacates::{Trigger, VacateRecord},
};

use super::{
    ipc::{End, Notice},
    log::say,
    run::{Keeper, micros},
};
use crate::sys::{self, Waits};

/// How long one look for children that ended sleeps at most: groups that are not empty raise no signal.
const LOOK_NS: u64 = 1_000_000;

/// What makes the node vacate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cause {
    trigger: Trigger,
    job_id: u32,
    job_uid: u32,
    stamp_ns: u64,
}

impl Cause {
    /// A trigger of now that no job made.
    pub(super) fn without_job(trigger: Trigger) -> Self {
        Self { trigger, job_id: 0, job_uid: 0, stamp_ns: sys::boottime_ns() }
    }

    /// The hook's message.
    pub(super) fn prolog(message: &HookMessage, stamp_ns: u64) -> Self {
        let HookMessage { job_id, job_uid, .. } = *message;
        Self { trigger: Trigger::Prolog, job_id, job_uid, stamp_ns }
    }
}

impl Keeper {
    /// Clears the node; waits at most `bound_ns` for the last process. With no grant and no worker there is nothing to do
    /// and nothing to record.
    pub(super) fn vacate(&mut self, cause: Cause, bound_ns: u64) -> HookAnswer {
        let held_grant = self.until.take().is_some();
        let processes = self.workers.present();
        if !held_grant && processes == 0 {
            return HookAnswer::default();
        }
        let leases = self.workers.leases() as u32;
        let since = |stamp_ns: u64| micros(sys::boottime_ns() - stamp_ns);
        self.deadlines.fence(self.epoch);
        let Cause { trigger, job_id, job_uid, stamp_ns } = cause;
        let epoch = self.epoch.0;
        self.agent.notify(&Notice::Fenced { trigger, epoch, job_id, stamp_ns }, None);
        let fence_us = since(stamp_ns);
        self.workers.kill_all(End::Vacated);
        let kill_us = since(stamp_ns);
        let (memory_bytes, gone_us) = self.wait_for_all(stamp_ns, bound_ns);
        let remaining = self.workers.present() as u32;
        let release_us = since(stamp_ns);
        let record = VacateRecord {
            id: random(),
            trigger,
            epoch,
            job_id,
            job_uid,
            leases,
            processes: processes as u32,
            remaining,
            memory_bytes,
            steps_us: [fence_us, kill_us, gone_us, release_us, since(stamp_ns)],
            stamp_ns,
            unix_ms: unix_ms(),
            boot_id: self.boot_id,
        };
        self.record(&record);
        HookAnswer {
            leases,
            processes: processes as u32,
            remaining,
            steps_us: [fence_us, kill_us, gone_us, release_us],
        }
    }

    /// Puts a vacate on record, and tells the agent.
    pub(super) fn record(&mut self, record: &VacateRecord) {
        if let Err(error) = self.journal.append(record) {
            say(format_args!(
                "a vacate is not in the journal: {error}; free space in the runtime directory"
            ));
        }
        self.agent.notify(&Notice::Vacated(*record), None);
    }

    /// Looks until no worker is left; returns the memory that leases gave back and when the last process was gone.
    fn wait_for_all(&mut self, stamp_ns: u64, bound_ns: u64) -> (u64, u32) {
        let until_ns = sys::boottime_ns() + bound_ns;
        let mut memory_bytes = 0;
        loop {
            memory_bytes += self.look().memory_bytes;
            let now_ns = sys::boottime_ns();
            if self.workers.present() == 0 || now_ns >= until_ns {
                return (memory_bytes, micros(now_ns - stamp_ns));
            }
            let mut waits = Waits::<1>::default();
            waits.push(self.signals.as_fd());
            let _ = waits.wait(Some(LOOK_NS.min(until_ns - now_ns)));
            self.read_signals();
        }
    }
}

/// A record's id.
pub(super) fn random() -> [u8; 16] {
    let mut id = [0; 16];
    // Fails on kernels before 3.17 only; such a record would then be stored once for all others.
    let _ = getrandom::fill(&mut id);
    id
}

/// The wall clock, for people.
pub(super) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as i64)
}
