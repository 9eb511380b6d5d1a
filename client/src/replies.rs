//! How a call's reply is waited for, read where it lies, and forgotten.
//!
//! The end of what [`crate::calls`] begins.

use std::time::Duration;

use crate::{
    calls::{Call, CallKey, Calls, Read, State, lost_reply},
    error::CallError,
    event::CallStats,
};

impl Calls {
    /// Waits for a call's end, and returns what `read` makes of its reply.
    #[inline]
    pub(crate) fn read<R>(
        &mut self,
        key: CallKey,
        mut read: impl FnMut(&[u8]) -> R,
    ) -> Result<R, CallError> {
        let mut result = None;
        self.collect(key, &mut |bytes| result = Some(read(bytes)))?;
        result.ok_or_else(lost_reply)
    }

    /// Waits until a call has ended; its reply may then be read, and it must be taken.
    #[inline(always)]
    fn wait(&mut self, key: CallKey) {
        while !self.is_done(key) {
            let place = match self.calls[key.index as usize].state {
                State::Sent(place) => Some(place),
                _ => None,
            };
            let answered = match place {
                Some(place) if self.is_emptied(place) => false,
                Some(place) => self.watch(place),
                None => self.pump(),
            };
            if !answered {
                let due = self.calls[key.index as usize].due;
                self.make_room();
                self.idle(place, due);
            }
        }
    }

    /// Whether a call has ended.
    #[inline]
    pub(crate) fn is_done(&self, key: CallKey) -> bool {
        matches!(self.call(key).state, State::Replied(_) | State::Done(_))
    }

    /// Waits for a call's end, hands its reply to `read`, and forgets the call. A reply that is taken back while it is read
    /// was never there: the call goes on, and its next reply is read again. Compiled as one, as [`submit`](Self::submit) is.
    pub(crate) fn collect(&mut self, key: CallKey, read: Read<'_>) -> Result<(), CallError> {
        loop {
            self.wait(key);
            if let Some(result) = self.try_collect(key, read) {
                return result;
            }
        }
    }

    /// The same without waiting; `None` while the call goes on.
    #[inline(always)]
    pub(crate) fn try_collect(
        &mut self,
        key: CallKey,
        read: Read<'_>,
    ) -> Option<Result<(), CallError>> {
        if !self.is_done(key) {
            return None;
        }
        let result = self.take(key, read)?;
        self.free.push(key.index);
        Some(result)
    }

    /// What a call went through that was collected just now.
    pub(crate) fn stats_of(&self, key: CallKey) -> CallStats {
        let &Call { number, reruns, executing_ns, .. } = self.call(key);
        CallStats { number, reruns, executing: Duration::from_nanos(executing_ns) }
    }

    /// `None`: the reply was taken back with its memory while it was read.
    #[inline(always)]
    pub(crate) fn take(&mut self, key: CallKey, read: Read<'_>) -> Option<Result<(), CallError>> {
        let state = &mut self.calls[key.index as usize].state;
        let State::Replied(place) = *state else {
            return Some(self.take_copy(key, read));
        };
        *state = State::Free;
        let Some(open) = self.sessions[place.session()].as_mut() else {
            return Some(Err(lost_reply()));
        };
        let intact = open.lanes[place.lane()].read(place.slot, read);
        if !intact {
            self.resent(key.index, place);
        }
        intact.then_some(Ok(()))
    }

    /// A call that ended without a slot.
    #[cold]
    fn take_copy(&mut self, key: CallKey, read: Read<'_>) -> Result<(), CallError> {
        match std::mem::take(&mut self.calls[key.index as usize].state) {
            State::Done(outcome) => outcome.map(|bytes| read(&bytes)),
            _ => Err(lost_reply()),
        }
    }
}
