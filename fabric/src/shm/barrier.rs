//! The full barrier between what a sender publishes and its look at whether the receiver sleeps.
// UNSAFETY: an instruction that only orders memory.
#![allow(unsafe_code)]

/// As `fence(SeqCst)`, by the way that processors of this architecture do fastest: a locked instruction on our own stack, which
/// waits for the stores before it and lets the loads after it be started early; `mfence` holds up those as well.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn full() {
    // SAFETY: it writes back what is there, to the top of our own stack.
    unsafe { core::arch::asm!("lock or dword ptr [rsp], 0", options(nostack)) };
}

/// As `fence(SeqCst)`.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
pub(super) fn full() {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
}
