//! Records how a worker dies by itself: a crash, an exit, a write past an output. The record lies on the board, which
//! outlives the process; then the process dies as it would have anyway.
//!
//! Installed once by the worker before foreign code runs. The handlers allocate nothing and take no lock.
// UNSAFETY: signal handlers, an alternate stack and an exit hook are the C library's.
#![allow(unsafe_code)]

use std::{
    cell::Cell,
    ffi::{c_int, c_void},
    io, ptr,
    sync::atomic::{AtomicBool, AtomicPtr, Ordering, compiler_fence},
};

use super::tune::FAULT_STACK_BYTES;
use crate::board::{Board, Fault, FaultCause, Place};

/// Signals that a function may bring on itself.
const SIGNALS: [c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGABRT, libc::SIGSYS];

static BOARD: AtomicPtr<Board> = AtomicPtr::new(ptr::null_mut());
static ORDERLY: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The call that this thread is in, or was in last. Plain data without a destructor: a signal handler may read it.
    static RUNNING: Running = const {
        Running {
            inside: Cell::new(false),
            session: Cell::new(0),
            lane: Cell::new(0),
            slot: Cell::new(0),
            invocation: Cell::new(0),
        }
    };
}

/// Field by field: an `Option` of all of it would be copied by way of the stack, in wider words than it was stored there, and
/// the processor would first wait for every store before, the reply's among them.
struct Running {
    inside: Cell<bool>,
    session: Cell<u16>,
    lane: Cell<u16>,
    slot: Cell<u16>,
    invocation: Cell<u64>,
}

impl Running {
    fn call(&self) -> Option<(Place, u64)> {
        self.inside.get().then(|| self.last())
    }

    fn last(&self) -> (Place, u64) {
        let (session, lane) = (self.session.get(), self.lane.get());
        (Place { session, lane, slot: self.slot.get() }, self.invocation.get())
    }
}

unsafe extern "C" {
    /// glibc's atexit that is told the status.
    fn on_exit(function: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
}

/// From now on, what kills this process by itself is recorded on `board`.
pub(super) fn install(board: &'static Board) -> io::Result<()> {
    BOARD.store(ptr::from_ref(board).cast_mut(), Ordering::Release);
    for signal in SIGNALS {
        // SAFETY: all-zero is a valid sigaction: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as extern "C" fn(c_int) as usize;
        action.sa_flags = libc::SA_ONSTACK;
        // SAFETY: the handler only does what a handler may.
        if unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // SAFETY: the hook takes no argument and may run on any thread.
    match unsafe { on_exit(exiting, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::other("the exit hook was refused")),
    }
}

/// Gives this thread a stack for its handlers, so that a function that has used up its own is recorded too. Kept until the
/// process ends.
pub(super) fn use_own_stack() -> io::Result<()> {
    let bytes = vec![0u8; FAULT_STACK_BYTES].leak();
    let stack =
        libc::stack_t { ss_sp: bytes.as_mut_ptr().cast(), ss_flags: 0, ss_size: bytes.len() };
    // SAFETY: the memory is this thread's alone, for good.
    match unsafe { libc::sigaltstack(&stack, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// This thread, a lane, serves a session from now on.
pub(super) fn serve(session: u16, lane: u16) {
    RUNNING.with(|running| {
        running.session.set(session);
        running.lane.set(lane);
    });
}

/// It is about to run foreign code for the call in this slot.
#[inline(always)]
pub(super) fn enter(slot: u16, invocation: u64) {
    RUNNING.with(|running| {
        running.slot.set(slot);
        running.invocation.set(invocation);
        compiler_fence(Ordering::Release);
        running.inside.set(true);
    });
}

/// It came back.
#[inline(always)]
pub(super) fn leave() {
    RUNNING.with(|running| running.inside.set(false));
}

/// The process is about to end as it should: its exit is no fault.
pub(super) fn orderly() {
    ORDERLY.store(true, Ordering::Release);
}

/// The function that came back last wrote past its output: nothing in this process can be trusted any more.
#[cold]
#[inline(never)]
pub(super) fn overflowed() {
    record(FaultCause::Overflow, Some(RUNNING.with(Running::last)));
}

fn record(cause: FaultCause, call: Option<(Place, u64)>) {
    // SAFETY: null, or the board that `install` was given for good.
    if let Some(board) = unsafe { BOARD.load(Ordering::Acquire).as_ref() } {
        board.record_fault(Fault { cause, call });
    }
}

extern "C" fn handler(signal: c_int) {
    record(FaultCause::Signal(signal), RUNNING.with(Running::call));
    // SAFETY: both may be called from a handler. The signal is blocked here; it strikes when this returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn exiting(status: c_int, _: *mut c_void) {
    if !ORDERLY.load(Ordering::Acquire) {
        record(FaultCause::Exit(status), RUNNING.with(Running::call));
    }
}
