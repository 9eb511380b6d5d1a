//! One line of a ring: a header that another process writes while we look. Only atomics, so that each look is one value.
//!
//! The header's reserved bytes hold the message's number in its direction, 32 bits from 1 on, which wrap; it is stored last,
//! with Release, so that who sees it sees the rest of the line and the payload. A number that was left from the ring's last
//! round is smaller by the ring's length, and therefore no message.
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

use gleaner_proto::header::{HEADER_LEN, Header, Kind, Words};

const WORDS: usize = HEADER_LEN / 8;
const FIRST: usize = 0;
const FUNCTION: usize = 3;
const PAYLOAD: usize = 4;
const REPLY: usize = 5;
const NUMBER: usize = WORDS - 1;

/// Bits of the first word where the slot is.
const SLOT_SHIFT: u32 = 32;
/// Bits of the kind's byte: what no kind has says that the payload is here, the bits between are its length.
const CARRIES: u64 = 1 << 55;
const LEN_SHIFT: u32 = 50;
const LEN_MASK: u64 = 0x1F;
const KIND_SHIFT: u32 = 48;

/// The most bytes of payload that a line carries.
pub(crate) const CARRIED_MAX: usize = 16;

/// A carried payload.
pub(crate) type CarriedWords = [u64; 2];

/// A header's place in a ring.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Line([AtomicU64; WORDS]);

/// A message as it lay in its line, each byte read once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The header as it was posted.
    pub(crate) header: Words,
    /// The payload, if the line carried it.
    pub(crate) carried: Option<CarriedWords>,
}

impl Line {
    /// True if message number `sequence` lies here, whole.
    #[inline]
    pub(crate) fn holds(&self, sequence: u32) -> bool {
        self.0[NUMBER].load(Ordering::Acquire) as u32 == sequence
    }

    /// The block that is named here, of whichever message; `None` if the line carries the payload.
    #[inline]
    pub(crate) fn block(&self) -> Option<u32> {
        let carries = self.0[FIRST].load(Ordering::Relaxed) & CARRIES != 0;
        (!carries).then(|| (self.0[PAYLOAD].load(Ordering::Relaxed) >> 32) as u32)
    }

    /// Copies the message that lies here, less its number. Slots are so many blocks apart.
    #[inline(always)]
    pub(crate) fn snapshot(&self, slot_blocks: u32) -> Snapshot {
        let mut header = Words::default();
        for (copy, word) in header.iter_mut().zip(&self.0) {
            *copy = word.load(Ordering::Relaxed);
        }
        header[NUMBER] >>= 32;
        let mut carried = None;
        if header[FIRST] & CARRIES != 0 {
            carried = Some(unpack(&mut header, slot_blocks));
        }
        Snapshot { header, carried }
    }

    /// Stores a header, with its payload if it [`may_carry`] that, and then its number.
    #[inline(always)]
    pub(crate) fn publish(&self, sequence: u32, header: &Header, carried: Option<CarriedWords>) {
        let mut words = header.words();
        if let Some(carried) = carried {
            pack(&mut words, carried);
        }
        for (place, word) in self.0[..NUMBER].iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.0[NUMBER].store(u64::from(sequence), Ordering::Release);
    }
}

/// Whether a line can carry this message's payload: it is small, and what it takes the place of is what its slot says.
#[inline]
pub(crate) fn may_carry(header: &Header, slot_blocks: u32) -> bool {
    let own = u32::from(header.slot) * slot_blocks;
    header.payload_len as usize <= CARRIED_MAX
        && header.code == 0
        && header.block == own
        && header.reply_block == own_reply(header.kind == Kind::Request, own)
}

/// A request's reply has the same block in the other region; a response names none.
#[inline]
fn own_reply(request: bool, own: u32) -> u32 {
    if request { own } else { 0 }
}

#[inline(always)]
fn pack(words: &mut Words, [first, second]: CarriedWords) {
    let (len, capacity) = (words[PAYLOAD] & LEN_MASK, words[REPLY] & !0xFFFF_FFFF);
    words[FIRST] |= CARRIES | len << LEN_SHIFT;
    words[FUNCTION] |= capacity;
    (words[PAYLOAD], words[REPLY]) = (first, second);
}

/// The reverse. Whatever a peer has put there comes out as some header, which is checked like any other.
#[inline(always)]
fn unpack(words: &mut Words, slot_blocks: u32) -> CarriedWords {
    let carried = [words[PAYLOAD], words[REPLY]];
    let len = words[FIRST] >> LEN_SHIFT & LEN_MASK;
    words[FIRST] &= !(CARRIES | LEN_MASK << LEN_SHIFT);
    let slot = (words[FIRST] >> SLOT_SHIFT) as u16;
    let own = u32::from(slot).wrapping_mul(slot_blocks);
    let request = (words[FIRST] >> KIND_SHIFT) as u8 == Kind::Request as u8;
    let capacity = words[FUNCTION] & !0xFFFF_FFFF;
    words[FUNCTION] &= 0xFFFF_FFFF;
    words[PAYLOAD] = len | u64::from(own) << 32;
    words[REPLY] = u64::from(own_reply(request, own)) | capacity;
    carried
}

/// The payload as words. Whole ones are read whole, as they were probably written, and the rest a byte at a time: a load that is
/// wider than the stores before it waits until those have left the core.
#[inline(always)]
pub(crate) fn carried_words(payload: &[u8]) -> CarriedWords {
    let mut words = CarriedWords::default();
    let (whole, rest) = payload.as_chunks::<8>();
    for (word, part) in words.iter_mut().zip(whole) {
        *word = u64::from_le_bytes(*part);
    }
    if let Some(word) = words.get_mut(whole.len()) {
        *word = rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    }
    words
}

#[cfg(test)]
mod tests {
    use gleaner_proto::header::Status;

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
        let line = Line(Default::default());
        assert!(!line.holds(1));
        let header = header(Kind::Request);
        line.publish(u32::MAX, &header, None);
        assert!(line.holds(u32::MAX) && !line.holds(0));
        assert!(!line.holds(u32::MAX - 16), "the ring's last round");
        assert_eq!(line.block(), Some(3 * SLOT_BLOCKS));
        assert_eq!(line.snapshot(SLOT_BLOCKS), Snapshot { header: header.words(), carried: None });
    }

    #[test]
    fn a_carried_payload_comes_back_beside_the_whole_header() {
        for kind in [Kind::Request, Kind::Response] {
            let (line, header) = (Line(Default::default()), header(kind));
            assert!(may_carry(&header, SLOT_BLOCKS));
            let words = carried_words(b"hello");
            line.publish(1, &header, Some(words));
            assert_eq!(line.block(), None);
            let seen = line.snapshot(SLOT_BLOCKS);
            assert_eq!(seen, Snapshot { header: header.words(), carried: Some(words) });
        }
    }

    #[test]
    fn what_its_slot_does_not_say_is_not_carried() {
        let carried = |change: fn(&mut Header)| {
            let mut header = header(Kind::Request);
            change(&mut header);
            may_carry(&header, SLOT_BLOCKS)
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
