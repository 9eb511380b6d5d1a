//! Between the C ABI and a Rust function: what the attribute's code calls. Catches panics, since none may cross into the worker.
//!
//! Not for people: the attribute `function` names what is here.
// UNSAFETY: the worker's pointers become slices and boxes, as `include/gleaner_function.h` promises them.
#![allow(unsafe_code)]

use std::{
    any::Any,
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
    ptr::NonNull,
    slice,
};

use crate::{
    Context, Error, Output,
    abi::{CODE_PANIC, RawContext},
};

impl Context<'_> {
    /// Nanoseconds that the caller still leaves; `None` without a bound.
    pub fn remaining_ns(&self) -> Option<u64> {
        // SAFETY: the worker's own function, given the context it belongs to.
        let left = unsafe { (self.raw.remaining_ns)(self.raw) };
        (left != u64::MAX).then_some(left)
    }

    /// True once the caller has given up on this call: nobody waits for its result.
    pub fn cancelled(&self) -> bool {
        // SAFETY: as above.
        unsafe { (self.raw.cancelled)(self.raw) != 0 }
    }
}

/// One call. `S` is the state's type.
///
/// # Safety
/// The arguments are those that the worker gave to `gleaner_function.invoke`; `context.state` came from [`init`] of the same `S`.
#[allow(clippy::too_many_arguments)]
#[inline(always)]
pub unsafe fn invoke<S>(
    context: *mut RawContext,
    input: *const c_void,
    input_len: usize,
    output: *mut c_void,
    output_capacity: usize,
    output_len: *mut usize,
    function: impl FnOnce(&mut S, &[u8], &mut Output<'_>, &Context<'_>) -> Result<(), Error>,
) -> i32 {
    // SAFETY: the worker's pointers are valid for their lengths during the call, and the state is this thread's alone.
    let (raw, input, bytes, state) = unsafe {
        let output = slice::from_raw_parts_mut(output.cast::<u8>(), output_capacity);
        let input = slice::from_raw_parts(input.cast::<u8>(), input_len);
        (&*context, input, output, (*context).state.cast::<S>())
    };
    // A state of no size, as a function without `init` has it, needs no memory: a dangling pointer is one.
    let state = if size_of::<S>() == 0 { NonNull::<S>::dangling().as_ptr() } else { state };
    // SAFETY: dangling and of no size, or made by `init` and not yet given to `fini`.
    let state = unsafe { &mut *state };
    let mut output = Output { bytes, len: 0 };
    let call = || function(state, input, &mut output, &Context { raw });
    let ended = catch_unwind(AssertUnwindSafe(call));
    // SAFETY: the worker's own word.
    unsafe { *output_len = output.len };
    match ended {
        Ok(Ok(())) => 0,
        // Too large is no error of the function's: the length alone says it.
        _ if output.len > output_capacity => 0,
        failed => report_failed(raw, failed),
    }
}

#[cold]
#[inline(never)]
fn report_failed(raw: &RawContext, ended: std::thread::Result<Result<(), Error>>) -> i32 {
    match ended {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => report(raw, &error),
        Err(panic) => report(raw, &panic_error(&*panic)),
    }
}

/// Makes a thread's state.
///
/// # Safety
/// The arguments are those that the worker gave to `gleaner_function.init`.
pub unsafe fn init<S>(
    context: *mut RawContext,
    state: *mut *mut c_void,
    make: impl FnOnce() -> Result<S, Error>,
) -> i32 {
    // SAFETY: the worker's context is valid during the call.
    let raw = unsafe { &*context };
    match catch_unwind(AssertUnwindSafe(make)) {
        Ok(Ok(made)) => {
            // SAFETY: the worker's own word.
            unsafe { *state = Box::into_raw(Box::new(made)).cast() };
            0
        }
        Ok(Err(error)) => report(raw, &error),
        Err(panic) => report(raw, &panic_error(&*panic)),
    }
}

/// Ends a thread's state.
///
/// # Safety
/// `state` came from [`init`] of the same `S`, and is not used again.
pub unsafe extern "C" fn fini<S>(state: *mut c_void) {
    // A panic has been printed by then, and the lease is over: nobody is left to tell.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(state.cast::<S>()) });
    }));
}

/// Writes the message where the worker reads it, ended by 0, and gives the code; 0 is no error's code.
fn report(raw: &RawContext, error: &Error) -> i32 {
    if let Some(most) = raw.error_capacity.checked_sub(1) {
        let message = &error.message[..error.message.floor_char_boundary(most)];
        // SAFETY: the worker gives `error_capacity` bytes there, and the message is shorter.
        unsafe {
            std::ptr::copy_nonoverlapping(message.as_ptr(), raw.error.cast(), message.len());
            *raw.error.add(message.len()) = 0;
        }
    }
    if error.code == 0 { 1 } else { error.code }
}

fn panic_error(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Error::new(CODE_PANIC, format!("the function panicked: {}", text.unwrap_or("no message")))
}
