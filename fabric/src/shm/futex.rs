//! The futex system call, on words that two processes share.
// UNSAFETY: the system call takes an address; a borrow of an atomic is one that stays mapped.
#![allow(unsafe_code)]

use std::{io, ptr, sync::atomic::AtomicU32, time::Duration};

/// Sleeps while `word` holds `expected`, until it is woken or `timeout` is over. May also return for no reason.
pub(super) fn wait(word: &AtomicU32, expected: u32, timeout: Duration) -> io::Result<()> {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: timeout.subsec_nanos().into(),
    };
    // SAFETY: both addresses are of borrowed values that outlive the call; the kernel only reads them.
    let slept = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            expected,
            &raw const timeout,
        )
    };
    match slept {
        -1 => match io::Error::last_os_error() {
            error if woken(&error) => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// The word had changed already, a signal came, or the time is over: the caller looks at all three itself.
fn woken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::ETIMEDOUT))
}

/// Wakes the one who sleeps on `word`, if somebody does.
pub(super) fn wake(word: &AtomicU32) {
    // SAFETY: as above. It can only fail for an address that is none, which a borrow excludes.
    unsafe {
        libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, 1, ptr::null::<u8>());
    }
}
