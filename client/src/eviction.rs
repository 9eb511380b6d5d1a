//! The end of a session: its last answers are read, its verdicts applied, its calls moved or ended.

use std::{
    collections::HashMap,
    time::{Instant, SystemTime},
};

use gleaner_lease::call::{Known, Next};
use gleaner_proto::v1::{CallState, EndReason, Evicted};

use crate::{
    calls::{Calls, Place, State},
    error::{CallError, Failure},
    event::{PoolEvent, PoolEventKind},
    session::Session,
};

/// What the executor said at the end: nothing, or a verdict for each slot that was not idle.
struct Verdicts {
    /// False: the session ended without a word.
    spoken: bool,
    of: HashMap<(u32, u32, u64), CallState>,
}

/// Why and where a session ended, for people.
struct End {
    node: String,
    reason: String,
    detail: String,
}

impl Calls {
    /// Ends a session. `evicted` is the executor's last message; without it nothing is known of what was under way.
    pub(crate) fn evict(&mut self, session: usize, evicted: Option<Evicted>, why: &str) {
        self.drain(session);
        self.keep_replies(session);
        let Some(open) = self.sessions[session].as_ref() else {
            return;
        };
        let end = End::of(open, evicted.as_ref(), why);
        let (seat, lease_id) = (open.seat, open.lease.lease_id);
        let verdicts = Verdicts::of(evicted.as_ref());
        let (mut moved, mut lost) = (Vec::new(), Vec::new());
        for (place, call, known) in outstanding(open, session, &verdicts) {
            let number = self.calls[call as usize].number;
            match self.settle(call, place, known, &end) {
                Next::RunAgain => moved.push(number),
                _ => lost.push(number),
            }
        }
        self.sessions[session] = None;
        self.stats.evictions += 1;
        let End { node, reason, detail } = end;
        let at = Instant::now();
        let avoid = reason != EndReason::WorkerFailed.as_str_name();
        self.relocation.lost(at, seat, &node, avoid);
        let kind = PoolEventKind::Evicted { reason, detail, moved, lost };
        self.note(PoolEvent { at, wall: SystemTime::now(), node, lease_id, kind });
    }

    /// Reads every lane to its end: what was answered in time counts.
    fn drain(&mut self, session: usize) {
        let lanes = self.sessions[session].as_ref().map_or(0, |open| open.lanes.len());
        for lane in 0..lanes {
            while let Some(open) = self.sessions[session].as_mut()
                && let Ok(Some(answer)) = open.lanes[lane].poll()
            {
                self.answered(session, lane, answer);
            }
        }
    }

    /// Copies replies that nobody has taken yet, before their memory goes with the session.
    fn keep_replies(&mut self, session: usize) {
        for index in 0..self.calls.len() {
            if let State::Replied(place) = self.calls[index].state
                && place.session() == session
            {
                self.spill(index as u32, place);
            }
        }
    }

    /// Moves or ends one call whose reply will not come.
    fn settle(&mut self, index: u32, place: Place, known: Known, end: &End) -> Next {
        let call = &mut self.calls[index as usize];
        let next = known.then(call.settings.idempotent);
        if !known.untouched() {
            call.cut_off = Some(Box::new(end.cut_off(known)));
        }
        if call.cancelled {
            self.end(index, Err(CallError::Failed(Failure::Cancelled)));
            return Next::Failed;
        }
        match next {
            Next::RunAgain => self.requeue(index, place),
            Next::Failed => self.end(index, Err(CallError::Failed(end.worker_died()))),
            Next::Evicted | Next::Unknown => self.end(index, Err(end.cut_off(known))),
        }
        next
    }
}

/// Every call that waits in a slot, with what is known of it.
fn outstanding(open: &Session, session: usize, verdicts: &Verdicts) -> Vec<(Place, u32, Known)> {
    let lanes = open.lanes.iter().enumerate();
    lanes
        .flat_map(|(lane, at)| {
            at.outstanding().filter_map(move |(slot, call, number)| {
                let known = verdicts.known(lane as u32, u32::from(slot), number);
                Some((Place::new(session, lane, slot), call?, known))
            })
        })
        .collect()
}

impl Verdicts {
    fn of(evicted: Option<&Evicted>) -> Self {
        let verdicts = evicted.map_or(&[][..], |evicted| &evicted.verdicts);
        let of = verdicts
            .iter()
            .map(|verdict| ((verdict.lane, verdict.slot, verdict.invocation), verdict.state()))
            .collect();
        Self { spoken: evicted.is_some(), of }
    }

    /// A call that the executor does not list did not arrive; the slot's word may be an earlier call's.
    fn known(&self, lane: u32, slot: u32, number: u64) -> Known {
        if !self.spoken {
            return Known::Nothing;
        }
        match self.of.get(&(lane, slot, number)) {
            None => Known::NotArrived,
            Some(CallState::NotStarted) => Known::NotStarted,
            Some(CallState::Started) => Known::Started,
            Some(CallState::Finished) => Known::Finished,
            Some(CallState::Faulted) => Known::Faulted,
            Some(CallState::Unspecified) => Known::Nothing,
        }
    }
}

impl End {
    fn of(open: &Session, evicted: Option<&Evicted>, why: &str) -> Self {
        let (reason, detail) = match evicted {
            Some(evicted) => (evicted.reason().as_str_name(), evicted.detail.as_str()),
            None => (EndReason::ExecutorLost.as_str_name(), why),
        };
        Self { node: open.lease.node.clone(), reason: reason.into(), detail: detail.into() }
    }

    fn words(&self) -> String {
        match self.detail.as_str() {
            "" => self.reason.clone(),
            detail => format!("{}: {detail}", self.reason),
        }
    }

    fn cut_off(&self, known: Known) -> CallError {
        let (node, reason) = (self.node.clone(), self.words());
        match known {
            Known::Started => CallError::Evicted { node, reason },
            _ => CallError::Unknown { node, reason },
        }
    }

    fn worker_died(&self) -> Failure {
        Failure::WorkerDied { node: self.node.clone(), detail: self.detail.clone() }
    }
}
