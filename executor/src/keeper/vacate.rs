//! Vacating the node: fence, kill all at once, wait until all are gone, record; then, when the hook has its answer, tidy up.
//! One routine for every trigger.

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

/// How long one look sleeps at most: groups that are not empty raise no signal.
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

    /// How long ago it was.
    fn age_us(&self) -> u32 {
        micros(sys::boottime_ns() - self.stamp_ns)
    }
}

/// A vacate whose processes are gone and that is on record; what they left is not tidied up yet.
#[derive(Debug)]
pub(super) struct Cleared {
    record: VacateRecord,
    /// When the bound is over.
    until_ns: u64,
}

impl Cleared {
    /// What the hook is told. The kernel frees a process's memory before it says that it has ended.
    pub(super) fn answer(&self) -> HookAnswer {
        let VacateRecord { leases, processes, remaining, .. } = self.record;
        let [fence_us, kill_us, gone_us, _, answer_us] = self.record.steps_us;
        let steps_us = [fence_us, kill_us, gone_us, answer_us];
        HookAnswer { leases, processes, remaining, steps_us }
    }
}

impl Keeper {
    /// Clears the node; waits at most `bound_ns` for the last process.
    pub(super) fn vacate(&mut self, cause: Cause, bound_ns: u64) {
        if let Some(cleared) = self.clear(cause, bound_ns) {
            self.tidy(cleared);
        }
    }

    /// Fences, kills, waits at most `bound_ns` for the last process, and puts that on record; [`tidy`](Self::tidy) must follow.
    /// `None`: with no grant and no worker there is nothing to do and nothing to record.
    pub(super) fn clear(&mut self, cause: Cause, bound_ns: u64) -> Option<Cleared> {
        let held_grant = self.until.take().is_some();
        let processes = self.workers.present() as u32;
        if !held_grant && processes == 0 {
            return None;
        }
        let until_ns = sys::boottime_ns() + bound_ns;
        let leases = self.workers.leases() as u32;
        self.deadlines.fence(self.epoch);
        let Cause { trigger, job_id, job_uid, stamp_ns } = cause;
        let epoch = self.epoch.0;
        self.agent.notify(&Notice::Fenced { trigger, epoch, job_id, stamp_ns }, None);
        let fence_us = cause.age_us();
        self.workers.kill_all(End::Vacated);
        let kill_us = cause.age_us();
        let remaining = self.wait_for_all(until_ns) as u32;
        let gone_us = cause.age_us();
        let record = VacateRecord {
            id: random(),
            trigger,
            epoch,
            job_id,
            job_uid,
            leases,
            processes,
            remaining,
            memory_bytes: self.workers.freed_bytes(),
            steps_us: [fence_us, kill_us, gone_us, gone_us, cause.age_us()],
            stamp_ns,
            unix_ms: unix_ms(),
            boot_id: self.boot_id,
        };
        self.write(&record);
        Some(Cleared { record, until_ns })
    }

    /// Frees the places of all that are gone, and tells the agent of each lease's end and of the vacate.
    pub(super) fn tidy(&mut self, cleared: Cleared) {
        self.settle_all(cleared.until_ns);
        self.agent.notify(&Notice::Vacated(cleared.record), None);
    }

    fn settle_all(&mut self, until_ns: u64) {
        loop {
            self.look();
            let left_ns = until_ns.saturating_sub(sys::boottime_ns());
            if self.workers.present() == 0 || left_ns == 0 {
                return;
            }
            let mut waits = Waits::<1>::default();
            waits.push(self.signals.as_fd());
            let _ = waits.wait(Some(LOOK_NS.min(left_ns)));
            self.read_signals();
        }
    }

    /// Puts a vacate on record, and tells the agent.
    pub(super) fn record(&mut self, record: &VacateRecord) {
        self.write(record);
        self.agent.notify(&Notice::Vacated(*record), None);
    }

    fn write(&mut self, record: &VacateRecord) {
        if let Err(error) = self.journal.append(record) {
            say(format_args!(
                "a vacate is not in the journal: {error}; free space in the runtime directory"
            ));
        }
    }

    /// Waits until no process is left; returns how many are. Nothing else is done meanwhile: the dying need the CPUs.
    fn wait_for_all(&mut self, until_ns: u64) -> usize {
        loop {
            self.workers.look();
            let left_ns = until_ns.saturating_sub(sys::boottime_ns());
            let remaining = self.workers.remaining();
            if remaining == 0 || left_ns == 0 {
                return remaining;
            }
            let mut waits = Waits::<1>::default();
            // One at a time: each wake-up takes a CPU from the dying.
            let bound_ns = match self.workers.living() {
                Some(pidfd) => {
                    waits.push(pidfd);
                    left_ns
                }
                None => LOOK_NS.min(left_ns),
            };
            let _ = waits.wait(Some(bound_ns));
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
