//! The last message of each slot, as it was checked. One of the same shape is not unpacked and checked again: what else differs from call to
//! call (generation, invocation, time, a carried payload) is good whatever it is. Memory of this process alone: no peer writes to it.
#![forbid(unsafe_code)]

use gleaner_proto::header::{BLOCK_ALIGN, Header, Kind, Status, Words};

use super::{
    layout::{Direction, Half},
    line::{
        Answer, CARRIED_MAX, Line, Shape, Snapshot, bytes, generation_of, may_carry, slot_of,
        unpack,
    },
    segment::{Segment, Spot},
};
use crate::{
    call::{Asked, Done, Expected, response},
    check::{self, Side},
    link::{Arrival, Block, Geometry, LinkError, Payload, failed},
};

/// A place a slot.
#[derive(Debug)]
pub(super) struct Kept {
    places: Box<[Place]>,
    /// The payload of the last answer that was waited for, if its line carried it.
    answer: [u8; CARRIED_MAX],
    ways: Ways,
}

/// Where messages come from, and where their replies go.
#[derive(Debug)]
struct Ways {
    side: Side,
    inbound: Half,
    outbound: Half,
    /// Blocks from one slot to the next.
    slot_blocks: u32,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    /// None before the first message.
    shape: Shape,
    arrival: Arrival,
    /// Where the payload lies, unless the message's line carried it.
    payload: Spot,
    /// Where a request's reply goes, and whether a small one may travel in its line.
    room: Spot,
    carries_reply: bool,
    /// The words of a request's good reply that are the same for all of its shape.
    reply: Words,
    /// The payload, if the message's line carried it.
    bytes: [u8; CARRIED_MAX],
}

/// A message as it was taken from its line: what is kept of its slot, and what is its own. Nothing of it is copied before it is used:
/// it would only be put aside.
pub(super) struct Taken<'a> {
    place: &'a mut Place,
    slot: u16,
    generation: u32,
    invocation: u64,
    time_ns: u64,
}

/// Where a good answer's payload is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reply {
    /// There.
    Placed(Spot),
    /// So many bytes of it were in its line.
    Carried(u32),
}

impl Kept {
    pub(super) fn new(segment: &Segment, side: Side) -> Self {
        let place = Place {
            shape: Shape::NONE,
            arrival: nothing(side),
            payload: Spot::NOTHING,
            room: Spot::NOTHING,
            carries_reply: false,
            reply: Words::default(),
            bytes: [0; CARRIED_MAX],
        };
        let outbound = Direction::sent_by(side);
        let half = |direction| *segment.layout().half(direction);
        let Geometry { window, slot_bytes, .. } = segment.geometry();
        let slot_blocks = slot_bytes / BLOCK_ALIGN as u32;
        let (inbound, outbound) = (half(outbound.opposite()), half(outbound));
        let ways = Ways { side, inbound, outbound, slot_blocks };
        Self { places: vec![place; window.into()].into(), answer: [0; CARRIED_MAX], ways }
    }

    /// The message that lies in a line, found good. Whoever writes to the line meanwhile changes nothing that was looked at.
    #[inline(always)]
    pub(super) fn take(
        &mut self,
        line: &Line,
        segment: &Segment,
    ) -> Result<Taken<'_>, Box<LinkError>> {
        let mut first = line.first();
        let slot = slot_of(first);
        let Some(place) = self.places.get_mut(usize::from(slot)) else {
            return Err(failed(outside(first)));
        };
        let (mut invocation, mut time_ns) = line.own();
        if place.shape.is_of(first, line) {
            if place.shape.carries() {
                place.bytes = bytes(line.carried());
            }
        } else {
            let words = line.words();
            // Another slot's now: the line's writer is not to be trusted.
            if slot_of(words[0]) != slot {
                return Err(failed(outside(words[0])));
            }
            place.check(words, segment, &self.ways)?;
            (first, invocation, time_ns) = (words[0], words[2], words[6]);
        }
        Ok(Taken { place, slot, generation: generation_of(first), invocation, time_ns })
    }

    /// Takes the message that lies in a line if it is this good answer: compared with that word by word, it needs no other check.
    #[inline(always)]
    pub(super) fn answer(
        &mut self,
        line: &Line,
        segment: &Segment,
        expected: &Expected,
    ) -> Option<Reply> {
        Some(match line.answer(expected, self.ways.slot_blocks)? {
            Answer::Placed(block) => {
                let (slot, len, offset) = (expected.slot(), block.capacity, block.payload_offset());
                let payload = Payload { slot, len, offset };
                Reply::Placed(segment.payload(&self.ways.inbound, payload))
            }
            Answer::Carried(len, words) => {
                self.answer = bytes(words);
                Reply::Carried(len)
            }
        })
    }

    /// The payload of an answer that its line carried.
    #[inline(always)]
    pub(super) fn carried_answer(&self, len: u32) -> &[u8] {
        &self.answer[..len as usize]
    }

    /// The payload of an arrival.
    pub(super) fn payload<'a>(&'a self, segment: &'a Segment, payload: Payload) -> &'a [u8] {
        let place = self.places.get(usize::from(payload.slot));
        let carried = place.and_then(|place| place.carried(payload.len));
        carried.unwrap_or_else(|| segment.incoming(segment.payload(&self.ways.inbound, payload)))
    }

    /// The same as room to work, and the block of its reply.
    pub(super) fn exchange<'a>(
        &'a mut self,
        segment: &'a mut Segment,
        payload: Payload,
        reply: Block,
    ) -> (&'a mut [u8], &'a mut [u8]) {
        let room = segment.room(&self.ways.outbound, reply);
        let place = self.places.get_mut(usize::from(payload.slot));
        match place.and_then(|place| place.carried_mut(payload.len)) {
            Some(input) => (input, segment.outgoing(room)),
            None => segment.exchange(segment.payload(&self.ways.inbound, payload), room),
        }
    }
}

impl Place {
    /// Unpacks and checks a message of a shape that is new in its slot.
    #[cold]
    #[inline(never)]
    fn check(
        &mut self,
        words: Words,
        segment: &Segment,
        &Ways { side, ref inbound, ref outbound, slot_blocks }: &Ways,
    ) -> Result<(), Box<LinkError>> {
        let geometry = segment.geometry();
        let Snapshot { header, carried } = unpack(&words, slot_blocks);
        let header = Header::from_words(&header).map_err(failed)?;
        let arrival = check::checked(geometry, side, header).map_err(failed)?;
        let Header { slot, block, payload_len: len, .. } = header;
        if carried && len as usize > CARRIED_MAX {
            return Err(failed(LinkError::Range { slot, block, len }));
        }
        let reply = response(&Header { generation: 0, ..header }, 0, 0).words();
        *self = Place {
            shape: Shape::of(&words),
            arrival,
            payload: match carried {
                true => Spot::NOTHING,
                false => segment.payload(inbound, arrival.payload()),
            },
            room: arrival.reply.map_or(Spot::NOTHING, |reply| segment.room(outbound, reply)),
            carries_reply: may_carry(&reply, slot_blocks),
            reply,
            bytes: bytes([words[4], words[5]]),
        };
        Ok(())
    }

    fn carried(&self, len: u32) -> Option<&[u8]> {
        self.bytes.get(..len as usize).filter(|_| self.shape.carries())
    }

    fn carried_mut(&mut self, len: u32) -> Option<&mut [u8]> {
        self.bytes.get_mut(..len as usize).filter(|_| self.shape.carries())
    }
}

impl Taken<'_> {
    #[inline(always)]
    pub(super) fn slot(&self) -> u16 {
        self.slot
    }

    /// The message.
    #[inline(always)]
    pub(super) fn arrival(&self) -> Arrival {
        Arrival { header: self.header(), ..self.place.arrival }
    }

    #[inline(always)]
    fn header(&self) -> Header {
        let &Self { ref place, slot, generation, invocation, time_ns, .. } = self;
        Header { slot, generation, invocation, time_ns, ..place.arrival.header }
    }

    /// Where its payload lies, if that is not its line.
    #[inline(always)]
    pub(super) fn spot(&self) -> Spot {
        self.place.payload
    }

    /// The call that it is.
    #[inline(always)]
    pub(super) fn asked(&self) -> Asked {
        let &Self { ref place, slot, invocation, time_ns, .. } = self;
        let Header { epoch, function, .. } = place.arrival.header;
        Asked { slot, epoch, invocation, function, time_ns }
    }

    /// Its payload, and the block of its reply.
    #[inline(always)]
    pub(super) fn exchange<'b>(
        &'b mut self,
        segment: &'b mut Segment,
    ) -> (&'b mut [u8], &'b mut [u8]) {
        let &mut Place { shape, arrival, payload, room, ref mut bytes, .. } = self.place;
        match shape.carries() {
            true => (&mut bytes[..arrival.header.payload_len as usize], segment.outgoing(room)),
            false => segment.exchange(payload, room),
        }
    }

    /// The words of its good reply.
    #[inline(always)]
    pub(super) fn response(&self, len: u32, time_ns: u64) -> Words {
        let [kinds, epoch, _, function, block, ..] = self.place.reply;
        let (first, len) = (kinds | u64::from(self.generation), u64::from(len));
        [first, epoch, self.invocation, function, block | len, len << 32, time_ns, 0]
    }

    /// The header of any reply.
    #[cold]
    pub(super) fn response_otherwise(&self, done: Done) -> Header {
        done.response(&self.header())
    }

    /// Whether a small reply travels in its line.
    #[inline(always)]
    pub(super) fn carries_reply(&self) -> bool {
        self.place.carries_reply
    }
}

/// A slot that the link does not have.
#[cold]
fn outside(first: u64) -> LinkError {
    LinkError::Range { slot: slot_of(first), block: 0, len: 0 }
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use gleaner_proto::header::halves;
    use proptest::prelude::*;

    use super::*;
    use crate::shm::line::pack;

    const GEOMETRY: Geometry = Geometry { window: 3, slot_bytes: 1024, arena_bytes: 1 << 16 };

    /// A line as it was written: a good message, with what a hostile writer may have done to one of its words.
    fn words() -> impl Strategy<Value = Words> {
        let header = (0u16..4, any::<bool>(), 0u64..2, 0u32..3, 0u32..20, any::<bool>());
        let changed = (0usize..8, any::<u64>(), 0u32..8);
        (header, any::<[u64; 2]>(), changed).prop_map(|(header, payload, (at, word, change))| {
            let (slot, request, epoch, function, payload_len, carried) = header;
            let own = u32::from(slot) * GEOMETRY.slot_bytes / BLOCK_ALIGN as u32;
            let header = Header {
                generation: 1,
                slot,
                kind: if request { Kind::Request } else { Kind::Response },
                status: Status::Ok,
                epoch,
                invocation: payload[0],
                function,
                code: 0,
                payload_len,
                block: own,
                reply_block: if request { own } else { 0 },
                reply_capacity: 8,
                time_ns: payload[1],
            };
            let line = Line::default();
            let words = header.words();
            line.publish(
                1,
                if carried && payload_len <= 16 { pack(words, payload) } else { words },
            );
            let mut words = line.words();
            match change {
                0 => words[at] = word,
                // No generation.
                1 => words[0] &= !0xFFFF_FFFF,
                // What stands in a place before its first message.
                2 => words = [1, 0, words[2], 0, 0, 0, words[6], 1],
                // If it carries anything, too much.
                3 => words[0] |= 0x1F << 50,
                _ => {}
            }
            words
        })
    }

    /// What a message is without anything kept.
    fn anew(words: &Words, side: Side) -> Option<(Arrival, Option<Vec<u8>>)> {
        let slot_blocks = GEOMETRY.slot_bytes / BLOCK_ALIGN as u32;
        let Snapshot { header, carried } = unpack(words, slot_blocks);
        let header = Header::from_words(&header).ok()?;
        let arrival = check::checked(GEOMETRY, side, header).ok()?;
        let bytes = [words[4].to_le_bytes(), words[5].to_le_bytes()].concat();
        let payload = carried.then(|| bytes.get(..header.payload_len as usize).map(<[u8]>::to_vec));
        match payload {
            Some(None) => None,
            payload => Some((arrival, payload.flatten())),
        }
    }

    /// A call to which the message in these words may be the answer: with what is not so changed in it.
    fn call(words: &Words, wrong: usize) -> Expected {
        let slot_blocks = GEOMETRY.slot_bytes / BLOCK_ALIGN as u32;
        let [first, epoch, invocation, function, payload, ..] = unpack(words, slot_blocks).header;
        let (len, block) = halves(payload);
        let arena = (GEOMETRY.arena_offset() / BLOCK_ALIGN as u64) as u32;
        let header = Header {
            generation: generation_of(first),
            slot: slot_of(first),
            kind: Kind::Request,
            status: Status::Ok,
            epoch,
            invocation,
            function: function as u32,
            code: 0,
            payload_len: 0,
            block: 0,
            reply_block: block,
            reply_capacity: len,
            time_ns: 0,
        };
        Expected::of(&match wrong {
            0 => Header { generation: header.generation.wrapping_add(1), ..header },
            1 => Header { slot: header.slot ^ 1, ..header },
            2 => Header { epoch: epoch ^ 1, ..header },
            3 => Header { invocation: invocation ^ 1, ..header },
            4 => Header { reply_block: arena, ..header },
            5 => Header { reply_capacity: len.saturating_sub(1), ..header },
            6 => Header { reply_capacity: len.saturating_add(1), ..header },
            _ => header,
        })
    }

    /// Nobody makes other calls: sent, in a slot that there is, with a reply in its own block or the arena.
    fn is_made(call: &Expected) -> bool {
        let Block { offset, capacity } = call.block();
        let is_there = GEOMETRY.block(call.block().index(), capacity).is_some();
        call.request(0).generation != 0
            && call.slot() < GEOMETRY.window
            && is_there
            && (offset == GEOMETRY.slot(call.slot()).offset || offset >= GEOMETRY.arena_offset())
    }

    /// The payload of the good answer that a line is to a call.
    fn answered(line: &Words, call: &Expected) -> Option<(Payload, Option<Vec<u8>>)> {
        let place = |block: Block| {
            let (slot, len, offset) = (call.slot(), block.capacity, block.payload_offset());
            Payload { slot, len, offset }
        };
        match Line::of(line).answer(call, GEOMETRY.slot_bytes / BLOCK_ALIGN as u32)? {
            Answer::Placed(block) => Some((place(block), None)),
            Answer::Carried(len, words) => {
                let carried = bytes(words)[..len as usize].to_vec();
                Some((place(Block { capacity: len, ..call.block() }), Some(carried)))
            }
        }
    }

    proptest! {
        #[test]
        fn a_good_answer_is_what_a_check_anew_says(lines in proptest::collection::vec((words(), 0usize..12), 1..60)) {
            let calls = lines.iter().map(|(line, wrong)| (line, call(line, *wrong)));
            for (line, call) in calls.filter(|(_, call)| is_made(call)) {
                let good = anew(line, Side::Client).filter(|(arrival, _)| {
                    arrival.header.status == Status::Ok && call.is_of(arrival)
                });
                let good = good.map(|(arrival, carried)| (arrival.payload(), carried));
                prop_assert_eq!(answered(line, &call), good);
            }
        }

        #[test]
        fn what_is_kept_says_what_a_check_anew_says(lines in proptest::collection::vec(words(), 1..60)) {
            let file = Segment::create(GEOMETRY).unwrap();
            let segment = Segment::open(file.as_fd(), GEOMETRY).unwrap();
            for side in [Side::Client, Side::Worker] {
                let mut kept = Kept::new(&segment, side);
                for words in &lines {
                    let taken = kept.take(&Line::of(words), &segment).map(|taken| taken.arrival()).ok();
                    let seen = taken.map(|arrival| {
                        let payload = arrival.payload();
                        let place = &kept.places[usize::from(payload.slot)];
                        let payload = place.carried(payload.len).map(<[u8]>::to_vec);
                        (arrival, payload)
                    });
                    prop_assert_eq!(seen, anew(words, side));
                }
            }
        }
    }
}
