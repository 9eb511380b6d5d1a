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

use crate::{
    call::{Asked, Expected, response},
    link::{Arrival, Block, Geometry, WINDOW_MAX},
};

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

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
        self.epoch = epoch;
        self.count(invocation);
        self.slots[usize::from(header.slot)] = Call { generation, function, invocation };
    }

    #[inline(always)]
    fn count(&mut self, invocation: u64) {
        self.next = invocation.wrapping_add(invocation.wrapping_sub(self.last));
        self.last = invocation;
    }

    /// Client: what stands for this call's request, of which it takes note then. One test of all differences, as in
    /// [`immediate`](Self::immediate), which says the same of a header.
    #[inline(always)]
    pub(super) fn ask(&mut self, call: &Expected, time_ns: u64) -> Option<Immediate> {
        let own = self.geometry.slot(call.slot());
        let last = self.slots.get_mut(usize::from(call.slot()))?;
        let (generation, function, invocation) =
            (call.generation(), call.function(), call.invocation());
        let short = (generation ^ last.next_generation())
            | (function >> u16::BITS)
            | (call.input().index() ^ own.index())
            | (call.block().index() ^ own.index())
            | (call.block().capacity ^ own.capacity);
        let long = (invocation ^ self.next) | (call.epoch() ^ self.epoch) | time_ns;
        if u64::from(short) | long != 0 {
            return None;
        }
        *last = Call { generation, function, invocation };
        self.count(invocation);
        Some(Immediate::Brief { slot: call.slot() as u8, detail: function as u16 })
    }

    /// Client: whether a brief message of so many bytes is the answer to this call, and lies where that is awaited: in the own block of its
    /// slot.
    #[inline(always)]
    pub(super) fn answers(&self, call: &Expected, slot: u8, len: u32) -> bool {
        let Some(last) = self.slots.get(usize::from(slot)) else { return false };
        let own = self.geometry.slot(slot.into());
        let differs = (last.generation ^ call.generation())
            | (u32::from(slot) ^ u32::from(call.slot()))
            | (call.block().index() ^ own.index());
        let differs = u64::from(differs)
            | (last.invocation ^ call.invocation())
            | (call.epoch() ^ self.epoch);
        differs == 0 && len <= call.block().capacity
    }

    /// Worker: the call that a brief message of so many bytes asks for, of which it takes note. `None` if there is no such slot, or no room for
    /// so many.
    #[inline(always)]
    pub(super) fn asked(&mut self, slot: u8, detail: u16, len: u32) -> Option<Asked> {
        let last = self.slots.get_mut(usize::from(slot))?;
        if len > self.geometry.slot_capacity() {
            return None;
        }
        let (epoch, invocation, function) = (self.epoch, self.next, u32::from(detail));
        *last = Call { generation: last.next_generation(), function, invocation };
        self.count(invocation);
        Some(Asked { slot: slot.into(), epoch, invocation, function, time_ns: 0 })
    }

    /// The header of a slot's last request, if it was a brief one.
    #[inline(always)]
    pub(super) fn request(&self, slot: u16, len: u32) -> Header {
        let Call { generation, function, invocation } = self.slots[usize::from(slot)];
        let own = self.geometry.slot(slot);
        Header {
            generation,
            slot,
            kind: Kind::Request,
            status: Status::Ok,
            epoch: self.epoch,
            invocation,
            function,
            code: 0,
            payload_len: len,
            block: own.index(),
            reply_block: own.index(),
            reply_capacity: own.capacity,
            time_ns: 0,
        }
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

    /// A brief message of so many bytes, with its place in our own regions; of a request it takes note. `None` if there is no such slot,
    /// nothing to answer in it, or no room for so many.
    #[inline(always)]
    pub(super) fn arrival(
        &mut self,
        kind: Kind,
        slot: u8,
        detail: u16,
        len: u32,
    ) -> Option<Arrival> {
        let last = self.slots.get(usize::from(slot))?;
        let own = self.geometry.slot(slot.into());
        let block = Block { capacity: len, ..own };
        if kind == Kind::Request {
            let slot = self.asked(slot, detail, len)?.slot;
            return Some(Arrival { header: self.request(slot, len), block, reply: Some(own) });
        }
        if len > own.capacity || last.generation == 0 {
            return None;
        }
        let header = response(&self.request(slot.into(), 0), len, from_brief_time(detail));
        Some(Arrival { header, block, reply: None })
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
            self.0.note(header);
            let arrived = read(&mut self.1, header, brief);
            assert_eq!(arrived, *header);
            brief.is_some()
        }

        fn answer(&mut self, header: &Header) -> (bool, Header) {
            let brief = self.1.immediate(header);
            (brief.is_some(), read(&mut self.0, header, brief))
        }
    }

    fn read(record: &mut Record, header: &Header, brief: Option<Immediate>) -> Header {
        if brief.is_none() && header.kind == Kind::Request {
            record.note(header);
        }
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

    /// A call like the last one in its slot, or unlike it in one thing.
    fn call(slot: u16, change: impl FnOnce(&mut Header)) -> Expected {
        let mut header = request(2, slot, if slot == 0 { 2 } else { 1 });
        change(&mut header);
        Expected::of(&header)
    }

    fn changed(which: u8) -> impl FnOnce(&mut Header) {
        move |header| match which {
            0 => header.generation = 7,
            1 => header.epoch = 10,
            2 => header.invocation = 3,
            3 => header.function = 1 << 16,
            4 => header.block += 1,
            5 => header.reply_block += 1,
            6 => header.reply_capacity = 50,
            7 => header.slot = (header.slot + 1) % GEOMETRY.window,
            _ => {}
        }
    }

    proptest! {
        /// A call is asked in the same words as its header, and leaves the same record.
        #[test]
        fn a_call_is_asked_as_its_header_is(slot in 0u16..3, which in 0u8..10, time_ns in 0u64..2) {
            let call = call(slot, changed(which));
            let (mut short, mut long) = (Record::new(GEOMETRY), Record::new(GEOMETRY));
            short.note(&request(1, 0, 1));
            long.note(&request(1, 0, 1));
            let brief = short.ask(&call, time_ns);
            prop_assert_eq!(brief, long.immediate(&call.request(time_ns)));
            prop_assert_eq!(brief.is_some(), which > 7 && time_ns == 0);
            if brief.is_some() {
                long.note(&call.request(time_ns));
            }
            prop_assert_eq!((short.next, short.last, short.epoch), (long.next, long.last, long.epoch));
            prop_assert_eq!(short.slots, long.slots);
        }

        /// The worker's end knows the same of a call by its number alone as by its header.
        #[test]
        fn a_call_is_run_as_its_header_says(slot: u8, detail: u16, len in 0u32..5000) {
            let (mut short, mut long) = (Record::new(GEOMETRY), Record::new(GEOMETRY));
            short.note(&request(1, 0, 1));
            long.note(&request(1, 0, 1));
            let asked = short.asked(slot, detail, len);
            let arrival = long.arrival(Kind::Request, slot, detail, len);
            prop_assert_eq!(asked.is_some(), arrival.is_some());
            if let (Some(asked), Some(Arrival { header, .. })) = (asked, arrival) {
                let Header { slot, epoch, invocation, function, time_ns, .. } = header;
                prop_assert_eq!(asked, Asked { slot, epoch, invocation, function, time_ns });
                prop_assert_eq!(short.request(slot, len), header);
            }
        }

        /// What the short look takes for a call's answer, the long one does too.
        #[test]
        fn an_answer_is_what_its_header_says(
            slot in 0u16..3, which in 0u8..10, at in 0u8..4, detail: u16, len in 0u32..5000,
        ) {
            let mut record = Record::new(GEOMETRY);
            for (number, slot, generation) in [(1, 0, 2), (2, 1, 1), (2, 2, 1), (2, 0, 2)] {
                record.note(&request(number, slot, generation));
            }
            let call = call(slot, changed(which));
            let is_answer = record.answers(&call, at, len);
            let arrival = record.arrival(Kind::Response, at, detail, len);
            let same = arrival.is_some_and(|arrival| call.is_of(&arrival));
            prop_assert_eq!(is_answer, same);
        }

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
