//! Where everything lies in a segment: arithmetic on a checked geometry, the same at both ends.
//!
//! ```text
//! 0    | sleeping, requests | sleeping, responses | taken, requests | taken, responses |   a word each, 128 bytes apart
//! 64   | whole |   not 0 until the responses are taken back
//! 512  | ring of requests: lines of 64 bytes | ring of responses |
//! page | request region: slots, arena |
//! page | response region: slots, arena |
//! ```
#![forbid(unsafe_code)]

use gleaner_proto::header::HEADER_LEN;

use crate::{
    check::Side,
    link::{BadGeometry, Geometry},
    tune::RING_LINES_MIN,
};

/// Words that different ends write lie this far apart: processors fetch lines in pairs.
const APART: usize = 128;

/// Regions start at multiples of this.
pub(super) const PAGE: usize = 4096;

/// The word that says that the responses are still the link's: beside a word that is seldom written.
pub(super) const WHOLE: usize = 64;

/// Which way messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the worker.
    Requests = 0,
    /// From the worker to the client.
    Responses = 1,
}

/// The offsets of one direction, in bytes from the segment's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Half {
    /// The word that says how the receiver sleeps.
    pub sleeping: usize,
    /// The word in which the receiver says what it has taken.
    pub taken: usize,
    /// The first line of the ring.
    pub ring: usize,
    /// The region.
    pub region: usize,
    /// Picks a line's index out of a message's number.
    mask: u32,
}

/// A segment's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Lines of each ring, a power of two.
    pub lines: u32,
    /// Bytes of each region.
    pub region_bytes: usize,
    /// Bytes of the whole segment.
    pub bytes: usize,
    halves: [Half; 2],
}

impl Direction {
    /// The direction in which this side sends.
    pub fn sent_by(side: Side) -> Self {
        match side {
            Side::Client => Self::Requests,
            Side::Worker => Self::Responses,
        }
    }

    /// The other one.
    pub fn opposite(self) -> Self {
        match self {
            Self::Requests => Self::Responses,
            Self::Responses => Self::Requests,
        }
    }
}

impl Layout {
    /// The layout for a geometry, which is checked first.
    pub fn new(geometry: Geometry) -> Result<Self, BadGeometry> {
        let geometry = geometry.check()?;
        // Twice the window: a sender who keeps the window full asks what was taken once in a window, not at each message.
        let lines = (2 * u32::from(geometry.window)).next_power_of_two().max(RING_LINES_MIN);
        let ring_bytes = lines as usize * HEADER_LEN;
        let region_bytes = geometry.region_bytes() as usize;
        let first_region = (4 * APART + 2 * ring_bytes).next_multiple_of(PAGE);
        let second_region = (first_region + region_bytes).next_multiple_of(PAGE);
        let half = |n: usize, region| Half {
            sleeping: n * APART,
            taken: (2 + n) * APART,
            ring: 4 * APART + n * ring_bytes,
            region,
            mask: lines - 1,
        };
        Ok(Self {
            lines,
            region_bytes,
            bytes: (second_region + region_bytes).next_multiple_of(PAGE),
            halves: [half(0, first_region), half(1, second_region)],
        })
    }

    /// Bytes before the first region.
    pub fn control_bytes(&self) -> usize {
        self.halves[0].region
    }

    /// The offsets of one direction.
    pub fn half(&self, direction: Direction) -> &Half {
        &self.halves[direction as usize]
    }
}

impl Half {
    /// Where the line of the message with this number lies.
    #[inline]
    pub fn line(&self, sequence: u32) -> usize {
        self.ring + (sequence & self.mask) as usize * HEADER_LEN
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nothing_overlaps_and_all_lies_inside(window in 1u16..=256, slot in 3u32..100, arena in 0u64..100_000) {
            let geometry = Geometry { window, slot_bytes: slot * 64, arena_bytes: arena * 64 };
            let layout = Layout::new(geometry).unwrap();
            prop_assert!(layout.lines.is_power_of_two() && layout.lines >= u32::from(window));
            let mut taken = Vec::new();
            for direction in [Direction::Requests, Direction::Responses] {
                let half = layout.half(direction);
                taken.push((half.sleeping, half.sleeping + APART));
                taken.push((half.taken, half.taken + APART));
                taken.push((half.ring, half.line(u32::MAX) + HEADER_LEN));
                taken.push((half.region, half.region + layout.region_bytes));
                prop_assert_eq!(half.region % PAGE, 0);
                prop_assert_eq!(half.ring % APART, 0);
            }
            taken.sort_unstable();
            prop_assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{:?}", taken);
            prop_assert!(taken.last().unwrap().1 <= layout.bytes);
        }
    }
}
