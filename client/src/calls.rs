//! A pool's calls and sessions: where each call is, how it gets a slot, how it ends. One thread at a time is inside.
//!
//! ```text
//!  submit ──▶ Queued ──▶ Sent ──answer──▶ Replied ──taken──▶ Free
//!               ▲          │
//!               └─eviction─┴──────▶ Done (with a copy of the reply, or the error)
//! ```
//!
//! [`crate::pool`] and [`crate::function`] are the callers; [`crate::slots`] hands out slots, [`crate::replies`] has replies taken, [`crate::eviction`] moves calls, [`crate::relocate`] gets
//! leases, [`crate::waiting`] sleeps. On the path of a call that meets none of these nothing is allocated.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use gleaner_proto::header::Status;

use crate::{
    client::Identity,
    ended::{Ended, Listener},
    error::{CallError, Failure},
    event::{EVENTS_MAX, PoolEvent, PoolStats},
    function::Settings,
    harvester::Harvester,
    keepalive::Renewer,
    lane::Answer,
    library::Library,
    local::LocalFunction,
    relocate::Relocation,
    request::Request,
    session::Session,
    spin::Spin,
    tune::OVERRUN_GRACE,
    waiting::Wakers,
};

/// A call's place in its pool; stale once the call was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallKey {
    pub(crate) index: u32,
    pub(crate) number: u64,
}

/// Writes an input in place, once.
pub(crate) type Fill<'a> = &'a mut dyn FnMut(&mut [u8]);

/// Reads a reply in place.
pub(crate) type Read<'a> = &'a mut dyn FnMut(&[u8]);

/// Everything of a pool.
pub(crate) struct Calls {
    pub(crate) harvester: Arc<Harvester>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) renewer: Option<Renewer>,
    pub(crate) request: Request,
    pub(crate) sessions: Vec<Option<Session>>,
    pub(crate) functions: Vec<Opened>,
    pub(crate) calls: Vec<Call>,
    /// Places of calls that are free.
    pub(crate) free: Vec<u32>,
    /// Calls that wait for a slot, oldest first.
    pub(crate) queue: VecDeque<u32>,
    pub(crate) events: VecDeque<PoolEvent>,
    pub(crate) stats: PoolStats,
    pub(crate) relocation: Relocation,
    pub(crate) spin: Spin,
    pub(crate) wakers: Wakers,
    /// Who is told of which calls' ends.
    pub(crate) ended: Ended,
    /// No call's time is over before this; `None`: none has a bound.
    pub(crate) due: Option<Instant>,
    pub(crate) last_number: u64,
    /// The session and the lane of the last call.
    pub(crate) last: (usize, usize),
}

/// A function of the pool.
pub(crate) struct Opened {
    pub(crate) library: Library,
    pub(crate) name: String,
    /// Set once the pool runs calls in this process.
    pub(crate) local: Option<LocalFunction>,
}

/// One call.
#[derive(Default)]
pub(crate) struct Call {
    pub(crate) number: u64,
    pub(crate) function: u32,
    pub(crate) settings: Settings,
    pub(crate) state: State,
    pub(crate) due: Option<Instant>,
    pub(crate) reruns: u32,
    pub(crate) executing_ns: u64,
    pub(crate) cancelled: bool,
    /// Nobody waits for it any more: it is freed when it ends.
    pub(crate) dropped: bool,
    /// How it ends if it cannot run again: set once it had begun somewhere.
    pub(crate) cut_off: Option<Box<CallError>>,
    /// Who is told when it has ended.
    pub(crate) listener: Listener,
}

/// Where a call is.
#[derive(Default)]
pub(crate) enum State {
    #[default]
    Free,
    /// Waits for a slot, with its input.
    Queued(Vec<u8>),
    Sent(Place),
    /// Answered well; the reply still lies in its slot.
    Replied(Place),
    /// Boxed, since it is seldom: a state is then short, and what it drops is seen by its tag.
    Done(Box<Outcome>),
}

/// How a call ended that no slot holds the reply of.
pub(crate) type Outcome = Result<Vec<u8>, CallError>;

/// A slot of a lane of a session: one word, since it is kept and passed on with each call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    session: u32,
    lane: u16,
    pub(crate) slot: u16,
}

impl Place {
    /// A lease has far fewer lanes, and a pool far fewer sessions, than there is room for.
    #[inline]
    pub(crate) fn new(session: usize, lane: usize, slot: u16) -> Self {
        debug_assert!(session <= u32::MAX as usize && lane <= usize::from(u16::MAX));
        Self { session: session as u32, lane: lane as u16, slot }
    }

    #[inline]
    pub(crate) fn session(self) -> usize {
        self.session as usize
    }

    #[inline]
    pub(crate) fn lane(self) -> usize {
        usize::from(self.lane)
    }
}

impl Calls {
    pub(crate) fn new(
        harvester: Arc<Harvester>,
        identity: Arc<Identity>,
        request: Request,
    ) -> Self {
        let hot = request.waiting.hot_for();
        Self {
            harvester,
            identity,
            renewer: None,
            request,
            sessions: Vec::new(),
            functions: Vec::new(),
            calls: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            events: VecDeque::new(),
            stats: PoolStats::default(),
            relocation: Relocation::new(),
            spin: Spin::new(hot),
            wakers: Wakers::default(),
            ended: Ended::default(),
            due: None,
            last_number: 0,
            // So that the first of all are next.
            last: (usize::MAX - 1, usize::MAX - 1),
        }
    }

    /// Sends a call, or queues it while there is no lease; waits while every slot is in use. Compiled as one, for all callers: so
    /// nothing that it finds goes through memory.
    pub(crate) fn submit(
        &mut self,
        function: u32,
        settings: &Settings,
        listener: Listener,
        len: usize,
        fill: Fill<'_>,
    ) -> Result<CallKey, CallError> {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.look_around();
        let due = settings.due();
        let mut found = self.prepare(len, settings);
        if found.is_none() {
            found = self.await_slot(len, settings)?;
        }
        self.last_number += 1;
        let key = self.record(function, settings, due, listener);
        match found {
            Some(place) => self.send(key.index, place, fill),
            None => self.enqueue(key.index, len, fill),
        }
        Ok(key)
    }

    /// No slot is free: waits for one while there is a lease. Refuses what no lane can ever carry.
    #[cold]
    fn await_slot(&mut self, len: u32, settings: &Settings) -> Result<Option<Place>, CallError> {
        self.check_size(len, settings)?;
        while self.live() > 0 {
            if !self.spill_one() && !self.pump() {
                self.idle(None, None);
            }
            if let found @ Some(_) = self.prepare(len, settings) {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// Keeps a call's input until there is a lease.
    #[cold]
    pub(crate) fn enqueue(&mut self, index: u32, len: u32, fill: Fill<'_>) {
        let mut input = vec![0; len as usize];
        fill(&mut input);
        self.calls[index as usize].state = State::Queued(input);
        self.queue.push_back(index);
    }

    /// The caller gives a call up.
    pub(crate) fn cancel(&mut self, key: CallKey, grace: Duration) {
        let call = &mut self.calls[key.index as usize];
        if call.number != key.number {
            return;
        }
        call.cancelled = true;
        match call.state {
            State::Queued(_) => self.end(key.index, Err(CallError::Failed(Failure::Cancelled))),
            State::Sent(place) => self.cancel_at(place, grace),
            _ => {}
        }
    }

    /// Nobody will wait for this call: it ends unheard.
    pub(crate) fn drop_call(&mut self, key: CallKey, grace: Duration) {
        if self.calls[key.index as usize].number != key.number {
            return;
        }
        self.calls[key.index as usize].dropped = true;
        self.cancel(key, grace);
        if self.is_done(key) {
            self.take(key, &mut |_| ());
        }
    }

    /// Takes one answer from every lane that has one; false if none had.
    pub(crate) fn pump(&mut self) -> bool {
        let mut answered = false;
        for session in 0..self.sessions.len() {
            let lanes = self.sessions[session].as_ref().map_or(0, |open| open.lanes.len());
            for lane in 0..lanes {
                answered |= self.pump_lane(session, lane, 1);
            }
        }
        answered
    }

    /// Takes one answer from a place's lane. Who spins looks for it as often as fits between two readings of the clock.
    #[inline(always)]
    pub(crate) fn watch(&mut self, place: Place) -> bool {
        let looks = self.spin.looks();
        let answered = self.pump_lane(place.session(), place.lane(), looks);
        if !answered {
            self.spin.looked(looks);
        }
        answered
    }

    /// Takes one answer from a lane, if it has one within so many looks.
    #[inline(always)]
    fn pump_lane(&mut self, session: usize, lane: usize, looks: u32) -> bool {
        let Some(open) = self.sessions.get_mut(session).and_then(Option::as_mut) else {
            return false;
        };
        if open.closing.is_some() {
            return false;
        }
        let at = &mut open.lanes[lane];
        for _ in 0..looks {
            match at.poll() {
                Ok(Some(answer)) => {
                    self.answered(session, lane, answer);
                    return true;
                }
                Ok(None) => {}
                Err(error) => {
                    open.close(error.to_string());
                    return false;
                }
            }
        }
        false
    }

    /// An answer has come: the call ends, or its reply waits in the slot.
    #[inline(always)]
    pub(crate) fn answered(&mut self, session: usize, lane: usize, answer: Answer) {
        let Answer { slot, call, status, time_ns, .. } = answer;
        let place = Place::new(session, lane, slot);
        self.spin.answered();
        let Some(index) = call else {
            self.free_slot(place);
            return;
        };
        let call = &mut self.calls[index as usize];
        call.executing_ns = time_ns;
        if status == Status::Ok && !call.dropped {
            call.state = State::Replied(place);
            self.stats.ok += 1;
            self.tell(index);
        } else {
            self.answered_otherwise(index, place, &answer);
        }
    }

    /// The answer is no reply that somebody waits for.
    #[cold]
    fn answered_otherwise(&mut self, index: u32, place: Place, answer: &Answer) {
        if answer.status == Status::Stale {
            self.requeue(index, place);
            return;
        }
        let error = self.failure(index, place, answer);
        self.free_slot(place);
        self.end(index, Err(error));
    }

    /// Ends a call, or frees it if nobody waits.
    pub(crate) fn end(&mut self, index: u32, outcome: Outcome) {
        match &outcome {
            Ok(_) => self.stats.ok += 1,
            Err(CallError::Failed(_)) => self.stats.failed += 1,
            Err(CallError::Evicted { .. }) => self.stats.evicted += 1,
            Err(CallError::Unknown { .. }) => self.stats.unknown += 1,
        }
        if !self.queue.is_empty() {
            self.queue.retain(|queued| *queued != index);
        }
        let call = &mut self.calls[index as usize];
        if call.dropped {
            call.state = State::Free;
            self.free.push(index);
        } else {
            call.state = State::Done(Box::new(outcome));
            self.tell(index);
        }
    }

    /// Ends calls whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.due = None;
        for index in 0..self.calls.len() {
            let call = &self.calls[index];
            let place = match call.state {
                State::Sent(place) => Some(place),
                State::Queued(_) => None,
                _ => continue,
            };
            let Some(due) = call.due else {
                continue;
            };
            if due > now {
                self.due = [self.due, Some(due)].into_iter().flatten().min();
                continue;
            }
            let after = call.settings.deadline.unwrap_or_default();
            if let Some(place) = place {
                self.cancel_at(place, OVERRUN_GRACE);
                if let Some(open) = self.sessions[place.session()].as_mut() {
                    open.lanes[place.lane()].abandon(place.slot);
                }
            }
            self.end(index as u32, Err(CallError::Failed(Failure::Deadline { after })));
        }
    }

    /// Places of calls that are free.
    pub(crate) fn idle_places(&self) -> usize {
        self.free.len()
    }

    /// Leases that are live.
    pub(crate) fn live(&self) -> usize {
        self.sessions.iter().flatten().filter(|open| open.closing.is_none()).count()
    }

    /// Notes an event, forgetting the oldest beyond the bound.
    pub(crate) fn note(&mut self, event: PoolEvent) {
        if self.events.len() == EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(crate) fn call(&self, key: CallKey) -> &Call {
        &self.calls[key.index as usize]
    }

    /// The record of the call with the last number, in a place that may have been used before.
    #[inline(always)]
    pub(crate) fn record(
        &mut self,
        function: u32,
        settings: &Settings,
        due: Option<Instant>,
        listener: Listener,
    ) -> CallKey {
        if due.is_some() {
            self.due = [self.due, due].into_iter().flatten().min();
        }
        let index = self.free.pop().unwrap_or_else(|| self.one_more());
        // Field by field: a call as a whole would be made elsewhere first, and copied.
        let call = &mut self.calls[index as usize];
        call.number = self.last_number;
        call.function = function;
        call.settings = *settings;
        call.due = due;
        call.reruns = 0;
        call.executing_ns = 0;
        call.cancelled = false;
        call.dropped = false;
        call.cut_off = None;
        call.listener = listener;
        CallKey { index, number: self.last_number }
    }

    /// A place for a call more than there ever were at once.
    #[cold]
    fn one_more(&mut self) -> u32 {
        self.calls.push(Call::default());
        (self.calls.len() - 1) as u32
    }

    /// What an answer that is not OK means.
    fn failure(&self, index: u32, place: Place, answer: &Answer) -> CallError {
        let settings = &self.calls[index as usize].settings;
        let Some(open) = self.sessions[place.session()].as_ref() else {
            return lost_reply();
        };
        let lane = &open.lanes[place.lane()];
        CallError::Failed(match answer.status {
            Status::ReplyTooLarge => Failure::ReplyTooLarge {
                capacity: settings.reply_capacity.unwrap_or(lane.slot_capacity()),
            },
            Status::Ok | Status::Cancelled => Failure::Cancelled,
            Status::Overflow => Failure::WorkerDied {
                node: open.lease.node.clone(),
                detail: "the function wrote past its output".into(),
            },
            Status::UnknownFunction => Failure::Function {
                code: 0,
                message: "the worker does not know the function: open it again".into(),
            },
            Status::FunctionError | Status::Stale => Failure::Function {
                code: answer.code,
                message: String::from_utf8_lossy(lane.reply(answer.slot)).into_owned(),
            },
        })
    }
}

/// A call that was taken already: tickets are taken once, so that no caller sees it.
pub(crate) fn lost_reply() -> CallError {
    CallError::Unknown { node: String::new(), reason: "its reply was taken before".into() }
}
