//! A pool's calls and sessions: where each call is, how it gets a slot, how it ends. One thread at a time is inside.
//!
//! ```text
//!  submit ──▶ Queued ──▶ Sent ──answer──▶ Replied ──taken──▶ Free
//!               ▲          │
//!               └─eviction─┴──────▶ Done (with a copy of the reply, or the error)
//! ```
//!
//! [`crate::pool`] and [`crate::function`] are the callers; [`crate::submit`] begins calls, [`crate::slots`] hands out slots, [`crate::replies`] has replies taken, [`crate::eviction`] moves calls, [`crate::relocate`] gets
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
    /// Those that a completion queue looked at last.
    pub(crate) reaped: (usize, usize),
}

/// Before the first session and lane.
const NOWHERE: (usize, usize) = (usize::MAX - 1, usize::MAX - 1);

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

/// Where a call is. What a state drops is seen by its tag alone.
#[derive(Default)]
pub(crate) enum State {
    #[default]
    Free,
    /// Waits for a slot, with its input.
    Queued(Box<[u8]>),
    Sent(Place),
    /// Answered well; the reply still lies in its slot.
    Replied(Place),
    /// Boxed, since it is seldom: a state is then short.
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
            last: NOWHERE,
            reaped: NOWHERE,
        }
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

    /// Takes one answer from this lane, if there is such a lane and it has one. Compiled apart.
    #[inline(never)]
    pub(crate) fn pump_one(&mut self, session: usize, lane: usize) -> bool {
        self.pump_lane(session, lane, 1)
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
        let Some(at) = open.lanes.get_mut(lane) else {
            return false;
        };
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

    /// What the call in a place is known by.
    #[inline]
    pub(crate) fn key(&self, index: u32) -> CallKey {
        CallKey { index, number: self.calls[index as usize].number }
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
