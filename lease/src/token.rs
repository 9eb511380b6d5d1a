//! The token: what a lease is, signed by the harvester, checked by the executor without asking anybody (ADR 1).
//!
//! Signed by `harvester`, verified by the agent, carried by clients. Fixed layout, so that there is no parser to fool.
//! It must not be taken for proof of who shows it: attaching also signs the executor's nonce with [`Claims::client_key`].

use std::fmt;

use ed25519_dalek::{Signature, Signer};
pub use ed25519_dalek::{SigningKey, VerifyingKey};
use gleaner_proto::ids::{Epoch, LeaseId, NodeName, Term, Uid};
use sha2::{Digest, Sha256};

use crate::clock::{BootId, Stamp};

/// Bytes of a token.
pub const TOKEN_LEN: usize = 200;
const SIGNED_LEN: usize = 136;
const MAGIC: [u8; 4] = *b"GLT1";

/// SHA-256 of a node's name, as the token names the node.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NodeDigest(pub [u8; 32]);

impl NodeDigest {
    /// The digest of this node's name.
    pub fn of(node: &NodeName) -> Self {
        Self(Sha256::digest(node.as_str().as_bytes()).into())
    }
}

impl fmt::Debug for NodeDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a token says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claims {
    /// The lease.
    pub lease: LeaseId,
    /// Whom its worker runs as.
    pub uid: Uid,
    /// And in which group.
    pub gid: u32,
    /// The grant that it is a slice of.
    pub epoch: Epoch,
    /// When it ends at the latest unless renewed, on the executor's clock of `boot`.
    pub expires: Stamp,
    /// The boot whose clock `expires` is of.
    pub boot: BootId,
    /// Memory of the slice.
    pub memory_bytes: u64,
    /// Cores of the slice.
    pub cores: u32,
    /// The term of the harvester that issued it.
    pub term: Term,
    /// The client's Ed25519 key: only who can sign with it may attach.
    pub client_key: [u8; 32],
    /// The node.
    pub node: NodeDigest,
}

/// What an executor holds against a token. [`crate::holder::Holder::admit`] holds its own against it.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// This node.
    pub node: NodeDigest,
    /// This boot.
    pub boot: BootId,
    /// The epoch that is being served.
    pub epoch: Epoch,
    /// This machine's clock.
    pub now: Stamp,
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of this version.
    #[error(
        "{len} bytes that are no token: it has {TOKEN_LEN} and starts with \"GLT1\"; acquire a lease and show its token unchanged"
    )]
    Malformed {
        /// How many bytes there were.
        len: usize,
    },
    /// Not signed by this cluster's harvester, or changed since.
    #[error(
        "the token's signature is not this cluster's harvester's: it was forged, changed, or comes from another cluster"
    )]
    Forged,
    /// For another node.
    #[error("lease {lease} is of another node: show the token to the address that its lease names")]
    Node {
        /// The lease it names.
        lease: LeaseId,
    },
    /// From before the node's last boot.
    #[error("lease {lease} is from before this node's last boot: acquire a new one")]
    Boot {
        /// The lease it names.
        lease: LeaseId,
    },
    /// Of a grant that ended, or that this executor has not been told of.
    #[error(
        "lease {lease} is of grant epoch {token}, this node serves {serving}: the node was vacated or restarted meanwhile; acquire a new one"
    )]
    Epoch {
        /// The lease it names.
        lease: LeaseId,
        /// The token's epoch.
        token: Epoch,
        /// The executor's.
        serving: Epoch,
    },
    /// Its time is over.
    #[error("lease {lease} expired {late_ms} ms ago: acquire a new one, and renew it in time")]
    Expired {
        /// The lease it names.
        lease: LeaseId,
        /// For how long.
        late_ms: u64,
    },
}

impl Claims {
    /// The token: these claims and the harvester's signature over them.
    pub fn sign(&self, key: &SigningKey) -> [u8; TOKEN_LEN] {
        let mut token = [0; TOKEN_LEN];
        token[..SIGNED_LEN].copy_from_slice(&self.encode());
        let signature = key.sign(&token[..SIGNED_LEN]);
        token[SIGNED_LEN..].copy_from_slice(&signature.to_bytes());
        token
    }

    /// The part of a token that is signed.
    fn encode(&self) -> [u8; SIGNED_LEN] {
        let mut out = [0; SIGNED_LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..8].copy_from_slice(&self.uid.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.lease.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.expires.0.to_le_bytes());
        out[32..48].copy_from_slice(&self.boot.0);
        out[48..56].copy_from_slice(&self.memory_bytes.to_le_bytes());
        out[56..60].copy_from_slice(&self.cores.to_le_bytes());
        out[60..64].copy_from_slice(&self.gid.to_le_bytes());
        out[64..72].copy_from_slice(&self.term.0.to_le_bytes());
        out[72..104].copy_from_slice(&self.client_key);
        out[104..136].copy_from_slice(&self.node.0);
        out
    }

    fn decode(bytes: &[u8; TOKEN_LEN]) -> Self {
        Self {
            uid: Uid(u32::from_le_bytes(field(bytes, 4))),
            lease: LeaseId(u64::from_le_bytes(field(bytes, 8))),
            epoch: Epoch(u64::from_le_bytes(field(bytes, 16))),
            expires: Stamp(u64::from_le_bytes(field(bytes, 24))),
            boot: BootId(field(bytes, 32)),
            memory_bytes: u64::from_le_bytes(field(bytes, 48)),
            cores: u32::from_le_bytes(field(bytes, 56)),
            gid: u32::from_le_bytes(field(bytes, 60)),
            term: Term(u64::from_le_bytes(field(bytes, 64))),
            client_key: field(bytes, 72),
            node: NodeDigest(field(bytes, 104)),
        }
    }
}

/// Checks a token in the order of ADR 1: length and magic, signature, node, boot, epoch, expiry. Takes any bytes.
pub fn verify(bytes: &[u8], key: &VerifyingKey, expected: &Expected) -> Result<Claims, TokenError> {
    let claims = verify_signature(bytes, key)?;
    claims.check(expected)?;
    Ok(claims)
}

/// The first half of [`verify`]: what the harvester said, whether or not it is for here and now.
pub fn verify_signature(bytes: &[u8], key: &VerifyingKey) -> Result<Claims, TokenError> {
    let malformed = TokenError::Malformed { len: bytes.len() };
    let token: &[u8; TOKEN_LEN] = bytes.try_into().map_err(|_| malformed)?;
    if token[..4] != MAGIC {
        return Err(malformed);
    }
    let signature = Signature::from_bytes(&field(token, SIGNED_LEN));
    key.verify_strict(&token[..SIGNED_LEN], &signature).map_err(|_| TokenError::Forged)?;
    Ok(Claims::decode(token))
}

impl Claims {
    /// The second half of [`verify`]: whether claims that are genuine are for this node, boot, epoch and time.
    pub fn check(&self, expected: &Expected) -> Result<(), TokenError> {
        let lease = self.lease;
        if self.node != expected.node {
            return Err(TokenError::Node { lease });
        }
        if self.boot != expected.boot {
            return Err(TokenError::Boot { lease });
        }
        if self.epoch != expected.epoch || self.epoch == Epoch(0) {
            return Err(TokenError::Epoch { lease, token: self.epoch, serving: expected.epoch });
        }
        if expected.now >= self.expires {
            let late_ms = expected.now.since(self.expires).as_millis() as u64;
            return Err(TokenError::Expired { lease, late_ms });
        }
        Ok(())
    }
}

/// `N` bytes of the token at a fixed offset.
fn field<const N: usize>(bytes: &[u8; TOKEN_LEN], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}
