//! The keeper's loop: what has arrived is handled in the order of its urgency, then the loop sleeps.
//!
//! ```text
//!   hook > ends of leases and grants > children that ended > agent > workers becoming ready > refilling the pool
//! ```
//!
//! After [`Keeper::run`] has begun nothing here allocates, and nothing blocks beyond the bound of one vacate.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
};

use gleaner_lease::{
    clock::Stamp,
    deadlines::{DeadlineError, Deadlines, Why},
};
use gleaner_proto::{
    hook::{HookKind, HookMessage},
    ids::{Epoch, LeaseId},
    vacates::Trigger,
    workers::WORKERS_MAX,
};
use nix::sys::{signal::Signal, signalfd::SignalFd};

use super::{
    agent_process::AgentProcess,
    holds::Holds,
    hooks::{self, HOOKS_MAX, Hooks},
    ipc::{End, Notice, Order, StartRefusal},
    journal::Appender,
    log::say,
    reaper::Reaper,
    users::Users,
    vacate::{Cause, Cleared},
    workers::{BECOMING_MAX, Outcome, Refused, Wanted, Workers},
};
use crate::sys::{self, Waits};

/// Most leases at a time on one node.
pub const LEASES_MAX: usize = 192;
const _: () = assert!(LEASES_MAX < WORKERS_MAX, "some places must be left for workers that wait");

/// Orders that one turn of the loop takes: a flood from the agent does not keep the hook waiting.
const ORDERS_A_TURN: usize = 64;
/// How long the loop waits before it looks again at a group that is not empty yet.
const LINGER_NS: u64 = 2_000_000;
/// How long the pool is not refilled after a worker did not start.
const REFILL_PAUSE_NS: u64 = 500_000_000;
/// How long it is not refilled after a lease has taken a worker of it: starting one must not compete with the lease's first call.
const REFILL_AFTER_START_NS: u64 = 20_000_000;
/// The hook's own bound, at most.
const HOOK_BOUND_MS: u32 = 1000;
/// How long a vacate without a hook waits for the last process.
const VACATE_BOUND_NS: u64 = 500_000_000;

/// The keeper, set up.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) workers: Workers,
    pub(super) agent: AgentProcess,
    pub(super) hooks: Hooks,
    pub(super) holds: Holds,
    pub(super) journal: Appender,
    pub(super) deadlines: Box<Deadlines<LEASES_MAX>>,
    /// The grant that was last taken; its epoch stays when it has ended.
    pub(super) epoch: Epoch,
    /// When that grant ends; `None` once it was fenced.
    pub(super) until: Option<Stamp>,
    pub(super) signals: SignalFd,
    pub(super) reaper: Reaper,
    pub(super) stopping: bool,
    /// Its leases are still to be ended.
    pub(super) agent_died: bool,
    pub(super) users: Users,
    pub(super) pool: usize,
    pub(super) refill_not_before_ns: u64,
    pub(super) switch_file: PathBuf,
    pub(super) boot_id: [u8; 16],
}

impl Keeper {
    /// Serves until SIGTERM or SIGINT, then vacates.
    pub(super) fn run(&mut self) {
        while !self.stopping {
            self.turn();
        }
        self.vacate(Cause::without_job(Trigger::Shutdown), VACATE_BOUND_NS);
        self.end_agent();
        self.workers.remove_groups();
    }

    fn turn(&mut self) {
        let now_ns = sys::boottime_ns();
        while let Some((message, socket)) = self.hooks.next(now_ns) {
            self.hook(&message, &socket);
        }
        self.enforce();
        self.read_signals();
        self.look();
        let restart_ns = self.ensure_agent();
        for _ in 0..ORDERS_A_TURN {
            let Some(order) = self.agent.next_order() else { break };
            self.enforce();
            self.order(order);
        }
        self.answers();
        if !self.stopping {
            self.sleep(restart_ns);
        }
    }

    /// Sleeps until something arrives or is due. A pool that wants another worker gets it when nothing else is to be done.
    fn sleep(&mut self, restart_ns: Option<u64>) {
        let now_ns = sys::boottime_ns();
        let refill = self.wants_worker();
        let refill_ns = refill.then(|| self.refill_not_before_ns.max(now_ns));
        let lingers_ns = self.workers.lingering().then_some(now_ns + LINGER_NS);
        let dues = [
            restart_ns,
            refill_ns,
            lingers_ns,
            self.workers.overdue(now_ns),
            self.hooks.overdue(now_ns),
            self.deadlines.next().map(|stamp| stamp.0),
            self.until.map(|stamp| stamp.0),
        ];
        let next_ns = dues.into_iter().flatten().min();
        let mut waits = Waits::<{ HOOKS_MAX + 3 + BECOMING_MAX }>::default();
        waits.push(self.signals.as_fd());
        self.hooks.fds().for_each(|fd| waits.push(fd));
        if let Some(fd) = self.agent.fd() {
            waits.push(fd);
        }
        self.workers.becoming().for_each(|(_, fd)| waits.push(fd));
        let ready = waits.wait(next_ns.map(|next_ns| next_ns.saturating_sub(now_ns)));
        let due = refill_ns.is_some_and(|refill_ns| refill_ns <= now_ns);
        if due && matches!(ready, Ok(0)) {
            self.refill(now_ns);
        }
    }

    fn wants_worker(&self) -> bool {
        let short = self.until.is_some() && self.workers.waiting() < self.pool;
        short
            && !self.holds.any()
            && self.workers.becoming().next().is_none()
            && !self.switched_off()
    }

    fn refill(&mut self, now_ns: u64) {
        if let Err(error) = self.workers.start_one() {
            say(format_args!("a worker does not start in advance: {error}"));
            self.refill_not_before_ns = now_ns + REFILL_PAUSE_NS;
        }
    }

    /// Ends what is over: leases, and the grant.
    fn enforce(&mut self) {
        let now = Stamp(sys::boottime_ns());
        if self.until.is_some_and(|until| until <= now) {
            self.vacate(Cause::without_job(Trigger::GrantEnd), VACATE_BOUND_NS);
        }
        while let Some(due) = self.deadlines.tick(now) {
            let end = if due.why == Why::Deadline { End::Deadline } else { End::Vacated };
            self.workers.kill_lease(due.lease, end);
        }
    }

    /// Looks which signals have come; only the stop signals say something that nothing else does.
    pub(super) fn read_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let stop = [Signal::SIGTERM, Signal::SIGINT];
            self.stopping |= stop.iter().any(|&signal| signal as u32 == info.ssi_signo);
        }
    }

    /// Looks for children that have ended, and tells the agent what became of leases.
    pub(super) fn look(&mut self) {
        self.agent_died |= self.agent.look(&self.reaper, sys::boottime_ns());
        self.workers.look();
        while let Some(outcome) = self.workers.settle(&self.reaper) {
            self.tell(outcome);
        }
        if self.workers.take_waiting_died() {
            self.refill_not_before_ns = sys::boottime_ns() + REFILL_PAUSE_NS;
        }
    }

    /// Nobody would extend or end the leases of an agent that died, and its boards are gone: they end. Then another starts.
    fn ensure_agent(&mut self) -> Option<u64> {
        if std::mem::take(&mut self.agent_died) {
            say(format_args!("the agent has died"));
            self.vacate(Cause::without_job(Trigger::AgentDead), VACATE_BOUND_NS);
        }
        let (started, restart_ns) = self.agent.ensure(sys::boottime_ns());
        if started {
            let hold_job_id = self.holds.first().unwrap_or(0);
            self.agent
                .notify(&Notice::Welcome { hold_job_id, leases_max: LEASES_MAX as u32 }, None);
        }
        restart_ns
    }

    fn answers(&mut self) {
        let mut becoming = [0; BECOMING_MAX];
        let mut count = 0;
        for ((index, _), place) in self.workers.becoming().zip(&mut becoming) {
            *place = index;
            count += 1;
        }
        for &index in &becoming[..count] {
            if let Some(outcome) = self.workers.answer(index) {
                self.tell(outcome);
            }
        }
    }

    fn tell(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Started { lease, pid, socket } => {
                self.agent
                    .notify(&Notice::Started { lease_id: lease.0, pid }, Some(socket.as_fd()));
            }
            Outcome::Failed { lease, refusal, errno, step } => {
                self.deadlines.gone(lease);
                let lease_id = lease.0;
                self.agent.notify(&Notice::StartFailed { lease_id, refusal, errno, step }, None);
            }
            Outcome::Gone { lease, end, cpu_ns, memory_peak_bytes } => {
                self.deadlines.gone(lease);
                let lease_id = lease.0;
                self.agent.notify(&Notice::Gone { lease_id, end, cpu_ns, memory_peak_bytes }, None);
            }
        }
    }

    fn order(&mut self, order: Order) {
        let now = Stamp(sys::boottime_ns());
        match order {
            Order::Grant { epoch, until_ns } => self.grant(now, Epoch(epoch), Stamp(until_ns)),
            Order::Start { lease_id, epoch, uid, gid, cores, memory_bytes, deadline_ns } => {
                let wanted = Wanted { lease: LeaseId(lease_id), uid, gid, cores, memory_bytes };
                if let Err(Refused { refusal, errno }) =
                    self.start(now, Epoch(epoch), Stamp(deadline_ns), wanted)
                {
                    self.agent
                        .notify(&Notice::StartFailed { lease_id, refusal, errno, step: 0 }, None);
                }
            }
            Order::Extend { lease_id, deadline_ns } => {
                // One that is over stays over: its `Gone` is on the way.
                let _ = self.deadlines.extend(now, LeaseId(lease_id), Stamp(deadline_ns));
            }
            Order::Stop { lease_id } => {
                self.workers.kill_lease(LeaseId(lease_id), End::Stopped);
            }
            Order::Vacate { trigger } => {
                self.vacate(Cause::without_job(trigger), VACATE_BOUND_NS);
            }
        }
    }

    fn grant(&mut self, now: Stamp, epoch: Epoch, until: Stamp) {
        let newer = epoch > self.epoch;
        match self.deadlines.grant(now, epoch, until) {
            Ok(until) => {
                if newer {
                    self.holds.clear();
                }
                self.epoch = epoch;
                self.until = Some(until);
            }
            Err(error) => say(format_args!("grant not taken: {error}")),
        }
    }

    fn start(
        &mut self,
        now: Stamp,
        epoch: Epoch,
        deadline: Stamp,
        wanted: Wanted,
    ) -> Result<(), Refused> {
        let refuse = |refusal| Err(Refused { refusal, errno: 0 });
        if self.switched_off() {
            return refuse(StartRefusal::SwitchedOff);
        }
        if self.holds.any() {
            return refuse(StartRefusal::Held);
        }
        let Some((uid, gid)) = self.users.map(wanted.uid, wanted.gid) else {
            return refuse(StartRefusal::Identity);
        };
        match self.deadlines.start(now, wanted.lease, epoch, deadline) {
            Ok(_) => {}
            Err(DeadlineError::Known(_)) => return refuse(StartRefusal::Duplicate),
            Err(DeadlineError::Full(_)) => return refuse(StartRefusal::Full),
            Err(_) => return refuse(StartRefusal::Epoch),
        }
        // Not later for each of many leases: the pool would stay empty.
        if self.refill_not_before_ns <= now.0 {
            self.refill_not_before_ns = now.0 + REFILL_AFTER_START_NS;
        }
        let lease = wanted.lease;
        self.workers.hand_over(now.0, Wanted { uid, gid, ..wanted }).inspect_err(|_| {
            self.deadlines.gone(lease);
        })
    }

    fn switched_off(&self) -> bool {
        self.switch_file.exists()
    }

    fn hook(&mut self, message: &HookMessage, socket: &OwnedFd) {
        let stamp_ns = sys::boottime_ns();
        let bound_ns = u64::from(message.bound_ms.min(HOOK_BOUND_MS)) * 1_000_000;
        let cleared = match message.kind {
            HookKind::Prolog => {
                // Before anything is killed: a worker must not be replaced.
                self.holds.add(message.job_id);
                // The hook waits for half of its bound: the answer comes before it stops listening.
                self.clear(Cause::prolog(message, stamp_ns), bound_ns * 2 / 5)
            }
            HookKind::Epilog => {
                self.holds.end(message.job_id);
                None
            }
        };
        let answer = cleared.as_ref().map(Cleared::answer).unwrap_or_default();
        hooks::answer(socket, &answer);
        let hook_us = micros(sys::boottime_ns() - stamp_ns);
        // The job no longer waits.
        cleared.into_iter().for_each(|cleared| self.tidy(cleared));
        let ended = message.kind == HookKind::Epilog;
        let HookMessage { job_id, job_uid, .. } = *message;
        self.agent.notify(&Notice::JobEvent { ended, job_id, job_uid, stamp_ns, hook_us }, None);
    }

    /// Lets the agent say goodbye, then makes sure.
    fn end_agent(&mut self) {
        for (signal, bound_ns) in
            [(libc::SIGTERM, VACATE_BOUND_NS), (libc::SIGKILL, VACATE_BOUND_NS)]
        {
            let until_ns = sys::boottime_ns() + bound_ns;
            self.agent.signal(signal);
            while self.agent.lives() && sys::boottime_ns() < until_ns {
                let mut waits = Waits::<1>::default();
                waits.push(self.signals.as_fd());
                let left_ns = until_ns.saturating_sub(sys::boottime_ns());
                let _ = waits.wait(Some(left_ns));
                self.read_signals();
                self.look();
            }
        }
    }
}

/// Whole microseconds; a wait that does not fit counts as the longest that does.
pub(super) fn micros(ns: u64) -> u32 {
    u32::try_from(ns / 1000).unwrap_or(u32::MAX)
}
