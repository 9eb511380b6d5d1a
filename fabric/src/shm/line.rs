//! One line of a ring: a header that another process writes while we look. Only atomics, so that each look is one value.
//!
//! The header's reserved bytes hold the message's number in its direction, 32 bits from 1 on, which wrap; it is stored last,
//! with Release, so that who sees it sees the rest of the line and the payload. A number that was left from the ring's last
//! round is smaller by the ring's length, and therefore no message.
//!
//! Words of 32 bits, as most of the header's fields are: a wider load of two that were just stored apart would wait until
//! both stores have left the store buffer, and those wait for the payload's lines to come from the other core.
//!
//! A payload of a few bytes travels in the line itself, where it takes the place of four words that say nothing of a message
//! in its own slot: a call of a few bytes is then one cache line each way, not two.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use gleaner_proto::header::{HEADER_LEN, Header, Kind};

const WORDS: usize = HEADER_LEN / 4;
/// The word that is the message's number.
const NUMBER: usize = WORDS - 2;
/// The word that names the block.
const BLOCK: usize = 9;
/// The word with slot, kind and status, and the bit of its kind that says that the payload is in the line.
const KIND: usize = 1;
const CARRIES: u32 = 1 << 23;
/// The words that a carried payload takes: code, block, reply block, and the reserved one.
const CARRIED: [usize; 4] = [7, BLOCK, 10, WORDS - 1];

/// The most bytes of payload that a line carries.
pub(crate) const CARRIED_MAX: usize = 4 * CARRIED.len();

/// The words of a carried payload.
pub(crate) type CarriedWords = [u32; CARRIED.len()];

/// A header's place in a ring.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Line([AtomicU32; WORDS]);

/// A message as it lay in its line, each byte read once.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The header as it was posted.
    pub(crate) header: [u8; HEADER_LEN],
    /// The payload, if the line carried it.
    pub(crate) carried: Option<CarriedWords>,
}

impl Line {
    /// True if message number `sequence` lies here, whole.
    #[inline]
    pub(crate) fn holds(&self, sequence: u32) -> bool {
        u32::from_le(self.0[NUMBER].load(Ordering::Acquire)) == sequence
    }

    /// The block that is named here, of whichever message; `None` if the line carries the payload.
    #[inline]
    pub(crate) fn block(&self) -> Option<u32> {
        let carries = u32::from_le(self.0[KIND].load(Ordering::Relaxed)) & CARRIES != 0;
        (!carries).then(|| u32::from_le(self.0[BLOCK].load(Ordering::Relaxed)))
    }

    /// Copies the message that lies here, less its number. Slots are so many blocks apart.
    #[inline]
    pub(crate) fn snapshot(&self, slot_blocks: u32) -> Snapshot {
        let mut words = [0; WORDS];
        for (copy, word) in words.iter_mut().zip(&self.0) {
            *copy = word.load(Ordering::Relaxed);
        }
        words[NUMBER] = 0;
        let kind = u32::from_le(words[KIND]);
        let carried = (kind & CARRIES != 0).then(|| {
            let own = (kind & 0xFFFF).wrapping_mul(slot_blocks);
            let request = (kind >> 16) as u8 & 0x7F == Kind::Request as u8;
            let known = [0, own, if request { own } else { 0 }, 0];
            words[KIND] = (kind & !CARRIES).to_le();
            let mut carried = CarriedWords::default();
            for (at, (word, known)) in CARRIED.into_iter().zip(carried.iter_mut().zip(known)) {
                *word = std::mem::replace(&mut words[at], known.to_le());
            }
            carried
        });
        let mut header = [0; HEADER_LEN];
        let (parts, _) = header.as_chunks_mut::<4>();
        for (part, word) in parts.iter_mut().zip(words) {
            *part = word.to_ne_bytes();
        }
        Snapshot { header, carried }
    }

    /// Stores a header, or one that [`may_carry`] with its payload, and then its number.
    #[inline]
    pub(crate) fn publish(
        &self,
        sequence: u32,
        header: &[u8; HEADER_LEN],
        carried: Option<CarriedWords>,
    ) {
        let (parts, _) = header.as_chunks::<4>();
        let mut words = [0; WORDS];
        for (word, part) in words.iter_mut().zip(parts) {
            *word = u32::from_ne_bytes(*part);
        }
        if let Some(carried) = carried {
            words[KIND] |= CARRIES.to_le();
            for (at, word) in CARRIED.into_iter().zip(carried) {
                words[at] = word;
            }
        }
        for (at, (word, place)) in words.into_iter().zip(&self.0).enumerate() {
            if at != NUMBER {
                place.store(word, Ordering::Relaxed);
            }
        }
        self.0[NUMBER].store(sequence.to_le(), Ordering::Release);
    }
}

/// Whether a line can carry this message's payload: it is small, and the words that it takes the place of say what its slot says.
#[inline]
pub(crate) fn may_carry(header: &Header, slot_blocks: u32) -> bool {
    let own = u32::from(header.slot) * slot_blocks;
    let reply_block = if header.kind == Kind::Request { own } else { 0 };
    header.payload_len as usize <= CARRIED_MAX
        && header.code == 0
        && header.block == own
        && header.reply_block == reply_block
}

/// The payload as words. Each is read by loads no wider than the stores that wrote it, as far as can be known.
#[inline]
pub(crate) fn carried_words(payload: &[u8]) -> CarriedWords {
    let mut words = CarriedWords::default();
    let (whole, rest) = payload.as_chunks::<4>();
    for (word, part) in words.iter_mut().zip(whole) {
        *word = u32::from_ne_bytes(*part);
    }
    if let Some(word) = words.get_mut(whole.len()) {
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        *word = u32::from_ne_bytes(last);
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
        let header = header(Kind::Request).encode();
        line.publish(u32::MAX, &header, None);
        assert!(line.holds(u32::MAX) && !line.holds(0));
        assert!(!line.holds(u32::MAX - 16), "the ring's last round");
        assert_eq!(line.block(), Some(3 * SLOT_BLOCKS));
        assert_eq!(line.snapshot(SLOT_BLOCKS), Snapshot { header, carried: None });
    }

    #[test]
    fn a_carried_payload_comes_back_beside_the_whole_header() {
        for kind in [Kind::Request, Kind::Response] {
            let (line, header) = (Line(Default::default()), header(kind));
            assert!(may_carry(&header, SLOT_BLOCKS));
            let words = carried_words(b"hello");
            line.publish(1, &header.encode(), Some(words));
            assert_eq!(line.block(), None);
            let seen = line.snapshot(SLOT_BLOCKS);
            assert_eq!(seen, Snapshot { header: header.encode(), carried: Some(words) });
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
            let bytes = carried_words(&payload).map(u32::to_ne_bytes).concat();
            assert!(bytes[..len] == payload && bytes[len..].iter().all(|&byte| byte == 0));
        }
    }
}
