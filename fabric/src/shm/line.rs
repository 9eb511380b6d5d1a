//! One line of a ring: a header that another process writes while we look. Only atomics, so that each look is one value.
//!
//! The header's reserved bytes hold the message's number in its direction, 32 bits from 1 on, which wrap; it is stored last,
//! with Release, so that who sees it sees the rest of the line and the payload. A number that was left from the ring's last
//! round is smaller by the ring's length, and therefore no message, as whatever else stands there.
//!
//! A payload of a few bytes travels in the line itself, in place of what says nothing of a message in its own slot: a call of a
//! few bytes is then one cache line each way, not two.
//!
//! ```text
//! word      0                                    1      2           3                   4, 5                6     7
//! usual     generation, slot, kind, status       epoch  invocation  function, code      lengths and blocks  time  number
//! carried   the same; length in the kind's bits  epoch  invocation  function, capacity  the payload         time  number
//! ```
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

use gleaner_proto::header::{BLOCK_ALIGN, HEADER_LEN, KIND_SHIFT, Kind, Words, halves};

use crate::{call::Expected, link::Block};

const WORDS: usize = HEADER_LEN / 8;
const FIRST: usize = 0;
const EPOCH: usize = 1;
const INVOCATION: usize = 2;
const FUNCTION: usize = 3;
const PAYLOAD: usize = 4;
const REPLY: usize = 5;
const TIME: usize = 6;
const NUMBER: usize = WORDS - 1;

/// Bits of the first word where the slot is.
const SLOT_SHIFT: u32 = 32;
/// Bits of the kind's byte: what no kind has says that the payload is here, the bits between are its length.
const CARRIES: u64 = 1 << 55;
const LEN_SHIFT: u32 = 50;
const LEN_MASK: u64 = 0x1F;

/// The most bytes of payload that a line carries.
pub(crate) const CARRIED_MAX: usize = 16;

/// A carried payload.
pub(crate) type CarriedWords = [u64; 2];

/// A header's place in a ring.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct Line([AtomicU64; WORDS]);

/// A message that lay in a line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The header as it was posted.
    pub(crate) header: Words,
    /// The line carried the payload, in its words 4 and 5.
    pub(crate) carried: bool,
}

/// A good answer's payload.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It lies in this block, as long as it is.
    Placed(Block),
    /// So many were carried.
    Carried(u32, CarriedWords),
}

/// What a line says of all that its message can be refused for, beyond a generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Slot, kind, status, and whether and how much payload is carried.
    first: u32,
    epoch: u64,
    function: u64,
    /// Lengths and blocks, where no payload lies in their place.
    lengths: [u64; 2],
}

impl Shape {
    /// No message's: its slot is beyond any window.
    pub(crate) const NONE: Self = Self { first: u32::MAX, epoch: 0, function: 0, lengths: [0; 2] };

    pub(crate) fn of(words: &Words) -> Self {
        let (epoch, function) = (words[EPOCH], words[FUNCTION]);
        let lengths = [words[PAYLOAD], words[REPLY]];
        Self { first: (words[FIRST] >> SLOT_SHIFT) as u32, epoch, function, lengths }
    }

    /// Whether the message in a line, of this first word, has this shape and is good beyond it. Each word is looked at once.
    #[inline(always)]
    pub(crate) fn is_of(&self, first: u64, line: &Line) -> bool {
        self.first == (first >> SLOT_SHIFT) as u32
            && first as u32 != 0
            && self.epoch == line.word(EPOCH)
            && self.function == line.word(FUNCTION)
            && (self.carries() || self.lengths == line.carried())
    }

    #[inline(always)]
    pub(crate) fn carries(&self) -> bool {
        self.first & (CARRIES >> SLOT_SHIFT) as u32 != 0
    }
}

/// The slot that a first word names.
#[inline(always)]
pub(crate) fn slot_of(first: u64) -> u16 {
    (first >> SLOT_SHIFT) as u16
}

/// The generation that a first word names.
#[inline(always)]
pub(crate) fn generation_of(first: u64) -> u32 {
    first as u32
}

impl Line {
    /// True if message number `sequence` lies here, whole.
    #[inline]
    pub(crate) fn holds(&self, sequence: u32) -> bool {
        self.0[NUMBER].load(Ordering::Acquire) == u64::from(sequence)
    }

    /// True if what lies here has that number, and something beside it where nothing belongs.
    pub(crate) fn is_marred(&self, sequence: u32) -> bool {
        let (number, reserved) = halves(self.word(NUMBER));
        number == sequence && reserved != 0
    }

    #[inline(always)]
    fn word(&self, at: usize) -> u64 {
        self.0[at].load(Ordering::Relaxed)
    }

    /// The first word: of the message in the line if it [holds](Self::holds) one.
    #[inline(always)]
    pub(crate) fn first(&self) -> u64 {
        self.word(FIRST)
    }

    /// The message's own number and time, which are good whatever they are.
    #[inline(always)]
    pub(crate) fn own(&self) -> (u64, u64) {
        (self.word(INVOCATION), self.word(TIME))
    }

    /// The payload, if the line carries one.
    #[inline(always)]
    pub(crate) fn carried(&self) -> CarriedWords {
        [self.word(PAYLOAD), self.word(REPLY)]
    }

    /// The block that is named here, of whichever message; `None` if the line carries the payload.
    #[inline]
    pub(crate) fn block(&self) -> Option<u32> {
        let carries = self.first() & CARRIES != 0;
        (!carries).then(|| (self.word(PAYLOAD) >> 32) as u32)
    }

    /// What lies here, each word read once.
    #[inline(always)]
    pub(crate) fn words(&self) -> Words {
        let mut words = Words::default();
        for (at, copy) in words.iter_mut().enumerate() {
            *copy = self.word(at);
        }
        words
    }

    /// The payload of the message here if that is this good answer, of which nothing else is believed. Slots are so many blocks apart.
    #[inline(always)]
    pub(crate) fn answer(&self, expected: &Expected, slot_blocks: u32) -> Option<Answer> {
        let [first, epoch, invocation] = expected.answer_words();
        let more = self.word(FIRST) ^ first;
        let wanted = expected.block();
        if self.word(EPOCH) != epoch || self.word(INVOCATION) != invocation {
            return None;
        }
        if more == 0 {
            let (capacity, index) = halves(self.word(PAYLOAD));
            let is_there = index == wanted.index() && capacity <= wanted.capacity;
            let offset = u64::from(index) * BLOCK_ALIGN as u64;
            return is_there.then_some(Answer::Placed(Block { offset, capacity }));
        }
        // Its length alone, in the lowest bits: whatever else is there makes it too long.
        let len = more.wrapping_sub(CARRIES).rotate_right(LEN_SHIFT);
        let is_good = len <= CARRIED_MAX as u64
            && len <= u64::from(wanted.capacity)
            && wanted.index() == own(expected.slot(), slot_blocks);
        is_good.then(|| Answer::Carried(len as u32, self.carried()))
    }

    /// Stores a header's words, and then its number.
    #[inline(always)]
    pub(crate) fn publish(&self, sequence: u32, words: Words) {
        let [first, epoch, invocation, function, payload, reply, time, _] = words;
        self.0[FIRST].store(first, Ordering::Relaxed);
        self.0[EPOCH].store(epoch, Ordering::Relaxed);
        self.0[INVOCATION].store(invocation, Ordering::Relaxed);
        self.0[FUNCTION].store(function, Ordering::Relaxed);
        self.0[PAYLOAD].store(payload, Ordering::Relaxed);
        self.0[REPLY].store(reply, Ordering::Relaxed);
        self.0[TIME].store(time, Ordering::Relaxed);
        self.0[NUMBER].store(u64::from(sequence), Ordering::Release);
    }
}

/// Whether a line can carry the payload of a message with these words: it is small, and what it takes the place of is what its slot
/// says.
#[inline(always)]
pub(crate) fn may_carry(words: &Words, slot_blocks: u32) -> bool {
    let (len, block) = halves(words[PAYLOAD]);
    let (_, code) = halves(words[FUNCTION]);
    let (reply_block, _) = halves(words[REPLY]);
    if len as usize > CARRIED_MAX || code != 0 {
        return false;
    }
    let own = own(slot_of(words[FIRST]), slot_blocks);
    block == own && reply_block == own_reply(is_request(words[FIRST]), own)
}

/// The same of a call's request, whose input is small.
#[inline(always)]
pub(crate) fn may_carry_input(call: &Expected, slot_blocks: u32) -> bool {
    let own = own(call.slot(), slot_blocks);
    call.input().index() == own && call.block().index() == own
}

/// A slot's own block. Slots are so many blocks apart.
#[inline(always)]
fn own(slot: u16, slot_blocks: u32) -> u32 {
    u32::from(slot).wrapping_mul(slot_blocks)
}

#[inline(always)]
fn is_request(first: u64) -> bool {
    (first >> KIND_SHIFT) as u8 == Kind::Request as u8
}

/// A request's reply has the same block in the other region; a response names none.
#[inline]
fn own_reply(request: bool, own: u32) -> u32 {
    if request { own } else { 0 }
}

/// A header's words as a line carries them together with a payload that it [`may_carry`].
#[inline(always)]
pub(crate) fn pack(words: Words, [first, second]: CarriedWords) -> Words {
    let mut packed = words;
    let (len, capacity) = (words[PAYLOAD] & LEN_MASK, words[REPLY] & !0xFFFF_FFFF);
    packed[FIRST] |= CARRIES | len << LEN_SHIFT;
    packed[FUNCTION] |= capacity;
    (packed[PAYLOAD], packed[REPLY]) = (first, second);
    packed
}

/// The reverse: a line's words, less the message's number. Slots are so many blocks apart.
pub(crate) fn unpack(words: &Words, slot_blocks: u32) -> Snapshot {
    let mut header = *words;
    header[NUMBER] = 0;
    let carried = header[FIRST] & CARRIES != 0;
    if carried {
        uncarry(&mut header, slot_blocks);
    }
    Snapshot { header, carried }
}

/// Whatever a peer has put there comes out as some header, which is checked like any other.
fn uncarry(words: &mut Words, slot_blocks: u32) {
    let len = words[FIRST] >> LEN_SHIFT & LEN_MASK;
    words[FIRST] &= !(CARRIES | LEN_MASK << LEN_SHIFT);
    let own = own(slot_of(words[FIRST]), slot_blocks);
    let request = is_request(words[FIRST]);
    let capacity = words[FUNCTION] & !0xFFFF_FFFF;
    words[FUNCTION] &= 0xFFFF_FFFF;
    words[PAYLOAD] = len | u64::from(own) << 32;
    words[REPLY] = u64::from(own_reply(request, own)) | capacity;
}

/// The payload as words. Whole ones are read whole, as they were probably written, and the rest a byte at a time: a load that is
/// wider than the stores before it waits until those have left the core.
#[inline(always)]
pub(crate) fn carried_words(payload: &[u8]) -> CarriedWords {
    match payload.split_first_chunk::<8>() {
        Some((first, rest)) => [u64::from_le_bytes(*first), word(rest)],
        None => [word(payload), 0],
    }
}

/// Up to eight bytes.
#[inline(always)]
fn word(bytes: &[u8]) -> u64 {
    match bytes.first_chunk::<8>() {
        Some(whole) => u64::from_le_bytes(*whole),
        None => bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    }
}

/// A carried payload's bytes, as many as there may be.
#[inline(always)]
pub(crate) fn bytes(words: CarriedWords) -> [u8; CARRIED_MAX] {
    let mut bytes = [0; CARRIED_MAX];
    let (parts, _) = bytes.as_chunks_mut::<8>();
    for (part, word) in parts.iter_mut().zip(words) {
        *part = word.to_le_bytes();
    }
    bytes
}

#[cfg(test)]
impl Line {
    /// A line that holds these words.
    pub(super) fn of(words: &Words) -> Self {
        Self(words.map(AtomicU64::new))
    }
}

#[cfg(test)]
mod tests {
    use gleaner_proto::header::{Header, Status};

    use super::*;

    const SLOT_BLOCKS: u32 = 16;

    fn header(kind: Kind) -> Header {
        let own = 3 * SLOT_BLOCKS;
        let reply_block = if kind == Kind::Request { own } else { 0 };
        Header {
            generation: 7,
            slot: 3,
            kind,
            status: Status::Ok,
            epoch: 1 << 40,
            invocation: u64::MAX,
            function: 2,
            code: 0,
            payload_len: 5,
            block: own,
            reply_block,
            reply_capacity: 900,
            time_ns: 11,
        }
    }

    #[test]
    fn a_line_gives_back_what_was_published_under_its_number_alone() {
        let line = Line::default();
        assert!(!line.holds(1));
        let header = header(Kind::Request);
        line.publish(u32::MAX, header.words());
        assert!(line.holds(u32::MAX) && !line.holds(0));
        assert!(!line.holds(u32::MAX - 16), "the ring's last round");
        assert_eq!(line.block(), Some(3 * SLOT_BLOCKS));
        let seen = unpack(&line.words(), SLOT_BLOCKS);
        assert_eq!(seen, Snapshot { header: header.words(), carried: false });
    }

    #[test]
    fn a_carried_payload_comes_back_beside_the_whole_header() {
        for kind in [Kind::Request, Kind::Response] {
            let (line, header) = (Line::default(), header(kind));
            assert!(may_carry(&header.words(), SLOT_BLOCKS));
            let words = carried_words(b"hello");
            line.publish(1, pack(header.words(), words));
            assert_eq!(line.block(), None);
            let seen = line.words();
            assert_eq!([seen[PAYLOAD], seen[REPLY]], words);
            let seen = unpack(&seen, SLOT_BLOCKS);
            assert_eq!(seen, Snapshot { header: header.words(), carried: true });
        }
    }

    #[test]
    fn what_its_slot_does_not_say_is_not_carried() {
        let carried = |change: fn(&mut Header)| {
            let mut header = header(Kind::Request);
            change(&mut header);
            may_carry(&header.words(), SLOT_BLOCKS)
        };
        assert!(carried(|header| header.payload_len = CARRIED_MAX as u32));
        assert!(!carried(|header| header.payload_len = CARRIED_MAX as u32 + 1));
        assert!(!carried(|header| header.code = 1));
        assert!(!carried(|header| header.block += 1));
        assert!(!carried(|header| header.reply_block += 1));
        assert!(!carried(|header| header.kind = Kind::Response));
    }

    #[test]
    fn words_hold_the_payload_and_nothing_else() {
        for len in 0..=CARRIED_MAX {
            let payload: Vec<u8> = (1..=len as u8).collect();
            let bytes = carried_words(&payload).map(u64::to_le_bytes).concat();
            assert!(bytes[..len] == payload && bytes[len..].iter().all(|&byte| byte == 0));
        }
    }
}
