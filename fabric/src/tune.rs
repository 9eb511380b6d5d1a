//! The constants that an engineer may turn, with what must hold between them. Operators turn nothing here.

use std::time::Duration;

use gleaner_proto::header::HEADER_LEN;

use crate::link::WINDOW_MAX;

/// Bytes that one receive on a socket may bring in at once: several small calls, or the start of a large one.
pub const STAGING_BYTES: usize = 16 << 10;

/// Receives that one poll does at most, before other links get their turn.
pub const RECEIVE_ROUNDS: usize = 16;

/// From this size on, an arena asks for huge pages.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Lines of a shared-memory ring, at least: a sender asks what was taken once a round, which costs it a cache miss.
pub const RING_LINES_MIN: u32 = 16;

/// So many lines before it is written, a ring's line is asked for: the receiver is not yet looking at it.
pub const LINES_AHEAD: u32 = 4;

/// Empty polls of shared memory after which one asks the socket whether the peer lives: some 100 us, so that the system call
/// is less than a hundredth of them.
pub const LIVENESS_POLLS: u32 = 1 << 14;

/// Longest sleep on a futex before the socket is looked at: who is killed wakes nobody.
pub const FUTEX_SLICE: Duration = Duration::from_millis(50);

/// Receives that one look at the socket does at most: a peer may send more bytes than wake-ups.
pub const DRAIN_ROUNDS: usize = 4;

/// Payload that a write is asked to carry in its work request: a small call whole. Devices that carry less say so.
pub const INLINE_WANTED: u32 = 256;

/// Writes that may be under way, at least.
pub const SENDS_MIN: u32 = 64;

/// Of the writes that fill a send queue, so many ask for a completion. Each costs a completion and a look.
pub const SIGNALS_PER_ROUND: u32 = 4;

/// Writes that go out together at most, where several are posted at once: one doorbell for all.
pub const POSTS_BATCH: usize = 16;

/// Receives that are posted at a time: one doorbell for all. Each end has so many more than its window.
pub const RECEIVES_BATCH: u32 = 16;

/// Completions that one poll takes at most.
pub const COMPLETIONS_BATCH: usize = 8;

/// How long a link that is dropped waits for what it posted last.
pub const PARTING: Duration = Duration::from_millis(200);

const _: () =
    assert!(STAGING_BYTES >= 4 * HEADER_LEN, "a header and a small payload arrive in one receive");
const _: () = assert!(RECEIVE_ROUNDS > 0, "a poll must make progress");
const _: () = assert!(HUGE_PAGE_BYTES.is_power_of_two(), "page sizes are");
const _: () = assert!(RING_LINES_MIN.is_power_of_two(), "a line is found by a mask");
const _: () = assert!(RING_LINES_MIN <= WINDOW_MAX as u32, "the least is not the most");
const _: () = assert!(LINES_AHEAD < RING_LINES_MIN, "the line ahead is not the one just written");
const _: () = assert!(SENDS_MIN > SIGNALS_PER_ROUND, "a full queue has a signalled write");
const _: () = assert!(POSTS_BATCH < SENDS_MIN as usize, "what is held fits the queue");
const _: () = assert!(RECEIVES_BATCH > 0 && COMPLETIONS_BATCH > 0, "a message takes both");
const _: () = assert!(LIVENESS_POLLS > 0 && DRAIN_ROUNDS > 0, "the socket must be looked at");

/// How long the clock is compared with the system's before it is trusted.
pub(crate) const CALIBRATE_NS: u64 = 2_000_000;
