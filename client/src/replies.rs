//! How a call's reply is waited for, read where it lies, and forgotten.
//!
//! The end of what [`crate::submit`] begins.

use std::time::Duration;

use crate::{
    calls::{Call, CallKey, Calls, Read, State, lost_reply},
    ended::Listener,
    error::CallError,
    event::CallStats,
};

/// What a look at the lanes found for a completion queue.
pub(crate) enum Reaped {
    /// The reply to the call in this place, which was read and is forgotten.
    Read(u32),
    /// Another answer. Who waits for it was told.
    Told,
    Nothing,
}

impl Calls {
    /// Waits for a call's end, and returns what `read` makes of its reply.
    #[inline]
    pub(crate) fn read<R>(
        &mut self,
        key: CallKey,
        mut read: impl FnMut(&[u8]) -> R,
    ) -> Result<R, CallError> {
        let mut result = None;
        self.collect(key, &mut |bytes| result = Some(read(bytes))).map_err(|error| *error)?;
        result.ok_or_else(lost_reply)
    }

    /// Whether a call has ended.
    #[inline]
    pub(crate) fn is_done(&self, key: CallKey) -> bool {
        matches!(self.call(key).state, State::Replied(_) | State::Done(_))
    }

    /// Waits for a call's end, hands its reply to `read`, and forgets the call. A reply that is taken back while it is read
    /// was never there: the call goes on, and its next reply is read again. Compiled as one, as [`submit`](Self::submit) is.
    pub(crate) fn collect(&mut self, key: CallKey, read: Read<'_>) -> Result<(), Box<CallError>> {
        loop {
            let (place, answered) = match self.calls[key.index as usize].state {
                State::Replied(_) | State::Done(_) => match self.take(key, read) {
                    Some(result) => return result,
                    None => continue,
                },
                State::Sent(place) => (Some(place), !self.is_emptied(place) && self.watch(place)),
                _ => (None, self.pump()),
            };
            if !answered {
                let due = self.calls[key.index as usize].due;
                self.make_room();
                self.idle(place, due);
            }
        }
    }

    /// The same without waiting; `None` while the call goes on.
    #[inline(always)]
    pub(crate) fn try_collect(
        &mut self,
        key: CallKey,
        read: Read<'_>,
    ) -> Option<Result<(), Box<CallError>>> {
        if self.is_done(key) { self.take(key, read) } else { None }
    }

    /// Looks at lane after lane for an answer, from behind the last one that had any, and takes the first. A good one to a call of this
    /// completion queue is handed to `read` on the spot: nobody is told of it.
    #[inline(always)]
    pub(crate) fn reap(&mut self, queue: usize, read: &mut impl FnMut(&[u8])) -> Reaped {
        for _ in 0..self.lanes_at_most() {
            self.reaped = self.after(self.reaped);
            let (session, lane) = self.reaped;
            if let Some(index) = self.read_upcoming(session, lane, queue, read) {
                return Reaped::Read(index);
            }
            if self.pump_one(session, lane) {
                return Reaped::Told;
            }
        }
        Reaped::Nothing
    }

    /// Reads what is next on a lane if it is the good answer to a call of this queue, whose place is free then.
    #[inline(always)]
    fn read_upcoming(
        &mut self,
        session: usize,
        lane: usize,
        queue: usize,
        read: &mut impl FnMut(&[u8]),
    ) -> Option<u32> {
        let open = self.sessions.get_mut(session)?.as_mut()?;
        let lane = open.lanes.get_mut(lane).filter(|_| open.closing.is_none())?;
        let (slot, index) = lane.upcoming()?;
        let call = &mut self.calls[index as usize];
        let is_ours = matches!(call.listener, Listener::Queue(number) if number == queue);
        if !is_ours || call.dropped || !lane.read_upcoming(slot, read) {
            return None;
        }
        call.state = State::Free;
        self.free.push(index);
        self.stats.ok += 1;
        self.spin.answered();
        Some(index)
    }

    /// What a call went through that was collected just now.
    pub(crate) fn stats_of(&self, key: CallKey) -> CallStats {
        let &Call { number, reruns, executing_ns, .. } = self.call(key);
        CallStats { number, reruns, executing: Duration::from_nanos(executing_ns) }
    }

    /// Takes a call that has ended, whose place is free then. `None`: the reply was taken back with its memory while it was read.
    #[inline(always)]
    pub(crate) fn take(
        &mut self,
        key: CallKey,
        read: Read<'_>,
    ) -> Option<Result<(), Box<CallError>>> {
        let state = &mut self.calls[key.index as usize].state;
        let result = match *state {
            State::Replied(place) => {
                *state = State::Free;
                let open = self.sessions[place.session()].as_mut();
                match open.map(|open| open.lanes[place.lane()].read(place.slot, read)) {
                    Some(true) => Ok(()),
                    Some(false) => {
                        self.resent(key.index, place);
                        return None;
                    }
                    None => Err(Box::new(lost_reply())),
                }
            }
            _ => self.take_copy(key, read),
        };
        self.free.push(key.index);
        Some(result)
    }

    /// A call that ended without a slot.
    #[cold]
    fn take_copy(&mut self, key: CallKey, read: Read<'_>) -> Result<(), Box<CallError>> {
        match std::mem::take(&mut self.calls[key.index as usize].state) {
            State::Done(outcome) => outcome.map(|bytes| read(&bytes)).map_err(Box::new),
            _ => Err(Box::new(lost_reply())),
        }
    }
}
