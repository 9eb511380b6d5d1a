//! The one check of what a peer says: 64 bytes in, a message with its place in our own regions out, or the reason why not.
//!
//! Every backend calls it once for each message, on a snapshot that the peer cannot change any more. Pure, so that it can be
//! fuzzed alone.
#![forbid(unsafe_code)]

use gleaner_proto::header::{HEADER_LEN, Header, Kind};

use crate::link::{Arrival, Block, Geometry, LinkError};

/// Which end of a link this is: it decides which kind of message may arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Sends requests, takes responses.
    Client,
    /// Takes requests, sends responses.
    Worker,
}

impl Side {
    /// The kind that arrives here.
    #[inline]
    pub fn takes(self) -> Kind {
        match self {
            Self::Client => Kind::Response,
            Self::Worker => Kind::Request,
        }
    }
}

/// Reads a header's snapshot and checks it: kind, slot, block, length and, in a request, where the reply shall go.
#[inline]
pub fn arrival(
    geometry: Geometry,
    side: Side,
    snapshot: &[u8; HEADER_LEN],
) -> Result<Arrival, LinkError> {
    checked(geometry, side, Header::decode(snapshot)?)
}

/// The same of a header that was read already.
#[inline(always)]
pub fn checked(geometry: Geometry, side: Side, header: Header) -> Result<Arrival, LinkError> {
    if header.kind != side.takes() {
        return Err(LinkError::Kind(header.kind));
    }
    let block = place(geometry, header.slot, header.block, header.payload_len)?;
    let reply = match header.kind {
        Kind::Request => {
            Some(place(geometry, header.slot, header.reply_block, header.reply_capacity)?)
        }
        Kind::Response => None,
    };
    Ok(Arrival { header, block, reply })
}

/// The block that a message names: its own slot's, or one in the arena.
#[inline(always)]
fn place(geometry: Geometry, slot: u16, block: u32, len: u32) -> Result<Block, LinkError> {
    if slot >= geometry.window {
        return Err(LinkError::Range { slot, block, len });
    }
    // Nearly always its own slot, which takes no division to find.
    let own = geometry.slot(slot);
    if own.index() == block && len <= own.capacity {
        return Ok(Block { capacity: len, ..own });
    }
    match in_arena(geometry, block, len) {
        Some(offset) => Ok(Block { offset, capacity: len }),
        None => Err(LinkError::Range { slot, block, len }),
    }
}

/// Apart, since a division is slow and seldom needed; and an offset alone, which is returned in registers.
#[inline(never)]
fn in_arena(geometry: Geometry, block: u32, len: u32) -> Option<u64> {
    let found = geometry.block(block, len)?;
    (found.offset >= geometry.arena_offset()).then_some(found.offset)
}

#[cfg(test)]
mod tests {
    use gleaner_proto::header::{BLOCK_ALIGN, GUARD_LEN, Status};
    use proptest::prelude::*;

    use super::*;

    const GEOMETRY: Geometry = Geometry { window: 4, slot_bytes: 1024, arena_bytes: 1 << 20 };

    fn request() -> Header {
        Header {
            generation: 1,
            slot: 2,
            kind: Kind::Request,
            status: Status::Ok,
            epoch: 1,
            invocation: 1,
            function: 0,
            code: 0,
            payload_len: 10,
            block: GEOMETRY.slot(2).index(),
            reply_block: GEOMETRY.slot(2).index(),
            reply_capacity: GEOMETRY.slot_capacity(),
            time_ns: 0,
        }
    }

    fn refused(change: impl FnOnce(&mut Header)) -> LinkError {
        let mut header = request();
        change(&mut header);
        arrival(GEOMETRY, Side::Worker, &header.encode()).unwrap_err()
    }

    #[test]
    fn takes_what_lies_in_its_own_slot_or_the_arena() {
        let seen = arrival(GEOMETRY, Side::Worker, &request().encode()).unwrap();
        assert_eq!(seen.reply, Some(GEOMETRY.slot(2)));
        let arena = (GEOMETRY.arena_offset() / BLOCK_ALIGN as u64) as u32;
        let header = Header { block: arena, payload_len: 100_000, ..request() };
        assert!(arrival(GEOMETRY, Side::Worker, &header.encode()).is_ok());
    }

    #[test]
    fn refuses_each_thing_that_lies_elsewhere() {
        assert!(matches!(refused(|h| h.kind = Kind::Response), LinkError::Kind(_)));
        assert!(matches!(refused(|h| h.slot = 4), LinkError::Range { .. }));
        assert!(matches!(refused(|h| h.slot = 3), LinkError::Range { .. }));
        assert!(matches!(refused(|h| h.block += 1), LinkError::Range { .. }));
        assert!(matches!(refused(|h| h.block = u32::MAX), LinkError::Range { .. }));
        assert!(matches!(refused(|h| h.payload_len = 1024), LinkError::Range { .. }));
        assert!(matches!(refused(|h| h.payload_len = u32::MAX), LinkError::Range { .. }));
        assert!(matches!(refused(|h| h.reply_block = 7), LinkError::Range { .. }));
        assert!(matches!(refused(|h| h.reply_capacity = u32::MAX), LinkError::Range { .. }));
        assert!(matches!(refused(|h| h.generation = 0), LinkError::Header(_)));
    }

    proptest! {
        #[test]
        fn what_is_taken_lies_inside_the_region(
            slot in 0u16..8, block in 0u32..20_000, len in prop_oneof![0u32..5000, any::<u32>()],
            reply_block in 0u32..20_000, reply_capacity in prop_oneof![0u32..5000, any::<u32>()],
        ) {
            let header = Header { slot, block, payload_len: len, reply_block, reply_capacity, ..request() };
            if let Ok(seen) = arrival(GEOMETRY, Side::Worker, &header.encode()) {
                for block in [seen.block, seen.reply.unwrap()] {
                    let end = block.payload_offset() + u64::from(block.capacity) + GUARD_LEN as u64;
                    prop_assert!(end <= GEOMETRY.region_bytes());
                }
            }
        }

        #[test]
        fn any_64_bytes_are_taken_or_refused(bytes in prop::collection::vec(any::<u8>(), HEADER_LEN)) {
            let snapshot = bytes.try_into().unwrap();
            let _ = arrival(GEOMETRY, Side::Client, &snapshot);
            let _ = arrival(GEOMETRY, Side::Worker, &snapshot);
        }
    }
}
