//! Payloads that came in their ring's line, until their slots are used again. Memory of this process alone: no peer writes to it.
#![forbid(unsafe_code)]

use gleaner_proto::header::BLOCK_ALIGN;

use super::line::{CARRIED_MAX, CarriedWords};
use crate::link::{Geometry, LinkError, Payload};

/// A place a slot.
#[derive(Debug)]
pub(super) struct Carried(Box<[Place]>);

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    bytes: [u8; CARRIED_MAX],
    /// The slot's last message was carried.
    used: bool,
}

impl Carried {
    pub(super) fn new(geometry: Geometry) -> Self {
        Self(vec![Place::default(); usize::from(geometry.window)].into())
    }

    /// A message has arrived in its slot, which has been checked. Refuses a length that no line carries.
    #[inline]
    pub(super) fn keep(
        &mut self,
        payload: Payload,
        words: Option<CarriedWords>,
    ) -> Result<(), LinkError> {
        let place = &mut self.0[usize::from(payload.slot)];
        place.used = words.is_some();
        let Some(words) = words else { return Ok(()) };
        if payload.len as usize > CARRIED_MAX {
            let block = (payload.offset / BLOCK_ALIGN as u64) as u32;
            return Err(LinkError::Range { slot: payload.slot, block, len: payload.len });
        }
        let (parts, _) = place.bytes.as_chunks_mut::<8>();
        for (part, word) in parts.iter_mut().zip(words) {
            *part = word.to_le_bytes();
        }
        Ok(())
    }

    /// The payload of an arrival, if its line carried it.
    #[inline]
    pub(super) fn get(&self, payload: Payload) -> Option<&[u8]> {
        let place = self.0.get(usize::from(payload.slot)).filter(|place| place.used)?;
        place.bytes.get(..payload.len as usize)
    }

    /// The same, as room to work.
    #[inline]
    pub(super) fn get_mut(&mut self, payload: Payload) -> Option<&mut [u8]> {
        let place = self.0.get_mut(usize::from(payload.slot)).filter(|place| place.used)?;
        place.bytes.get_mut(..payload.len as usize)
    }
}
