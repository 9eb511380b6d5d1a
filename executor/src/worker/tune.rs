//! The worker's constants that an engineer may turn.

use std::time::Duration;

use super::ipc::FUNCTIONS_MAX;
use crate::board::SESSIONS_MAX;

/// Empty looks of a hot lane between two readings of the clock.
pub(super) const LOOKS_PER_CLOCK: u32 = 1024;

/// Looks at once after a call; after those with a pause between, which leaves the core's other thread more room.
pub(super) const EAGER_LOOKS: u32 = 4096;

/// How long a warm lane sleeps by its links' words before it takes their descriptors: a call that comes later is not slowed
/// down by the difference, and a peer that was killed is seen by then.
pub(super) const DOZE: Duration = Duration::from_millis(50);

/// Records that may wait for a lane: each session comes and goes once before the lane looks.
pub(super) const MAIL_MAX: usize = 2 * SESSIONS_MAX as usize + 8;

/// Stack of a lane, bytes: what a program's main thread has, since functions were written for one.
pub(super) const STACK_BYTES: usize = 8 << 20;

/// Stack on which a crash is recorded, bytes.
pub(super) const FAULT_STACK_BYTES: usize = 64 << 10;

/// Bytes of a function's message to its caller, the ending 0 included.
pub(super) const ERROR_BYTES: usize = 1024;

/// What lies after every output, and is no likely output itself.
pub(super) const GUARD_BYTE: u8 = 0xA7;

const _: () = assert!(LOOKS_PER_CLOCK.is_power_of_two(), "the loop masks with it");
const _: () = assert!(ERROR_BYTES > 1 && FUNCTIONS_MAX > 0, "an error has room for its message");
