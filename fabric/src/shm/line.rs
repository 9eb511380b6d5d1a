//! One line of a ring: a header that another process writes while we look. Only atomics, so that each look is one value.
//!
//! The header's reserved bytes hold the message's number in its direction, 32 bits from 1 on, which wrap; it is stored last,
//! with Release, so that who sees it sees the rest of the line and the payload. A number that was left from the ring's last
//! round is smaller by the ring's length, and therefore no message.
//!
//! Words of 32 bits, as most of the header's fields are: a wider load of two that were just stored apart would wait until
//! both stores have left the store buffer, and those wait for the payload's lines to come from the other core.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use gleaner_proto::header::HEADER_LEN;

const WORDS: usize = HEADER_LEN / 4;
/// The word that is the message's number.
const NUMBER: usize = WORDS - 2;
/// The word that names the block.
const BLOCK: usize = 9;

/// A header's place in a ring.
#[derive(Debug)]
#[repr(transparent)]
pub(crate) struct Line([AtomicU32; WORDS]);

impl Line {
    /// True if message number `sequence` lies here, whole.
    #[inline]
    pub(crate) fn holds(&self, sequence: u32) -> bool {
        u32::from_le(self.0[NUMBER].load(Ordering::Acquire)) == sequence
    }

    /// The block that is named here, of whichever message.
    #[inline]
    pub(crate) fn block(&self) -> u32 {
        u32::from_le(self.0[BLOCK].load(Ordering::Relaxed))
    }

    /// Copies the message that lies here, each byte read once: as it was posted, less its number.
    #[inline]
    pub(crate) fn snapshot(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let (parts, _) = bytes.as_chunks_mut::<4>();
        for (part, word) in parts.iter_mut().zip(&self.0) {
            *part = word.load(Ordering::Relaxed).to_ne_bytes();
        }
        parts[NUMBER].fill(0);
        bytes
    }

    /// Stores a header and then its number.
    #[inline]
    pub(crate) fn publish(&self, sequence: u32, header: &[u8; HEADER_LEN]) {
        let (parts, _) = header.as_chunks::<4>();
        for (at, (part, word)) in parts.iter().zip(&self.0).enumerate() {
            if at != NUMBER {
                word.store(u32::from_ne_bytes(*part), Ordering::Relaxed);
            }
        }
        self.0[NUMBER].store(sequence.to_le(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_back_what_was_published_under_its_number_alone() {
        let line = Line(Default::default());
        assert!(!line.holds(1));
        let mut header: [u8; HEADER_LEN] = std::array::from_fn(|at| at as u8);
        header[56..60].fill(0);
        line.publish(u32::MAX, &header);
        assert!(line.holds(u32::MAX) && !line.holds(0));
        assert!(!line.holds(u32::MAX - 16), "the ring's last round");
        assert_eq!(line.snapshot(), header);
    }
}
