//! What a credential covers: one request of one method, or one reply to it. Used on both ends of every call.

use prost::Message;

use crate::control::digest;

/// Metadata key of the caller's protocol version, and the harvester's in the reply.
pub const PROTOCOL_KEY: &str = "gleaner-protocol";
/// Metadata key of the credential.
pub const CREDENTIAL_KEY: &str = "gleaner-credential";

/// The bytes that a caller's credential carries for `request` of `method` (as in `Leases/Acquire`).
pub fn request_digest(method: &str, request: &impl Message) -> [u8; 32] {
    digest(b"gleaner request 1", &[method.as_bytes(), &request.encode_to_vec()])
}

/// The bytes that the harvester's credential carries for its reply to the request with that digest.
pub fn reply_digest(request: &[u8; 32], reply: &impl Message) -> [u8; 32] {
    digest(b"gleaner reply 1", &[request, &reply.encode_to_vec()])
}

/// The bytes that an executor's credential carries in its `Join` call: bound to its `Register`, sent as metadata.
pub fn register_digest(register: &impl Message) -> [u8; 32] {
    digest(b"gleaner register 1", &[&register.encode_to_vec()])
}

/// The bytes that the harvester's credential carries in `Registered`.
pub fn registered_digest(nonce: &[u8], harvester_public_key: &[u8]) -> [u8; 32] {
    digest(b"gleaner registered 1", &[nonce, harvester_public_key])
}
