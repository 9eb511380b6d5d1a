//! The client's own bookkeeping of an arena: which bytes are taken by calls that do not fit their slot.
//!
//! The client keeps one for each region of each link. First fit, bounded by the window, nothing allocated after it is made.
#![forbid(unsafe_code)]

use gleaner_proto::header::{BLOCK_ALIGN, GUARD_LEN, HEADER_LEN};

use crate::link::{Block, Geometry};

/// The free bytes of one region's arena.
#[derive(Debug)]
pub struct Arena {
    /// Free extents, by offset, never adjacent; room for all that a window of blocks can leave.
    free: Vec<Extent>,
    taken: u16,
    window: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    offset: u64,
    bytes: u64,
}

impl Arena {
    /// An arena with nothing taken.
    pub fn new(geometry: Geometry) -> Self {
        let mut free = Vec::with_capacity(usize::from(geometry.window) + 2);
        if geometry.arena_bytes > 0 {
            free.push(Extent { offset: geometry.arena_offset(), bytes: geometry.arena_bytes });
        }
        Self { free, taken: 0, window: geometry.window }
    }

    /// Takes a block for a payload of up to `capacity` bytes. `None` while there is no room, or a window of blocks is taken.
    pub fn take(&mut self, capacity: u32) -> Option<Block> {
        if self.taken == self.window {
            return None;
        }
        let bytes = block_bytes(capacity);
        let at = self.free.iter().position(|extent| extent.bytes >= bytes)?;
        let extent = &mut self.free[at];
        let block = Block { offset: extent.offset, capacity };
        extent.offset += bytes;
        extent.bytes -= bytes;
        if extent.bytes == 0 {
            self.free.remove(at);
        }
        self.taken += 1;
        Some(block)
    }

    /// Gives a block back that `take` returned, unchanged.
    pub fn give_back(&mut self, block: Block) {
        let Extent { offset, bytes } =
            Extent { offset: block.offset, bytes: block_bytes(block.capacity) };
        let at = self.free.partition_point(|extent| extent.offset < offset);
        debug_assert!(self.free.get(at).is_none_or(|next| offset + bytes <= next.offset));
        debug_assert!(self.taken > 0, "a block was given back that was not taken");
        self.taken = self.taken.saturating_sub(1);
        self.free.insert(at, Extent { offset, bytes });
        self.join(at);
        if at > 0 {
            self.join(at - 1);
        }
    }

    /// The largest payload that would find room now.
    pub fn largest(&self) -> u32 {
        let overhead = (HEADER_LEN + GUARD_LEN) as u64;
        let largest = self.free.iter().map(|extent| extent.bytes).max().unwrap_or(0);
        largest.saturating_sub(overhead).min(u64::from(u32::MAX)) as u32
    }

    /// Joins the extent at `at` with the next one, if they touch.
    fn join(&mut self, at: usize) {
        let Some(next) = self.free.get(at + 1).copied() else {
            return;
        };
        if self.free[at].offset + self.free[at].bytes == next.offset {
            self.free[at].bytes += next.bytes;
            self.free.remove(at + 1);
        }
    }
}

/// Bytes of a block for such a payload: header, payload, guard, rounded up.
fn block_bytes(capacity: u32) -> u64 {
    (u64::from(capacity) + (HEADER_LEN + GUARD_LEN) as u64).next_multiple_of(BLOCK_ALIGN as u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GEOMETRY: Geometry = Geometry { window: 8, slot_bytes: 256, arena_bytes: 64 << 10 };

    #[test]
    fn the_whole_arena_is_one_block_or_many() {
        let mut arena = Arena::new(GEOMETRY);
        let all = arena.take(arena.largest()).unwrap();
        assert_eq!(arena.take(0), None);
        arena.give_back(all);
        let blocks: Vec<Block> = (0..8).map(|_| arena.take(1000).unwrap()).collect();
        assert_eq!(arena.take(0), None, "a window of blocks is the bound");
        for block in blocks {
            arena.give_back(block);
        }
        assert_eq!(arena.largest(), (64 << 10) - 128);
    }

    #[test]
    fn no_arena_has_no_room() {
        let mut arena = Arena::new(Geometry { arena_bytes: 0, ..GEOMETRY });
        assert_eq!(arena.take(0), None);
        assert_eq!(arena.largest(), 0);
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_room_comes_back(
            steps in prop::collection::vec((any::<bool>(), 0u32..20_000, any::<prop::sample::Index>()), 0..200),
        ) {
            let mut arena = Arena::new(GEOMETRY);
            let room = arena.free.capacity();
            let mut taken: Vec<Block> = Vec::new();
            for (take, capacity, which) in steps {
                if take {
                    if let Some(block) = arena.take(capacity) {
                        let end = |block: Block| block.offset + block_bytes(block.capacity);
                        prop_assert!(GEOMETRY.block(block.index(), capacity) == Some(block));
                        for other in &taken {
                            prop_assert!(end(block) <= other.offset || end(*other) <= block.offset);
                        }
                        taken.push(block);
                    }
                } else if !taken.is_empty() {
                    let block = taken.swap_remove(which.index(taken.len()));
                    arena.give_back(block);
                }
                prop_assert_eq!(arena.free.capacity(), room, "nothing is allocated after it is made");
            }
            for block in taken {
                arena.give_back(block);
            }
            prop_assert_eq!(arena.free, vec![Extent { offset: GEOMETRY.arena_offset(), bytes: GEOMETRY.arena_bytes }]);
        }
    }
}
