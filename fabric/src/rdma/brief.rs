//! Messages without a header. A call is mostly like the one before it: in its own slot, under the same epoch, with the next number. What
//! its header would say then, both ends know, but for its slot and its function, or the time that it took; so these travel in the
//! immediate, and the payload alone is written. A payload that fills its packets takes no packet more than verbs alone, and a short one
//! 64 bytes less.
//!
//! Both ends keep the same record of the requests that went from one to the other, in order. From it the receiver makes the header that an
//! immediate stands for, and the sender sees whether it would be the one that it means. The peer is not trusted: its slot and its length are
//! checked here, all else of the header is our own.
#![forbid(unsafe_code)]

use gleaner_proto::header::{Header, Immediate, Kind, Status, brief_time, from_brief_time};

use crate::link::{Arrival, Block, Geometry, WINDOW_MAX};

/// What both ends know of the requests so far.
#[derive(Debug)]
pub(super) struct Record {
    geometry: Geometry,
    epoch: u64,
    /// The number of the last request, and that which the next one has if it is as much larger.
    last: u64,
    next: u64,
    /// The last request of each slot.
    slots: Box<[Call]>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Call {
    generation: u32,
    function: u32,
    invocation: u64,
}

impl Call {
    #[inline(always)]
    fn next_generation(&self) -> u32 {
        self.generation.checked_add(1).unwrap_or(1)
    }
}

impl Record {
    pub(super) fn new(geometry: Geometry) -> Self {
        let slots = vec![Call::default(); usize::from(geometry.window)].into();
        Self { geometry, epoch: 0, last: 0, next: 1, slots }
    }

    /// Takes note of a request that is posted, or has arrived. Its slot has been checked.
    #[inline(always)]
    pub(super) fn note(&mut self, header: &Header) {
        let &Header { generation, function, invocation, epoch, .. } = header;
        self.next = invocation.wrapping_add(invocation.wrapping_sub(self.last));
        (self.last, self.epoch) = (invocation, epoch);
        self.slots[usize::from(header.slot)] = Call { generation, function, invocation };
    }

    /// What stands for this header, if it is the one that [`arrival`](Self::arrival) makes of it; a time may be rounded. One test of all
    /// differences: they are seldom there, and a branch for each would cost more than all of them.
    #[inline(always)]
    pub(super) fn immediate(&self, header: &Header) -> Option<Immediate> {
        let call = &self.slots[usize::from(header.slot)];
        let own = self.geometry.slot(header.slot).index();
        let (detail, short, long) = match header.kind {
            Kind::Request => (
                header.function as u16,
                (header.generation ^ call.next_generation())
                    | (header.function >> u16::BITS)
                    | (header.reply_block ^ own)
                    | (header.reply_capacity ^ self.geometry.slot_capacity()),
                (header.invocation ^ self.next) | header.time_ns,
            ),
            Kind::Response => (
                brief_time(header.time_ns)?,
                (header.generation ^ call.generation)
                    | (header.function ^ call.function)
                    | header.reply_block
                    | (header.reply_capacity ^ header.payload_len),
                header.invocation ^ call.invocation,
            ),
        };
        let short = short | (header.block ^ own) | header.code | header.status as u32;
        let differs = u64::from(short) | long | (header.epoch ^ self.epoch);
        let slot = header.slot as u8;
        (differs == 0).then_some(Immediate::Brief { slot, detail })
    }

    /// A brief message of so many bytes, with its place in our own regions; `None` if there is no such slot, nothing to answer in it, or no
    /// room for so many.
    #[inline(always)]
    pub(super) fn arrival(&self, kind: Kind, slot: u8, detail: u16, len: u32) -> Option<Arrival> {
        let call = self.slots.get(usize::from(slot))?;
        let slot = u16::from(slot);
        let own = self.geometry.slot(slot);
        let is_request = kind == Kind::Request;
        if len > own.capacity || (!is_request && call.generation == 0) {
            return None;
        }
        let header = Header {
            generation: if is_request { call.next_generation() } else { call.generation },
            slot,
            kind,
            status: Status::Ok,
            epoch: self.epoch,
            invocation: if is_request { self.next } else { call.invocation },
            function: if is_request { detail.into() } else { call.function },
            code: 0,
            payload_len: len,
            block: own.index(),
            reply_block: if is_request { own.index() } else { 0 },
            reply_capacity: if is_request { own.capacity } else { len },
            time_ns: if is_request { 0 } else { from_brief_time(detail) },
        };
        let block = Block { capacity: len, ..own };
        Some(Arrival { header, block, reply: is_request.then_some(own) })
    }
}

const _: () = assert!(WINDOW_MAX as usize <= 1 << u8::BITS, "a slot's number fits the immediate");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::check::{Side, checked};

    const GEOMETRY: Geometry = Geometry { window: 3, slot_bytes: 4096, arena_bytes: 1 << 20 };

    fn request(number: u64, slot: u16, generation: u32) -> Header {
        let block = GEOMETRY.slot(slot).index();
        Header {
            generation,
            slot,
            kind: Kind::Request,
            status: Status::Ok,
            epoch: 9,
            invocation: number,
            function: 2,
            code: 0,
            payload_len: 100,
            block,
            reply_block: block,
            reply_capacity: GEOMETRY.slot_capacity(),
            time_ns: 0,
        }
    }

    fn response(request: &Header, len: u32, time_ns: u64) -> Header {
        let kind = Kind::Response;
        Header { kind, payload_len: len, reply_capacity: len, time_ns, reply_block: 0, ..*request }
    }

    /// Both ends' records; the header as the other end has it, and whether it was sent.
    struct Both(Record, Record);

    impl Both {
        fn new() -> Self {
            Self(Record::new(GEOMETRY), Record::new(GEOMETRY))
        }

        fn ask(&mut self, header: &Header) -> bool {
            let brief = self.0.immediate(header);
            let arrived = read(&self.1, header, brief);
            assert_eq!(arrived, *header);
            self.0.note(header);
            self.1.note(&arrived);
            brief.is_some()
        }

        fn answer(&mut self, header: &Header) -> (bool, Header) {
            let brief = self.1.immediate(header);
            (brief.is_some(), read(&self.0, header, brief))
        }
    }

    fn read(record: &Record, header: &Header, brief: Option<Immediate>) -> Header {
        match brief {
            Some(Immediate::Brief { slot, detail }) => {
                record.arrival(header.kind, slot, detail, header.payload_len).unwrap().header
            }
            _ => *header,
        }
    }

    #[test]
    fn a_call_like_the_one_before_needs_no_header() {
        let mut both = Both::new();
        let calls = [(1, 0, 1), (2, 1, 1), (3, 0, 2), (4, 0, 3)].map(|(n, s, g)| request(n, s, g));
        let sent = calls.map(|call| both.ask(&call));
        assert_eq!(sent, [false, true, true, true], "the epoch is told once");
        let (brief, arrived) = both.answer(&response(&calls[3], 3900, 1234));
        assert!(brief);
        assert_eq!(arrived, response(&calls[3], 3900, 1234));
        let (brief, arrived) = both.answer(&response(&calls[3], 3900, 1_234_567));
        assert!(brief && (1_233_900..=1_234_567).contains(&arrived.time_ns));
    }

    #[test]
    fn numbers_may_go_up_by_more_than_one() {
        let mut both = Both::new();
        let sent = [1, 4, 7, 10, 11].map(|number| both.ask(&request(number, 0, number as u32)));
        assert_eq!(sent, [false; 5], "the generation is not the next one");
        let sent =
            [14, 17, 20, 21].map(|number| both.ask(&request(number, 1, (number as u32 - 11) / 3)));
        assert_eq!(sent, [false, true, true, false]);
    }

    #[test]
    fn what_is_unusual_has_its_header() {
        let mut both = Both::new();
        both.ask(&request(1, 0, 1));
        let usual = request(2, 0, 2);
        for unusual in [
            Header { generation: 1, ..usual },
            Header { epoch: 10, ..usual },
            Header { invocation: 3, ..usual },
            Header { function: 1 << 16, ..usual },
            Header { code: 1, ..usual },
            Header { block: 64, ..usual },
            Header { reply_block: 64, ..usual },
            Header { reply_capacity: 1, ..usual },
            Header { time_ns: 1, ..usual },
        ] {
            assert_eq!(both.0.immediate(&unusual), None, "{unusual:?}");
        }
        assert!(both.ask(&usual));
        let reply = response(&usual, 7, 0);
        for unusual in [
            Header { status: Status::FunctionError, ..reply },
            Header { code: 1, ..reply },
            Header { block: 64, ..reply },
            Header { reply_block: 1, ..reply },
            Header { reply_capacity: 8, ..reply },
            Header { time_ns: u64::MAX, ..reply },
            Header { invocation: 1, ..reply },
        ] {
            assert_eq!(both.1.immediate(&unusual), None, "{unusual:?}");
        }
        assert!(both.answer(&reply).0);
    }

    proptest! {
        /// Whatever is asked and answered in whatever order, the other end has the very header, but for what a time is rounded by.
        #[test]
        fn both_ends_have_the_same_header(
            steps in prop::collection::vec((0u16..3, 0u64..3, 0u32..3, 0u32..=3968, any::<bool>(), any::<u32>()), 1..50)
        ) {
            let mut both = Both::new();
            let (mut number, mut generations) = (0, [0; 3]);
            for (slot, stride, function, len, own, time) in steps {
                number += stride;
                let generation = &mut generations[usize::from(slot)];
                *generation += 1;
                let mut call = request(number, slot, *generation);
                call.payload_len = len;
                call.function = function;
                if !own {
                    call.block += 1;
                }
                both.ask(&call);
                let reply = response(&call, len, time.into());
                let (_, arrived) = both.answer(&reply);
                prop_assert!(arrived.time_ns <= reply.time_ns);
                prop_assert_eq!(Header { time_ns: reply.time_ns, ..arrived }, reply);
            }
        }

        /// A hostile peer's immediates are refused, or pass the check of headers that were sent.
        #[test]
        fn any_brief_message_is_refused_or_lies_in_its_slot(slot: u8, detail: u16, len in prop_oneof![0u32..5000, any::<u32>()], side: bool) {
            let mut record = Record::new(GEOMETRY);
            record.note(&request(1, 0, 1));
            let side = if side { Side::Client } else { Side::Worker };
            match record.arrival(side.takes(), slot, detail, len) {
                Some(arrival) => {
                    prop_assert_eq!(checked(GEOMETRY, side, arrival.header).unwrap(), arrival);
                    prop_assert_eq!(arrival.block.offset, GEOMETRY.slot(slot.into()).offset);
                }
                None => {
                    let unasked = side == Side::Client && slot != 0;
                    let too_long = len > GEOMETRY.slot_capacity();
                    prop_assert!(u16::from(slot) >= GEOMETRY.window || unasked || too_long);
                }
            }
        }
    }
}
