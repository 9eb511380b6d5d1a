//! Room for blocks that do not fit a slot: a first-fit list over one lane's arena, one direction.
//!
//! Used by [`crate::lane`]; holds at most one block for each slot, so the list is short and never searched on the path
//! of calls that fit their slot.

use gleaner_proto::header::{BLOCK_ALIGN, GUARD_LEN, HEADER_LEN};

/// Which parts of an arena are in use.
#[derive(Debug)]
pub(crate) struct Arena {
    start: u64,
    end: u64,
    /// Used parts, ascending: (offset, length).
    used: Vec<(u64, u64)>,
}

impl Arena {
    /// An empty arena at these offsets of its region. `blocks_max` bounds how many blocks it holds.
    pub(crate) fn new(start: u64, len: u64, blocks_max: usize) -> Self {
        Self { start, end: start + len, used: Vec::with_capacity(blocks_max) }
    }

    /// The largest payload that an empty arena holds.
    pub(crate) fn payload_max(&self) -> u64 {
        (self.end - self.start).saturating_sub((HEADER_LEN + GUARD_LEN) as u64)
    }

    /// Takes room for a block with this much payload; `None` while there is none.
    pub(crate) fn take(&mut self, payload: u32) -> Option<u64> {
        let whole = u64::from(payload) + (HEADER_LEN + GUARD_LEN) as u64;
        let len = whole.next_multiple_of(BLOCK_ALIGN as u64);
        let mut free_from = self.start;
        let mut at = self.used.len();
        for (index, (offset, used)) in self.used.iter().enumerate() {
            if offset - free_from >= len {
                at = index;
                break;
            }
            free_from = offset + used;
        }
        if at == self.used.len() && self.end.saturating_sub(free_from) < len {
            return None;
        }
        self.used.insert(at, (free_from, len));
        Some(free_from)
    }

    /// Gives a block's room back.
    pub(crate) fn give_back(&mut self, offset: u64) {
        if let Ok(index) = self.used.binary_search_by_key(&offset, |(offset, _)| *offset) {
            self.used.remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_room_comes_back(steps in prop::collection::vec((any::<bool>(), 0u32..3000, any::<prop::sample::Index>()), 0..60)) {
            let mut arena = Arena::new(640, 8192, 60);
            let mut held: Vec<(u64, u64)> = Vec::new();
            for (take, payload, which) in steps {
                if take {
                    if let Some(offset) = arena.take(payload) {
                        let end = offset + u64::from(payload) + 128;
                        prop_assert!(offset >= 640 && end <= 640 + 8192 && offset % 64 == 0);
                        prop_assert!(held.iter().all(|(from, to)| end <= *from || *to <= offset));
                        held.push((offset, end));
                    }
                } else if !held.is_empty() {
                    let (offset, _) = held.swap_remove(which.index(held.len()));
                    arena.give_back(offset);
                }
            }
            held.into_iter().for_each(|(offset, _)| arena.give_back(offset));
            prop_assert_eq!(arena.take(arena.payload_max() as u32), Some(640));
        }
    }
}
