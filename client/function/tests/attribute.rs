//! The attribute's descriptors, called as a worker calls them.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)] // helpers of tests are tests

use std::{
    ffi::{CStr, c_void},
    sync::atomic::{AtomicU32, Ordering},
};

use gleaner_function::{
    Context, Error, Output,
    abi::{self, RawContext, RawFunction},
    function,
};

unsafe extern "C" {
    #[link_name = "gleaner_fn_double"]
    static DOUBLE: RawFunction;
    #[link_name = "gleaner_fn_count"]
    static COUNT: RawFunction;
    #[link_name = "gleaner_fn_marker"]
    static MARKER: RawFunction;
    #[link_name = "gleaner_fn_fails"]
    static FAILS: RawFunction;
}

#[function]
fn double(input: &[u8], output: &mut Output) -> Result<(), Error> {
    input.iter().try_for_each(|byte| output.write(&[byte * 2]))
}

struct Counter(u8);

static DROPPED: AtomicU32 = AtomicU32::new(0);

impl Drop for Counter {
    fn drop(&mut self) {
        DROPPED.fetch_add(1, Ordering::SeqCst);
    }
}

fn start() -> Result<Counter, Error> {
    Ok(Counter(10))
}

#[function(init = start)]
fn count(
    counter: &mut Counter,
    _: &[u8],
    output: &mut Output,
    context: &Context,
) -> Result<(), Error> {
    counter.0 += 1;
    assert_eq!((context.lane(), context.lanes(), context.invocation()), (1, 2, 3));
    assert_eq!(context.remaining_ns(), None);
    assert!(context.cancelled());
    output.write(&[counter.0])
}

/// A state of no size but a large alignment.
#[repr(align(64))]
struct Marker;

fn mark() -> Result<Marker, Error> {
    Ok(Marker)
}

#[function(init = mark)]
fn marker(marker: &mut Marker, _: &[u8], output: &mut Output) -> Result<(), Error> {
    assert_eq!(std::ptr::from_mut(marker).addr() % 64, 0);
    output.write(b"m")
}

#[function]
fn fails(input: &[u8], _: &mut Output) -> Result<(), Error> {
    let text = std::str::from_utf8(input)?;
    match text {
        "panic" => panic!("on purpose"),
        other => Err(Error::new(0, other)),
    }
}

unsafe extern "C" fn no_bound(_: *const RawContext) -> u64 {
    u64::MAX
}

unsafe extern "C" fn yes(_: *const RawContext) -> i32 {
    1
}

/// Calls it with so much room; returns its code, its length, the output and its message.
fn call(
    function: &RawFunction,
    state: *mut c_void,
    input: &[u8],
    capacity: usize,
) -> (i32, usize, Vec<u8>, String) {
    let (mut message, mut output, mut len) = ([0u8; 16], vec![0; capacity], 0);
    let mut context = context(state, &mut message);
    // SAFETY: what a worker passes.
    let code = unsafe {
        let invoke = function.invoke.unwrap();
        let output = output.as_mut_ptr().cast();
        invoke(&mut context, input.as_ptr().cast(), input.len(), output, capacity, &mut len)
    };
    let message = CStr::from_bytes_until_nul(&message).unwrap().to_str().unwrap().to_owned();
    (code, len, output, message)
}

fn context(state: *mut c_void, message: &mut [u8]) -> RawContext {
    RawContext {
        abi_version: abi::VERSION,
        lane: 1,
        lanes: 2,
        reserved: 0,
        invocation: 3,
        state,
        error: message.as_mut_ptr().cast(),
        error_capacity: message.len(),
        remaining_ns: no_bound,
        cancelled: yes,
    }
}

fn make(function: &RawFunction) -> *mut c_void {
    let (mut state, mut message) = (std::ptr::null_mut(), [0; 16]);
    // SAFETY: what a worker passes.
    let code = unsafe { function.init.unwrap()(&mut context(state, &mut message), &mut state) };
    assert_eq!(code, 0);
    state
}

#[test]
fn a_function_without_state() {
    // SAFETY: statics that the attribute made.
    let double = unsafe { &DOUBLE };
    assert!(double.init.is_none() && double.fini.is_none());
    let none = std::ptr::null_mut();
    assert_eq!(call(double, none, &[1, 2, 3], 8).1, 3);
    assert_eq!(call(double, none, &[1, 2, 3], 3).2, [2, 4, 6]);
    let (code, len, ..) = call(double, none, &[1, 2, 3], 2);
    assert_eq!((code, len), (0, 3), "too large is said by the length");
    assert_eq!(call(double, none, &[], 0).0, 0);
}

#[test]
fn state_is_made_kept_and_ended() {
    // SAFETY: as above.
    let (count, marker) = unsafe { (&COUNT, &MARKER) };
    let state = make(count);
    assert_eq!(call(count, state, &[], 1).2, [11]);
    assert_eq!(call(count, state, &[], 1).2, [12]);
    // SAFETY: the state is not used again.
    unsafe { count.fini.unwrap()(state) };
    assert_eq!(DROPPED.load(Ordering::SeqCst), 1);
    let state = make(marker);
    assert_eq!(call(marker, state, &[], 1).2, b"m");
}

#[test]
fn errors_and_panics_become_codes_and_messages() {
    // SAFETY: as above.
    let fails = unsafe { &FAILS };
    let none = std::ptr::null_mut();
    let said = |input: &[u8]| {
        let (code, _, _, message) = call(fails, none, input, 0);
        (code, message)
    };
    assert_eq!(said(b"no"), (1, "no".into()), "an error is never code 0");
    assert_eq!(said(b"\xFF").0, 1, "other errors convert");
    assert_eq!(said("ääääääääääää".as_bytes()), (1, "äääääää".into()), "cut between letters");
    assert_eq!(said(b"panic").0, abi::CODE_PANIC);
}
