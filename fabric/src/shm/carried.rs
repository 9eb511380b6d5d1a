//! Payloads that came in their ring's line, until their slots are used again. Memory of this process alone: no peer writes to it.
#![forbid(unsafe_code)]

use gleaner_proto::header::Header;

use super::line::{CARRIED_MAX, CarriedWords};
use crate::link::{Arrival, Geometry, LinkError};

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
        header: &Header,
        words: Option<CarriedWords>,
    ) -> Result<(), LinkError> {
        let place = &mut self.0[usize::from(header.slot)];
        place.used = words.is_some();
        let Some(words) = words else { return Ok(()) };
        if header.payload_len as usize > CARRIED_MAX {
            let (slot, block, len) = (header.slot, header.block, header.payload_len);
            return Err(LinkError::Range { slot, block, len });
        }
        // Two words at a time, as functions read them: a load that is wider than the stores before it waits.
        let (pairs, _) = words.as_chunks::<2>();
        let (parts, _) = place.bytes.as_chunks_mut::<8>();
        for (part, [low, high]) in parts.iter_mut().zip(pairs) {
            let pair = u64::from(low.to_le()) | u64::from(high.to_le()) << 32;
            *part = pair.to_le_bytes();
        }
        Ok(())
    }

    /// The payload of an arrival, if its line carried it.
    #[inline]
    pub(super) fn get(&self, arrival: &Arrival) -> Option<&[u8]> {
        let place = self.0.get(usize::from(arrival.header.slot)).filter(|place| place.used)?;
        place.bytes.get(..arrival.header.payload_len as usize)
    }

    /// The same, as room to work.
    #[inline]
    pub(super) fn get_mut(&mut self, arrival: &Arrival) -> Option<&mut [u8]> {
        let place = self.0.get_mut(usize::from(arrival.header.slot)).filter(|place| place.used)?;
        place.bytes.get_mut(..arrival.header.payload_len as usize)
    }
}
