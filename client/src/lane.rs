//! One lane: a link to one worker thread, its slots, and room for large payloads. Knows nothing of leases or retries.
//!
//! A slot is taken by [`Lane::prepare`], filled and sent by [`Lane::send`], answered by [`Lane::poll`], read by [`Lane::read`] and free again
//! after that or [`Lane::free`]. The worker is not trusted: an answer that fits no outstanding call closes the lane.

mod input;
mod round_trip;
#[cfg(test)]
mod tests;

use gleaner_fabric::{
    AnyLink, Arena, Arrival, Block, Expected, Geometry, Link, LinkError, Payload,
};
use gleaner_proto::header::{Header, Status};

use crate::calls::Read;
pub(crate) use input::{Input, input};
use round_trip::Odd;
pub(crate) use round_trip::{Errand, Trip};

/// A lane.
pub(crate) struct Lane {
    link: AnyLink,
    geometry: Geometry,
    free: Vec<u16>,
    slots: Box<[Slot]>,
    /// What was found instead of a reply, for who adopts the call.
    odd: Option<Odd>,
    requests: Arena,
    replies: Arena,
    payload_max: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    stage: Stage,
    /// Its call and the good answer. A slot that is free has its own blocks.
    expected: Expected,
    /// Who waits for the answer; `None` if the caller gave up.
    call: Option<u32>,
    /// Where the answer lies, once it has come.
    answer: Payload,
}

/// What a slot's call waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// To be sent, if there is one.
    Idle,
    /// The answer.
    Asked,
    /// To be taken: another answer would be nobody's.
    Answered,
}

/// What the header says beyond slot and blocks.
#[derive(Clone, Copy)]
pub(crate) struct Invocation {
    pub(crate) call: u32,
    pub(crate) number: u64,
    pub(crate) function: u32,
    pub(crate) time_ns: u64,
}

/// An answer: whose, in which slot, and how the call ended.
#[derive(Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) slot: u16,
    pub(crate) call: Option<u32>,
    pub(crate) status: Status,
    pub(crate) code: u32,
    /// Time inside the function.
    pub(crate) time_ns: u64,
}

/// Why a lane is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LaneError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("the worker answered a call that was not asked for")]
    Unasked,
}

impl Lane {
    /// Its calls carry this grant epoch.
    pub(crate) fn new(link: AnyLink, epoch: u64) -> Self {
        let geometry = link.geometry();
        let slot = |slot| Slot {
            stage: Stage::Idle,
            expected: Expected::new(slot, epoch, geometry.slot(slot)),
            call: None,
            answer: Payload { slot, len: 0, offset: 0 },
        };
        Self {
            link,
            geometry,
            free: (0..geometry.window).rev().collect(),
            slots: (0..geometry.window).map(slot).collect(),
            odd: None,
            requests: Arena::new(geometry),
            replies: Arena::new(geometry),
            payload_max: payload_max(geometry),
        }
    }

    /// The largest input or reply that this lane can ever carry.
    pub(crate) fn payload_max(&self) -> u64 {
        self.payload_max
    }

    /// The largest reply that needs no arena.
    #[inline]
    pub(crate) fn slot_capacity(&self) -> u32 {
        self.geometry.slot_capacity()
    }

    /// Takes a slot and room for both blocks; `None` while there is none.
    #[inline(always)]
    pub(crate) fn prepare(&mut self, len: u32, reply_capacity: u32) -> Option<u16> {
        let number = *self.free.last()?;
        if len.max(reply_capacity) <= self.geometry.slot_capacity() {
            self.slots[usize::from(number)].expected.set_lengths(len, reply_capacity);
        } else {
            self.prepare_large(number, len, reply_capacity)?;
        }
        self.free.pop();
        Some(number)
    }

    /// Takes room in the arenas for what does not fit the slot's own blocks.
    #[cold]
    #[inline(never)]
    fn prepare_large(&mut self, number: u16, len: u32, reply_capacity: u32) -> Option<()> {
        let own = self.geometry.slot(number);
        let request = block(&mut self.requests, own, len)?;
        let Some(reply) = block(&mut self.replies, own, reply_capacity) else {
            give_back(&mut self.requests, own, request);
            return None;
        };
        self.slots[usize::from(number)].expected.set_blocks(request, reply);
        Some(())
    }

    /// The input of a slot's call, as it was sent.
    pub(crate) fn input(&mut self, slot: u16) -> &[u8] {
        input(&mut self.link, &self.slots[usize::from(slot)].expected)
    }

    /// Sends a prepared call with its input.
    #[inline(always)]
    pub(crate) fn send(
        &mut self,
        number: u16,
        call: &Invocation,
        input: &mut impl Input,
    ) -> Result<(), Box<LinkError>> {
        let slot = &mut self.slots[usize::from(number)];
        slot.expected.begin(call.number, call.function);
        let sent = match &mut self.link {
            AnyLink::Shm(link) => input.send(&mut **link, &slot.expected, call.time_ns),
            AnyLink::Rdma(link) => send_apart(&mut **link, slot, call, input),
            AnyLink::Tcp(link) => send_apart(&mut **link, slot, call, input),
        };
        // Last: if the input panics, there is no such call.
        slot.stage = Stage::Asked;
        slot.call = Some(call.call);
        sent
    }

    /// Several calls follow: they may go out together.
    pub(crate) fn hold(&mut self) {
        self.link.hold();
    }

    /// Sends what was held.
    pub(crate) fn release(&mut self) -> Result<(), LaneError> {
        Ok(self.link.release()?)
    }

    /// The next answer, if one is here.
    #[inline(always)]
    pub(crate) fn poll(&mut self) -> Result<Option<Answer>, Box<LaneError>> {
        match &mut self.link {
            AnyLink::Shm(link) => take(&mut **link, &mut self.slots),
            AnyLink::Rdma(link) => take_other(&mut **link, &mut self.slots),
            AnyLink::Tcp(link) => take_other(&mut **link, &mut self.slots),
        }
    }

    /// Hands a reply to `read` in place and frees its slot. False: its memory was taken back meanwhile, what was read may have been
    /// anything, and the slot waits for an answer as before.
    #[inline(always)]
    pub(crate) fn read(&mut self, slot: u16, read: Read<'_>) -> bool {
        read(self.reply(slot));
        let intact = self.link.intact();
        match intact {
            true => self.free(slot),
            false => self.slots[usize::from(slot)].stage = Stage::Asked,
        }
        intact
    }

    /// The call whose answer is next, and its slot, if the link can tell so much.
    #[inline(always)]
    pub(crate) fn upcoming(&self) -> Option<(u16, u32)> {
        let AnyLink::Shm(link) = &self.link else { return None };
        let number = link.upcoming()?;
        let slot = self.slots.get(usize::from(number))?;
        (slot.stage == Stage::Asked).then_some((number, slot.call?))
    }

    /// Hands the next reply to `read` in place and frees its slot, if it is the good answer to this slot's call. False: what is next is
    /// something else, or its memory was taken back and what was read may have been anything.
    #[inline(always)]
    pub(crate) fn read_upcoming(&mut self, slot: u16, read: &mut impl FnMut(&[u8])) -> bool {
        let AnyLink::Shm(link) = &mut self.link else { return false };
        let Some(reply) = link.reply_to(&self.slots[usize::from(slot)].expected) else {
            return false;
        };
        read(reply);
        let intact = link.intact();
        if intact {
            self.free(slot);
        }
        intact
    }

    /// An answer's bytes.
    #[inline]
    pub(crate) fn reply(&self, slot: u16) -> &[u8] {
        self.link.incoming(self.slots[usize::from(slot)].answer)
    }

    /// The number of the call in a slot, for the protocol.
    pub(crate) fn invocation(&self, slot: u16) -> u64 {
        self.slots[usize::from(slot)].expected.invocation()
    }

    /// The caller of this slot's call gave up: its answer frees the slot and goes nowhere.
    pub(crate) fn abandon(&mut self, slot: u16) {
        self.slots[usize::from(slot)].call = None;
    }

    /// The slot may be used again.
    #[inline(always)]
    pub(crate) fn free(&mut self, slot: u16) {
        let used = &mut self.slots[usize::from(slot)];
        used.stage = Stage::Idle;
        used.call = None;
        self.free.push(slot);
        let own = self.geometry.slot(slot);
        if (used.expected.input().offset, used.expected.block().offset) != (own.offset, own.offset)
        {
            self.give_back(slot);
        }
    }

    /// The slot has its own blocks again.
    #[cold]
    #[inline(never)]
    fn give_back(&mut self, slot: u16) {
        let own = self.geometry.slot(slot);
        let used = &mut self.slots[usize::from(slot)];
        give_back(&mut self.requests, own, used.expected.input());
        give_back(&mut self.replies, own, used.expected.block());
        used.expected.set_blocks(own, own);
    }

    /// Calls that wait for an answer: slot, caller, number.
    pub(crate) fn outstanding(&self) -> impl Iterator<Item = (u16, Option<u32>, u64)> + '_ {
        (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.stage == Stage::Asked)
            .map(|(index, slot)| (index, slot.call, slot.expected.invocation()))
    }

    /// The link, for sleeping.
    pub(crate) fn link(&mut self) -> &mut dyn Link {
        &mut self.link
    }

    /// The same, for its descriptor.
    pub(crate) fn link_ref(&self) -> &dyn Link {
        &self.link
    }
}

#[inline(never)]
fn send_apart(
    link: &mut dyn Link,
    slot: &Slot,
    call: &Invocation,
    input: &mut impl Input,
) -> Result<(), Box<LinkError>> {
    input.send(link, &slot.expected, call.time_ns)
}

/// The next answer, if it fits a call that waits for one.
#[inline(always)]
fn take<L: Link + ?Sized>(
    link: &mut L,
    slots: &mut [Slot],
) -> Result<Option<Answer>, Box<LaneError>> {
    let Some(arrival) = link.poll().map_err(broken)? else { return Ok(None) };
    judge(&arrival, slots).map(Some)
}

/// An arrival as the answer to the call in its slot.
#[inline(always)]
fn judge(arrival: &Arrival, slots: &mut [Slot]) -> Result<Answer, Box<LaneError>> {
    let header = &arrival.header;
    let slot = slots.get_mut(usize::from(header.slot));
    let slot = slot.filter(|slot| slot.stage == Stage::Asked && slot.expected.is_of(arrival));
    let slot = slot.ok_or_else(|| Box::new(LaneError::Unasked))?;
    slot.stage = Stage::Answered;
    slot.answer = arrival.payload();
    let &Header { slot: number, status, code, time_ns, .. } = header;
    Ok(Answer { slot: number, call: slot.call, status, code, time_ns })
}

#[cold]
fn broken(error: impl Into<LinkError>) -> Box<LaneError> {
    Box::new(LaneError::Link(error.into()))
}

#[inline(never)]
fn take_other(link: &mut dyn Link, slots: &mut [Slot]) -> Result<Option<Answer>, Box<LaneError>> {
    take(link, slots)
}

/// What an empty arena, or else a slot, has room for.
fn payload_max(geometry: Geometry) -> u64 {
    let arena = Arena::new(Geometry { window: 1, ..geometry });
    u64::from(arena.largest().max(geometry.slot_capacity()))
}

/// The slot's own block if the payload fits it, else one of the arena.
#[inline]
fn block(arena: &mut Arena, own: Block, payload: u32) -> Option<Block> {
    if payload <= own.capacity {
        return Some(Block { capacity: payload, ..own });
    }
    arena.take(payload)
}

/// Frees a block that [`block`] gave: the slot has its own again.
#[inline]
fn give_back(arena: &mut Arena, own: Block, block: Block) {
    if block.offset != own.offset {
        arena.give_back(block);
    }
}
