//! How a call begins: it gets a record, and a slot or a place in the queue.
//!
//! The other end of [`crate::replies`]; in between, [`crate::calls`].

use std::time::Instant;

use crate::{
    calls::{Call, Calls, Fill, Place, State},
    ended::Listener,
    error::CallError,
    function::Settings,
    lane::Input,
};

impl Calls {
    /// Sends a call, or queues it while there is no lease; waits while every slot is in use. Its end is told to the completion
    /// queue of this number, if any. Returns its place. Compiled as one, for all callers: so nothing that it finds goes through memory.
    #[inline(never)]
    pub(crate) fn submit(
        &mut self,
        function: u32,
        settings: &Settings,
        queue: Option<usize>,
        mut input: &[u8],
    ) -> Result<u32, Box<CallError>> {
        self.submit_as(function, settings, queue, input.len(), &mut input)
    }

    /// The same with an input of `len` bytes that `fill` writes.
    #[inline(never)]
    pub(crate) fn submit_with(
        &mut self,
        function: u32,
        settings: &Settings,
        queue: Option<usize>,
        len: usize,
        mut fill: Fill<'_>,
    ) -> Result<u32, Box<CallError>> {
        self.submit_as(function, settings, queue, len, &mut fill)
    }

    #[inline(always)]
    fn submit_as(
        &mut self,
        function: u32,
        settings: &Settings,
        queue: Option<usize>,
        len: usize,
        input: &mut impl Input,
    ) -> Result<u32, Box<CallError>> {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.look_around();
        let due = settings.due();
        let mut found = self.prepare(len, settings);
        if found.is_none() {
            found = self.await_slot(len, settings)?;
        }
        self.last_number += 1;
        let listener = queue.map_or(Listener::Nobody, Listener::Queue);
        let index = self.record(function, settings, due, listener);
        match found {
            Some(place) => self.send(index, place, input),
            None => self.enqueue(index, len, input),
        }
        Ok(index)
    }

    /// No slot is free: waits for one while there is a lease. Refuses what no lane can ever carry.
    #[cold]
    #[inline(never)]
    fn await_slot(
        &mut self,
        len: u32,
        settings: &Settings,
    ) -> Result<Option<Place>, Box<CallError>> {
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
    #[inline(never)]
    pub(crate) fn enqueue(&mut self, index: u32, len: u32, input: &mut impl Input) {
        let mut kept = vec![0; len as usize];
        input.fill(&mut kept);
        self.calls[index as usize].state = State::Queued(kept.into());
        self.queue.push_back(index);
    }

    /// The record of the call with the last number, in a place that may have been used before.
    #[inline(always)]
    pub(crate) fn record(
        &mut self,
        function: u32,
        settings: &Settings,
        due: Option<Instant>,
        listener: Listener,
    ) -> u32 {
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
        index
    }

    /// A place for a call more than there ever were at once.
    #[cold]
    fn one_more(&mut self) -> u32 {
        self.calls.push(Call::default());
        (self.calls.len() - 1) as u32
    }
}
