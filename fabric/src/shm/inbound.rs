//! The direction in which a link takes messages: which is next, and what tells whether several come at a time.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use gleaner_proto::header::BLOCK_ALIGN;

use super::{
    bell::{self, Sleep},
    layout::{Direction, Half},
    line::Line,
    segment::{Segment, Spot},
};
use crate::{check::Side, tune::LIVENESS_POLLS};

/// No slot.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct Inbound {
    half: Half,
    /// The number of the last message taken.
    pub(super) polled: u32,
    /// Where the payload of the last message lay: with one call at a time the next one's lies there too.
    expected: Spot,
    /// Empty polls since a message came or the socket was looked at.
    idle_polls: u32,
    /// The last message's slot, as long as another in it changes nothing of what follows here.
    usual: u32,
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
            expected: Spot::NOTHING,
            idle_polls: 0,
            usual: NONE,
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

    /// Whether the next message lies there, and is none.
    pub(super) fn is_marred(&self, line: &Line) -> bool {
        line.is_marred(self.number())
    }

    #[inline(always)]
    fn number(&self) -> u32 {
        self.polled.wrapping_add(1)
    }

    /// The next message was taken: of this slot, and its payload lay there.
    #[inline(always)]
    pub(super) fn took(&mut self, segment: &Segment, slot: u16, payload: Spot) {
        let number = self.number();
        self.polled = number;
        self.idle_polls = 0;
        self.expected = payload;
        segment.taken(&self.half).store(number, Ordering::Release);
        if self.usual != u32::from(slot) {
            self.took_unusual(segment, slot);
        }
    }

    /// The same of a message that is not in the last one's slot, or the first since we said that we sleep.
    #[inline(never)]
    fn took_unusual(&mut self, segment: &Segment, slot: u16) {
        if self.asked {
            self.asked = false;
            withdraw(segment, &self.half);
        }
        // One at a time always finds the same slot free.
        self.pipelined = self.last_slot != slot && !std::mem::take(&mut self.waited);
        self.last_slot = slot;
        self.usual = if self.pipelined { NONE } else { slot.into() };
        if self.pipelined {
            self.look_ahead(segment);
        }
    }

    /// The next message is probably here, and like the last one: begins to bring in the part of it that is
    /// waited for longest.
    #[inline(always)]
    fn look_ahead(&self, segment: &Segment) {
        match self.expected.len() {
            0 => segment.prefetch_line(&self.half, self.number()),
            _ => segment.prefetch_payload_of(&self.half, self.number()),
        }
    }

    /// The next message is not here. True if it is time to ask the socket whether its sender is.
    #[inline(always)]
    pub(super) fn found_none(&mut self, segment: &Segment) -> bool {
        self.waited = true;
        // A small payload is written just before the line: so it is on its way while we still wait for the line.
        if (1..=BLOCK_ALIGN).contains(&self.expected.len()) {
            segment.prefetch(self.expected);
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
        self.usual = NONE;
        ready
    }

    /// The sleep is over.
    pub(super) fn woke(&mut self, segment: &Segment) {
        withdraw(segment, &self.half);
        self.asked = false;
    }
}

/// Tells the peer that we look by ourselves again.
#[cold]
fn withdraw(segment: &Segment, half: &Half) {
    bell::withdraw(segment.sleeping(half));
}
