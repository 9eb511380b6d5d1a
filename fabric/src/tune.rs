//! The constants that an engineer may turn, with what must hold between them. Operators turn nothing here.

use gleaner_proto::header::HEADER_LEN;

/// Bytes that one receive on a socket may bring in at once: several small calls, or the start of a large one.
pub const STAGING_BYTES: usize = 16 << 10;

/// Receives that one poll does at most, before other links get their turn.
pub const RECEIVE_ROUNDS: usize = 16;

/// From this size on, an arena asks for huge pages.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

const _: () =
    assert!(STAGING_BYTES >= 4 * HEADER_LEN, "a header and a small payload arrive in one receive");
const _: () = assert!(RECEIVE_ROUNDS > 0, "a poll must make progress");
const _: () = assert!(HUGE_PAGE_BYTES.is_power_of_two(), "page sizes are");
