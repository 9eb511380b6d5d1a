//! The control stream's framing: u32 little-endian length, then one protobuf message.
//!
//! A stream of its own and not gRPC, since a client that waits hot looks at it without blocking every millisecond
//! (`docs/src/adr/0003-control-streams.md`).

/// Longest frame either side takes, in bytes. Uploads travel in chunks below it.
pub const CONTROL_FRAME_MAX: usize = 1 << 20;

/// Bytes of a library in one upload chunk.
pub const UPLOAD_CHUNK: usize = 512 << 10;

/// Largest library that is taken, in bytes.
pub const LIBRARY_MAX: u64 = 256 << 20;

/// Bytes of every nonce.
pub const NONCE_LEN: usize = 32;

/// What the executor signs: that it holds the key which the client pins, for this connection alone.
pub fn challenge_digest(client_nonce: &[u8], executor_nonce: &[u8]) -> [u8; 32] {
    digest(b"gleaner challenge 1", &[client_nonce, executor_nonce])
}

/// What the client signs to attach with a token: that it holds the key which the token is bound to.
pub fn attach_digest(client_nonce: &[u8], executor_nonce: &[u8], token: &[u8]) -> [u8; 32] {
    digest(b"gleaner attach 1", &[client_nonce, executor_nonce, token])
}

/// What the client signs to add a data connection to its session, with its RDMA endpoint or nothing.
pub fn lane_digest(
    client_nonce: &[u8],
    executor_nonce: &[u8],
    session: u64,
    lane: u32,
    endpoint: &[u8],
) -> [u8; 32] {
    let (session, lane) = (session.to_le_bytes(), lane.to_le_bytes());
    digest(b"gleaner lane 1", &[client_nonce, executor_nonce, &session, &lane, endpoint])
}

/// SHA-256 over a purpose and length-prefixed parts: no two lists of parts give the same bytes.
pub(crate) fn digest(purpose: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for part in std::iter::once(&purpose).chain(parts) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}
