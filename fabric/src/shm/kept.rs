//! The last message of each slot, as it was checked. One of the same shape is not unpacked and checked again: what else differs from call to
//! call (generation, invocation, time, a carried payload) is good whatever it is. Memory of this process alone: no peer writes to it.
#![forbid(unsafe_code)]

use gleaner_proto::header::{BLOCK_ALIGN, Header, Kind, Status, Words};

use super::line::{CARRIED_MAX, Shape, Snapshot, carried, unpack};
use crate::{
    check::{self, Side},
    link::{Arrival, Block, Geometry, LinkError, Payload, failed},
};

/// A place a slot.
#[derive(Debug)]
pub(super) struct Kept {
    places: Box<[Place]>,
    geometry: Geometry,
    side: Side,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The default is no message's.
    shape: Shape,
    arrival: Arrival,
    /// A request's reply block.
    reply: Block,
    /// Where the payload lies if that is one line of the region, and not in the message's own.
    line: Option<usize>,
    /// The payload, if the message's line carried it.
    bytes: [u8; CARRIED_MAX],
}

impl Kept {
    pub(super) fn new(geometry: Geometry, side: Side) -> Self {
        let place = Place {
            shape: Shape::default(),
            arrival: nothing(side),
            reply: Block { offset: 0, capacity: 0 },
            line: None,
            bytes: [0; CARRIED_MAX],
        };
        Self { places: vec![place; usize::from(geometry.window)].into(), geometry, side }
    }

    /// Where the message that lay in a line is kept, once it is found good.
    #[inline(always)]
    pub(super) fn take(&mut self, words: Words) -> Result<&Place, Box<LinkError>> {
        let Some(place) = self.places.get_mut(usize::from(Shape::slot(&words))) else {
            return Err(failed(outside(&words)));
        };
        if !place.shape.is_of(&words) {
            place.check(words, self.geometry, self.side)?;
        }
        place.keep_carried(&words);
        Ok(place)
    }

    /// The payload of an arrival, if its line carried it.
    #[inline(always)]
    pub(super) fn carried(&self, payload: Payload) -> Option<&[u8]> {
        let place = self.places.get(usize::from(payload.slot))?;
        place.bytes.get(..payload.len as usize).filter(|_| place.shape.carries())
    }

    /// The same, as room to work.
    #[inline(always)]
    pub(super) fn carried_mut(&mut self, payload: Payload) -> Option<&mut [u8]> {
        let place = self.places.get_mut(usize::from(payload.slot))?;
        place.bytes.get_mut(..payload.len as usize).filter(|_| place.shape.carries())
    }
}

impl Place {
    /// Unpacks and checks a message of a shape that is new in its slot.
    #[cold]
    #[inline(never)]
    fn check(
        &mut self,
        words: Words,
        geometry: Geometry,
        side: Side,
    ) -> Result<(), Box<LinkError>> {
        let slot_blocks = geometry.slot_bytes / BLOCK_ALIGN as u32;
        let Snapshot { header, carried } = unpack(&words, slot_blocks);
        let header = Header::from_words(&header).map_err(failed)?;
        let arrival = check::checked(geometry, side, header).map_err(failed)?;
        let Header { slot, block, payload_len: len, .. } = header;
        if carried && len as usize > CARRIED_MAX {
            return Err(failed(LinkError::Range { slot, block, len }));
        }
        let line = (!carried && len as usize <= BLOCK_ALIGN)
            .then(|| arrival.block.payload_offset() as usize);
        let reply = arrival.reply.unwrap_or(Block { offset: 0, capacity: 0 });
        *self = Place { shape: Shape::of(&words), arrival, reply, line, bytes: [0; CARRIED_MAX] };
        Ok(())
    }

    /// The message of these words, which are of this place's shape.
    #[inline(always)]
    pub(super) fn arrival(&self, words: &Words, side: Side) -> Arrival {
        let Header { slot, kind, status, function, code, .. } = self.arrival.header;
        let Header { payload_len, block, reply_block, reply_capacity, .. } = self.arrival.header;
        let header = Header {
            generation: words[0] as u32,
            slot,
            kind,
            status,
            epoch: words[1],
            invocation: words[2],
            function,
            code,
            payload_len,
            block,
            reply_block,
            reply_capacity,
            time_ns: words[6],
        };
        // Whether there is one is known without a look.
        let reply = (side == Side::Worker).then_some(self.reply);
        Arrival { header, block: self.arrival.block, reply }
    }

    /// Where the payload lies, if that is one line of the region.
    #[inline(always)]
    pub(super) fn line(&self) -> Option<usize> {
        self.line
    }

    #[inline(always)]
    fn keep_carried(&mut self, words: &Words) {
        if self.shape.carries() {
            let (parts, _) = self.bytes.as_chunks_mut::<8>();
            for (part, word) in parts.iter_mut().zip(carried(words)) {
                *part = word.to_le_bytes();
            }
        }
    }
}

/// A slot that the link does not have.
#[cold]
fn outside(words: &Words) -> LinkError {
    LinkError::Range { slot: Shape::slot(words), block: 0, len: 0 }
}

/// What stands in a place before its first message.
fn nothing(side: Side) -> Arrival {
    let header = Header {
        generation: 0,
        slot: 0,
        kind: side.takes(),
        status: Status::Ok,
        epoch: 0,
        invocation: 0,
        function: 0,
        code: 0,
        payload_len: 0,
        block: 0,
        reply_block: 0,
        reply_capacity: 0,
        time_ns: 0,
    };
    let block = Block { offset: 0, capacity: 0 };
    Arrival { header, block, reply: (side.takes() == Kind::Request).then_some(block) }
}
