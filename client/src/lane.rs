//! One lane: a link to one worker thread, its slots, and room for large payloads. Knows nothing of leases or retries.
//!
//! A slot is taken by [`Lane::prepare`], sent by [`Lane::post`], answered by [`Lane::poll`] and free again after
//! [`Lane::free`]. The worker is not trusted: an answer that fits no outstanding call closes the lane.

use gleaner_fabric::{Arena, Block, Geometry, Link, LinkError, Payload};
use gleaner_proto::header::{Header, Kind, Status};

/// A lane.
pub(crate) struct Lane {
    link: Box<dyn Link>,
    geometry: Geometry,
    free: Vec<u16>,
    slots: Box<[Slot]>,
    requests: Arena,
    replies: Arena,
    payload_max: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    generation: u32,
    invocation: u64,
    /// Who waits for the answer; `None` if the caller gave up.
    call: Option<u32>,
    busy: bool,
    /// Its answer has come: another one would be nobody's.
    answered: bool,
    epoch: u64,
    len: u32,
    request: Block,
    reply: Block,
}

/// A slot that was taken, and the blocks of its call.
#[derive(Clone, Copy)]
pub(crate) struct Prepared {
    pub(crate) slot: u16,
    request: Block,
    reply: Block,
    len: u32,
}

/// What the header says beyond the blocks.
#[derive(Clone, Copy)]
pub(crate) struct Invocation {
    pub(crate) call: u32,
    pub(crate) number: u64,
    pub(crate) function: u32,
    pub(crate) epoch: u64,
    pub(crate) time_ns: u64,
}

/// An answer: whose, how the call ended, and where the reply lies, in which slot.
#[derive(Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) call: Option<u32>,
    pub(crate) status: Status,
    pub(crate) code: u32,
    /// Time inside the function.
    pub(crate) time_ns: u64,
    pub(crate) reply: Payload,
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
    pub(crate) fn new(link: Box<dyn Link>) -> Self {
        let geometry = link.geometry();
        let slot = |slot| Slot {
            generation: 0,
            invocation: 0,
            call: None,
            busy: false,
            answered: false,
            epoch: 0,
            len: 0,
            request: geometry.slot(slot),
            reply: geometry.slot(slot),
        };
        Self {
            link,
            geometry,
            free: (0..geometry.window).rev().collect(),
            slots: (0..geometry.window).map(slot).collect(),
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
    pub(crate) fn slot_capacity(&self) -> u32 {
        self.geometry.slot_capacity()
    }

    /// Takes a slot and room for both blocks; `None` while there is none.
    pub(crate) fn prepare(&mut self, len: u32, reply_capacity: u32) -> Option<Prepared> {
        let slot = *self.free.last()?;
        let own = self.geometry.slot(slot);
        let request = block(&mut self.requests, own, len)?;
        let Some(reply) = block(&mut self.replies, own, reply_capacity) else {
            give_back(&mut self.requests, own, request);
            return None;
        };
        self.free.pop();
        Some(Prepared { slot, request, reply, len })
    }

    /// Where the input goes.
    pub(crate) fn input(&mut self, prepared: &Prepared) -> &mut [u8] {
        &mut self.link.outgoing(prepared.request)[..prepared.len as usize]
    }

    /// Sends a prepared call.
    pub(crate) fn post(&mut self, prepared: &Prepared, call: &Invocation) -> Result<(), LaneError> {
        let slot = &mut self.slots[usize::from(prepared.slot)];
        let generation = slot.generation.checked_add(1).unwrap_or(1);
        *slot = Slot {
            generation,
            invocation: call.number,
            call: Some(call.call),
            busy: true,
            answered: false,
            epoch: call.epoch,
            len: prepared.len,
            request: prepared.request,
            reply: prepared.reply,
        };
        let header = Header {
            generation,
            slot: prepared.slot,
            kind: Kind::Request,
            status: Status::Ok,
            epoch: call.epoch,
            invocation: call.number,
            function: call.function,
            code: 0,
            payload_len: prepared.len,
            block: prepared.request.index(),
            reply_block: prepared.reply.index(),
            reply_capacity: prepared.reply.capacity,
            time_ns: call.time_ns,
        };
        Ok(self.link.post(prepared.request, &header)?)
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
    pub(crate) fn poll(&mut self) -> Result<Option<Answer>, LaneError> {
        // By reference: an arrival is larger than what is kept of it.
        let polled = self.link.poll();
        let arrival = match &polled {
            Ok(Some(arrival)) => arrival,
            Ok(None) => return Ok(None),
            Err(_) => return polled.map(|_| None).map_err(LaneError::Link),
        };
        let header = &arrival.header;
        let slot = self.slots.get_mut(usize::from(header.slot)).filter(|slot| {
            let asked = slot.busy && !slot.answered && slot.generation == header.generation;
            let placed = slot.reply.offset == arrival.block.offset
                && arrival.block.capacity <= slot.reply.capacity;
            let ours = slot.invocation == header.invocation && slot.epoch == header.epoch;
            asked && ours && placed
        });
        let slot = slot.ok_or(LaneError::Unasked)?;
        slot.answered = true;
        Ok(Some(Answer {
            call: slot.call,
            status: header.status,
            code: header.code,
            time_ns: header.time_ns,
            reply: arrival.payload(),
        }))
    }

    /// Hands a reply to `read` in place and frees its slot. `None`: its memory was taken back meanwhile, and the slot waits for
    /// an answer as before.
    pub(crate) fn read<R>(
        &mut self,
        reply: Payload,
        read: &mut impl FnMut(&[u8]) -> R,
    ) -> Option<R> {
        let result = read(self.link.incoming(reply));
        if !self.link.intact() {
            self.slots[usize::from(reply.slot)].answered = false;
            return None;
        }
        self.free(reply.slot);
        Some(result)
    }

    /// An answer's bytes.
    pub(crate) fn reply(&self, reply: Payload) -> &[u8] {
        self.link.incoming(reply)
    }

    /// The input of an outstanding call, as it was sent.
    pub(crate) fn sent_input(&mut self, slot: u16) -> &[u8] {
        let Slot { request, len, .. } = self.slots[usize::from(slot)];
        &self.link.outgoing(request)[..len as usize]
    }

    /// The number of the call in a slot, for the protocol.
    pub(crate) fn invocation(&self, slot: u16) -> u64 {
        self.slots[usize::from(slot)].invocation
    }

    /// The caller of this slot's call gave up: its answer frees the slot and goes nowhere.
    pub(crate) fn abandon(&mut self, slot: u16) {
        self.slots[usize::from(slot)].call = None;
    }

    /// The slot may be used again.
    pub(crate) fn free(&mut self, slot: u16) {
        let used = &mut self.slots[usize::from(slot)];
        used.busy = false;
        used.call = None;
        let (own, request, reply) = (self.geometry.slot(slot), used.request, used.reply);
        give_back(&mut self.requests, own, request);
        give_back(&mut self.replies, own, reply);
        self.free.push(slot);
    }

    /// Calls that wait for an answer: slot, caller, number.
    pub(crate) fn outstanding(&self) -> impl Iterator<Item = (u16, Option<u32>, u64)> + '_ {
        (0..)
            .zip(&self.slots)
            .filter(|(_, slot)| slot.busy && !slot.answered)
            .map(|(index, slot)| (index, slot.call, slot.invocation))
    }

    /// The link, for sleeping.
    pub(crate) fn link(&mut self) -> &mut dyn Link {
        &mut *self.link
    }

    /// The same, for its descriptor.
    pub(crate) fn link_ref(&self) -> &dyn Link {
        &*self.link
    }
}

/// What an empty arena, or else a slot, has room for.
fn payload_max(geometry: Geometry) -> u64 {
    let arena = Arena::new(Geometry { window: 1, ..geometry });
    u64::from(arena.largest().max(geometry.slot_capacity()))
}

/// The slot's own block if the payload fits it, else one of the arena.
fn block(arena: &mut Arena, own: Block, payload: u32) -> Option<Block> {
    if payload <= own.capacity {
        return Some(Block { capacity: payload, ..own });
    }
    arena.take(payload)
}

/// Frees a block that [`block`] gave.
fn give_back(arena: &mut Arena, own: Block, block: Block) {
    if block.offset != own.offset {
        arena.give_back(block);
    }
}

#[cfg(test)]
mod tests {
    use std::os::{fd::AsFd, unix::net::UnixStream};

    use gleaner_fabric::{Segment, ShmLink, Side};

    use super::*;

    const GEOMETRY: Geometry = Geometry { window: 2, slot_bytes: 4096, arena_bytes: 0 };
    const CALL: Invocation = Invocation { call: 0, number: 1, function: 0, epoch: 1, time_ns: 0 };

    /// A lane over shared memory with one answered call; the file is the executor's.
    fn answered() -> (std::os::fd::OwnedFd, Lane, ShmLink, Answer) {
        let file = Segment::create(GEOMETRY).unwrap();
        let open = || Segment::open(file.as_fd(), GEOMETRY).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut worker = ShmLink::new(open(), theirs.into(), Side::Worker);
        let mut lane = Lane::new(Box::new(ShmLink::new(open(), ours.into(), Side::Client)));
        let prepared = lane.prepare(5, 64).unwrap();
        lane.input(&prepared).copy_from_slice(b"input");
        lane.post(&prepared, &CALL).unwrap();
        let request = worker.poll().unwrap().unwrap();
        let reply = request.reply.unwrap();
        worker.outgoing(reply)[..5].copy_from_slice(b"reply");
        let kind = Kind::Response;
        let header = Header { kind, block: reply.index(), payload_len: 5, ..request.header };
        worker.post(reply, &header).unwrap();
        let answer = lane.poll().unwrap().unwrap();
        (file, lane, worker, answer)
    }

    #[test]
    fn a_reply_is_read_once() {
        let (_file, mut lane, _worker, Answer { reply, .. }) = answered();
        assert_eq!(lane.read(reply, &mut <[u8]>::to_vec).unwrap(), b"reply");
        assert_eq!(lane.outstanding().count(), 0);
    }

    #[test]
    fn a_reply_that_was_taken_back_is_not_believed_and_its_input_is_still_there() {
        let (file, mut lane, _worker, Answer { reply, .. }) = answered();
        Segment::take_back(&file, GEOMETRY).unwrap();
        assert_eq!(lane.read(reply, &mut <[u8]>::to_vec), None);
        assert_eq!(lane.outstanding().count(), 1, "it waits for its verdict");
        assert_eq!(lane.sent_input(reply.slot), b"input", "to be sent elsewhere");
    }
}
