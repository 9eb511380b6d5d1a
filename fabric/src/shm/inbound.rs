//! The direction in which a link takes messages: which is next, what was kept of its slot, and what tells whether several come at a time.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use super::{
    bell::{self, Sleep},
    kept::{Kept, Taken},
    layout::{Direction, Half},
    line::Line,
    segment::Segment,
};
use crate::{
    check::Side,
    link::{Block, LinkError, Payload},
    tune::LIVENESS_POLLS,
};

#[derive(Debug)]
pub(super) struct Inbound {
    half: Half,
    /// The number of the last message taken.
    pub(super) polled: u32,
    /// The last message of each slot.
    kept: Kept,
    /// Where the payload of the last message lay, if it was small: with one call at a time the next one's lies there too.
    expected: Option<usize>,
    /// Empty polls since a message came or the socket was looked at.
    idle_polls: u32,
    /// The last message's slot.
    last_slot: u16,
    /// A poll was empty since a message came in another slot than the one before.
    waited: bool,
    /// The last message was here before it was looked for: there are several at a time.
    pipelined: bool,
    /// Our bell may say that we sleep.
    asked: bool,
}

impl Inbound {
    pub(super) fn new(segment: &Segment, side: Side) -> Self {
        Self {
            half: *segment.layout().half(Direction::sent_by(side).opposite()),
            polled: 0,
            kept: Kept::new(segment, side),
            expected: None,
            idle_polls: 0,
            last_slot: 0,
            waited: true,
            pipelined: false,
            asked: false,
        }
    }

    /// The next message's line.
    #[inline(always)]
    pub(super) fn next<'a>(&self, segment: &'a Segment) -> &'a Line {
        segment.line(&self.half, self.number())
    }

    /// Whether the next message lies in its line.
    #[inline(always)]
    pub(super) fn is_in(&self, line: &Line) -> bool {
        line.holds(self.number())
    }

    #[inline(always)]
    fn number(&self) -> u32 {
        self.polled.wrapping_add(1)
    }

    /// Takes the message that lies in the next line.
    #[inline(always)]
    pub(super) fn take(
        &mut self,
        segment: &Segment,
        line: &Line,
    ) -> Result<Taken<'_>, Box<LinkError>> {
        let number = self.number();
        let taken = self.kept.take(line, segment)?;
        self.polled = number;
        self.idle_polls = 0;
        segment.taken(&self.half).store(number, Ordering::Release);
        if self.asked {
            self.asked = false;
            withdraw(segment, &self.half);
        }
        // One at a time always finds the same slot free.
        self.pipelined = self.last_slot != taken.slot() && !std::mem::take(&mut self.waited);
        self.last_slot = taken.slot();
        if self.pipelined {
            segment.prefetch_payload_of(&self.half, number.wrapping_add(1));
        }
        self.expected = taken.line();
        Ok(taken)
    }

    /// The next message is not here. True if it is time to ask the socket whether its sender is.
    #[inline(always)]
    pub(super) fn found_none(&mut self, segment: &Segment) -> bool {
        self.waited = true;
        // The payload is written before the line: so it is on its way while we still wait for the line.
        if let Some(at) = self.expected {
            segment.prefetch(&self.half, at);
        }
        self.idle_polls += 1;
        self.idle_polls >= LIVENESS_POLLS
    }

    /// The socket was looked at.
    pub(super) fn looked_at_socket(&mut self) {
        self.idle_polls = 0;
    }

    /// Several messages come at a time.
    #[inline(always)]
    pub(super) fn is_pipelined(&self) -> bool {
        self.pipelined
    }

    /// Where our sender looks whether we sleep.
    pub(super) fn bell<'a>(&self, segment: &'a Segment) -> &'a AtomicU32 {
        segment.sleeping(&self.half)
    }

    /// Tells the peer that we are about to sleep. True if a message is here.
    pub(super) fn ask(&mut self, segment: &Segment, how: Sleep) -> bool {
        let ready = bell::ask(self.bell(segment), how, || self.is_in(self.next(segment)));
        self.asked = !ready;
        ready
    }

    /// The sleep is over.
    pub(super) fn woke(&mut self, segment: &Segment) {
        withdraw(segment, &self.half);
        self.asked = false;
    }

    /// An arrival's payload.
    pub(super) fn payload<'a>(&'a self, segment: &'a Segment, payload: Payload) -> &'a [u8] {
        let place = || segment.incoming(segment.payload(&self.half, payload));
        self.kept.carried(payload).unwrap_or_else(place)
    }

    /// The same as room to work, and the block of its reply.
    pub(super) fn exchange<'a>(
        &'a mut self,
        segment: &'a mut Segment,
        payload: Payload,
        outbound: &Half,
        reply: Block,
    ) -> (&'a mut [u8], &'a mut [u8]) {
        let room = segment.room(outbound, reply);
        match self.kept.carried_mut(payload) {
            Some(input) => (input, segment.outgoing(room)),
            None => segment.exchange(segment.payload(&self.half, payload), room),
        }
    }
}

/// Tells the peer that we look by ourselves again.
#[cold]
fn withdraw(segment: &Segment, half: &Half) {
    bell::withdraw(segment.sleeping(half));
}
