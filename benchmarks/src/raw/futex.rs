//! Sleeping on a flag in shared memory.
// UNSAFETY: futex has no safe wrapper.
#![allow(unsafe_code)]

use std::{ptr, sync::atomic::AtomicU32};

use super::shm::Wait;

/// Sleeps in the kernel until it is woken.
pub(super) struct Sleep;

impl Wait for Sleep {
    fn wait(flag: &AtomicU32, old: u32) {
        let no_end = ptr::null::<libc::timespec>();
        // SAFETY: the flag outlives the call; a wrong or early return is noticed by the caller, who looks again.
        unsafe { libc::syscall(libc::SYS_futex, flag.as_ptr(), libc::FUTEX_WAIT, old, no_end) };
    }

    fn wake(flag: &AtomicU32) {
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_futex, flag.as_ptr(), libc::FUTEX_WAKE, 1) };
    }
}
