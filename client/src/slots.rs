//! A pool's slots: how a call gets one, gives it back, and leaves it to another.
//!
//! The other half of [`crate::calls`], which says what a call is and how it ends.

use std::time::Duration;

use crate::{
    calls::{Calls, Place, State},
    error::{CallError, Failure},
    function::Settings,
    lane::{Input, Invocation, Lane},
};

impl Calls {
    /// Refuses what no lane of this pool can ever carry.
    pub(crate) fn check_size(&self, len: u32, settings: &Settings) -> Result<(), CallError> {
        let wanted = u64::from(len.max(settings.reply_capacity.unwrap_or(0)));
        // One lane a session: the others are like it.
        let lanes = self.sessions.iter().flatten().filter_map(|open| open.lanes.first());
        match lanes.map(Lane::payload_max).min() {
            Some(max) if wanted > max => {
                Err(CallError::Failed(Failure::TooLarge { bytes: wanted, max }))
            }
            _ => Ok(()),
        }
    }

    /// A slot on the next lane that has one, lane after lane.
    #[inline(always)]
    pub(crate) fn prepare(&mut self, len: u32, settings: &Settings) -> Option<Place> {
        for _ in 0..self.lanes_at_most() {
            let (session, lane) = self.turn();
            self.last = (session, lane);
            let Some(open) = self.sessions[session].as_mut().filter(|s| s.closing.is_none()) else {
                continue;
            };
            let Some(at) = open.lanes.get_mut(lane) else {
                continue;
            };
            let capacity = settings.reply_capacity.unwrap_or(at.slot_capacity());
            if let Some(slot) = at.prepare(len, capacity) {
                return Some(Place::new(session, lane, slot));
            }
        }
        None
    }

    /// No executor gives more lanes than that.
    #[inline(always)]
    fn wide(&self) -> usize {
        self.request.cores as usize
    }

    /// Lanes that there may be.
    #[inline(always)]
    pub(crate) fn lanes_at_most(&self) -> usize {
        self.sessions.len() * self.wide()
    }

    /// The session and the lane whose turn it is.
    #[inline(always)]
    pub(crate) fn turn(&self) -> (usize, usize) {
        self.after(self.last)
    }

    /// The session and the lane that follow: session after session, then lane after lane. Sessions come and go: what is out of range
    /// begins anew.
    #[inline(always)]
    pub(crate) fn after(&self, (session, lane): (usize, usize)) -> (usize, usize) {
        if session + 1 < self.sessions.len() {
            return (session + 1, lane);
        }
        (0, if lane + 1 < self.wide() { lane + 1 } else { 0 })
    }

    /// After whom it was the turn of that lane.
    pub(crate) fn before(&self, (session, lane): (usize, usize)) -> (usize, usize) {
        match session.checked_sub(1) {
            Some(session) => (session, lane),
            None => (
                self.sessions.len().saturating_sub(1),
                lane.checked_sub(1).unwrap_or(self.wide().saturating_sub(1)),
            ),
        }
    }

    /// Writes a call's input into its slot, and sends it.
    #[inline(always)]
    pub(crate) fn send(&mut self, index: u32, place: Place, input: &mut impl Input) {
        let Some(open) = self.sessions[place.session()].as_mut() else {
            return;
        };
        let call = &mut self.calls[index as usize];
        let invocation = Invocation {
            call: index,
            number: call.number,
            function: open.functions[call.function as usize],
            time_ns: call.settings.deadline.map_or(0, |deadline| deadline.as_nanos() as u64),
        };
        let sent = open.lanes[place.lane()].send(place.slot, &invocation, input);
        // A call that could not be written counts as sent: the session's verdicts say that it did not arrive.
        call.state = State::Sent(place);
        if let Err(error) = sent {
            open.close(error.to_string());
        }
    }

    /// Several calls follow: those of one lane may go out together.
    pub(crate) fn hold(&mut self) {
        let open = self.sessions.iter_mut().flatten().filter(|open| open.closing.is_none());
        open.flat_map(|open| &mut open.lanes).for_each(Lane::hold);
    }

    /// Sends what was held.
    pub(crate) fn release(&mut self) {
        for open in self.sessions.iter_mut().flatten() {
            let broken = open.lanes.iter_mut().find_map(|lane| lane.release().err());
            if let Some(error) = broken {
                open.close(error.to_string());
            }
        }
    }

    /// Sends queued calls for which there is room.
    pub(crate) fn dispatch(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        self.hold();
        self.send_queued();
        self.release();
    }

    fn send_queued(&mut self) {
        while let Some(&index) = self.queue.front() {
            let call = &self.calls[index as usize];
            let State::Queued(input) = &call.state else {
                self.queue.pop_front();
                continue;
            };
            let (settings, len) = (call.settings, input.len() as u32);
            let Some(place) = self.prepare(len, &settings) else {
                return;
            };
            self.queue.pop_front();
            if let State::Queued(input) = std::mem::take(&mut self.calls[index as usize].state) {
                self.send(index, place, &mut &input[..]);
            }
        }
    }

    /// Takes a sent call out of its slot, back into the queue.
    pub(crate) fn requeue(&mut self, index: u32, place: Place) {
        let Some(open) = self.sessions[place.session()].as_mut() else {
            return;
        };
        let lane = &mut open.lanes[place.lane()];
        let input = lane.input(place.slot).into();
        lane.free(place.slot);
        let call = &mut self.calls[index as usize];
        call.reruns += 1;
        self.stats.reruns += 1;
        call.state = State::Queued(input);
        self.queue.push_back(index);
    }

    /// Copies one reply that nobody has taken yet out of its slot; false if there is none.
    pub(crate) fn spill_one(&mut self) -> bool {
        for index in 0..self.calls.len() {
            if let State::Replied(place) = self.calls[index].state {
                self.spill(index as u32, place);
                return true;
            }
        }
        false
    }

    /// Gives queued calls the slots of replies that nobody takes now: their callers may wait for the queued ones first.
    pub(crate) fn make_room(&mut self) {
        let mut wanted = self.queue.len();
        if wanted == 0 {
            return;
        }
        for index in 0..self.calls.len() {
            if let State::Replied(place) = self.calls[index].state {
                self.spill(index as u32, place);
                wanted -= 1;
                if wanted == 0 {
                    break;
                }
            }
        }
        self.dispatch();
    }

    /// Copies a reply out of its slot, which is free then.
    pub(crate) fn spill(&mut self, index: u32, place: Place) {
        if let Some(open) = self.sessions[place.session()].as_mut() {
            let mut kept = Vec::new();
            match open.lanes[place.lane()].read(place.slot, &mut |bytes| kept = bytes.to_vec()) {
                true => self.calls[index as usize].state = State::Done(Box::new(Ok(kept))),
                false => self.resent(index, place),
            }
        }
    }

    /// A reply was taken back with its memory: its call waits for an answer as before.
    pub(crate) fn resent(&mut self, index: u32, place: Place) {
        let call = &mut self.calls[index as usize];
        call.state = State::Sent(place);
        self.stats.ok -= 1;
        self.due = [self.due, call.due].into_iter().flatten().min();
    }

    pub(crate) fn cancel_at(&mut self, place: Place, grace: Duration) {
        if let Some(open) = self.sessions[place.session()].as_mut() {
            open.cancel(place.lane(), place.slot, grace);
        }
    }

    pub(crate) fn free_slot(&mut self, place: Place) {
        if let Some(open) = self.sessions[place.session()].as_mut() {
            open.lanes[place.lane()].free(place.slot);
        }
    }
}
