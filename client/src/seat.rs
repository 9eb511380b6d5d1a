//! A lease's place in its pool, through evictions: what all pools that share the place ask for in its stead.
//!
//! Pure. [`crate::relocate`] asks.

use ed25519_dalek::VerifyingKey;
use sha2::{Digest, Sha256};

/// The place of a lease and of those that succeed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    /// The first lease that was in it.
    pub(crate) first_lease: u64,
    /// How often it has changed its lease.
    pub(crate) successions: u32,
}

impl Seat {
    /// The place of a pool's own lease.
    pub(crate) fn of(lease: u64) -> Self {
        Self { first_lease: lease, successions: 0 }
    }

    /// The same place, for the next lease.
    pub(crate) fn next(self) -> Self {
        Self { successions: self.successions.wrapping_add(1), ..self }
    }

    /// The id of the request for the lease of this place. All who share the place come to the same one without a word between
    /// them, so that the harvester leases once for all of them, and tells each.
    pub(crate) fn request_id(self, key: &VerifyingKey) -> Vec<u8> {
        let mut hash = Sha256::new_with_prefix(b"gleaner seat");
        hash.update(key.as_bytes());
        hash.update(self.first_lease.to_le_bytes());
        hash.update(self.successions.to_le_bytes());
        hash.finalize()[..16].to_vec()
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;

    #[test]
    fn a_request_s_id_is_that_of_one_place_one_succession_and_one_key() {
        let id = |seat: Seat, key: u8| {
            seat.request_id(&SigningKey::from_bytes(&[key; 32]).verifying_key())
        };
        let seat = Seat::of(7);
        assert_eq!(id(seat, 1), id(Seat::of(7), 1));
        let others = [id(seat.next(), 1), id(Seat::of(8), 1), id(seat, 2)];
        assert!(others.iter().all(|other| *other != id(seat, 1)));
        assert_eq!(id(seat, 1).len(), 16);
    }
}
