//! Leases that several pools call on: what one pool hands to the others, in this process or as bytes to another one.
//!
//! Made by [`crate::Pool::share`], used by [`crate::Client::join`]. It knows no session: joining is [`crate::relocate`]'s.

use std::{fmt, sync::Arc};

use ed25519_dalek::{SECRET_KEY_LENGTH, SigningKey};
use gleaner_proto::{
    PROTOCOL,
    v1::{self, AcquireRequest},
};
use prost::Message;

use crate::{client::Identity, error::ShareError, request::Request, seat::Seat};

/// Leases of one pool, for other pools to join: one a thread, or one a process of the same user, on whichever node.
///
/// Whoever has it may call on these leases in the user's name, and on those that take their place after an eviction. So its
/// bytes are a secret: pass them on by a pipe, a file of mode 0600 or a broadcast among the ranks of a job, never by a command line.
///
/// ```no_run
/// # fn example(client: &gleaner::Client, pool: &gleaner::Pool, library: &gleaner::Library) -> Result<(), Box<dyn std::error::Error>> {
/// use gleaner::{Request, Share};
///
/// let bytes = pool.share().to_bytes(); // over to another process, which then does this:
/// let mine = client.join(&Share::from_bytes(&bytes)?, Request::new())?;
/// let reply = mine.function(library, "work")?.invoke(b"input")?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Share {
    pub(crate) identity: Arc<Identity>,
    pub(crate) seats: Vec<(Seat, v1::Lease)>,
    asked: AcquireRequest,
}

impl Share {
    pub(crate) fn new(
        identity: Arc<Identity>,
        request: &Request,
        seats: Vec<(Seat, v1::Lease)>,
    ) -> Self {
        Self { identity, seats, asked: request.wanted() }
    }

    /// How many leases.
    pub fn leases(&self) -> usize {
        self.seats.len()
    }

    /// For another process. A secret, as long as the leases live.
    pub fn to_bytes(&self) -> Vec<u8> {
        let seats = self.seats.iter().map(|(seat, lease)| v1::Seat {
            lease: Some(lease.clone()),
            first_lease_id: seat.first_lease,
            successions: seat.successions,
        });
        let share = v1::Share {
            protocol: PROTOCOL,
            client_key: self.identity.key.to_bytes().to_vec().into(),
            asked: Some(self.asked.clone()),
            seats: seats.collect(),
        };
        share.encode_to_vec()
    }

    /// What [`to_bytes`](Self::to_bytes) gave.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ShareError> {
        let v1::Share { protocol, client_key, asked, seats } =
            v1::Share::decode(bytes).map_err(|_| ShareError::Malformed("they are no message"))?;
        if protocol != PROTOCOL {
            return Err(ShareError::Protocol { theirs: protocol, ours: PROTOCOL });
        }
        let key = <[u8; SECRET_KEY_LENGTH]>::try_from(&client_key[..]);
        let key = key.map_err(|_| ShareError::Malformed("they hold no key"))?;
        let seats = seats.into_iter().map(|seat| {
            let v1::Seat { lease, first_lease_id: first_lease, successions } = seat;
            Some((Seat { first_lease, successions }, lease?))
        });
        Ok(Self {
            identity: Arc::new(Identity { key: SigningKey::from_bytes(&key) }),
            seats: seats
                .collect::<Option<_>>()
                .ok_or(ShareError::Malformed("a lease is missing"))?,
            asked: asked.ok_or(ShareError::Malformed("they do not say what the leases are"))?,
        })
    }

    /// What the leases are, by the share; how this pool calls on them, by its own request.
    pub(crate) fn request(&self, own: Request) -> Request {
        own.wanting(&self.asked)
    }
}

/// Without the key.
impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids = self.seats.iter().map(|(_, lease)| lease.lease_id).collect::<Vec<_>>();
        f.debug_struct("Share").field("leases", &ids).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share() -> Share {
        let lease = v1::Lease { lease_id: 7, node: "n1".into(), ..Default::default() };
        let identity = Arc::new(Identity { key: SigningKey::from_bytes(&[3; 32]) });
        let seat = Seat { first_lease: 5, successions: 2 };
        Share::new(identity, &Request::new().cores(3).partition("idle"), vec![(seat, lease)])
    }

    #[test]
    fn it_goes_to_another_process_whole() {
        let share = share();
        let there = Share::from_bytes(&share.to_bytes()).unwrap();
        assert_eq!(there.identity.key, share.identity.key);
        assert_eq!(there.seats, share.seats);
        let wanted = there.request(Request::new().window(2));
        assert_eq!(wanted, Request::new().cores(3).partition("idle").window(2));
    }

    #[test]
    fn other_bytes_are_refused_and_the_key_is_not_shown() {
        let bytes = share().to_bytes();
        for cut in [0, 1, 30, bytes.len() - 1] {
            let refused = Share::from_bytes(&bytes[..cut]).unwrap_err().to_string();
            assert!(refused.contains("to_bytes") || refused.contains("protocol"), "{refused}");
        }
        assert_eq!(format!("{:?}", share()), "Share { leases: [7], .. }");
    }
}
