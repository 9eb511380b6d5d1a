//! Functions that behave, for the tests and the demo, in both ABIs; those that misbehave are in [`misbehaving`].
//!
//! Built as a shared library and uploaded. A test that has this crate as a dependency finds the library at [`library_path`].
// UNSAFETY: rFaaS's ABI is raw pointers.
#![allow(unsafe_code)]

pub mod misbehaving;

use std::{
    mem::MaybeUninit,
    path::PathBuf,
    time::{Duration, Instant},
};

use gleaner_function::{Context, Error, Output, function};

/// Where cargo has put the shared library, for a program that it built in the same go. `None` for any other program.
pub fn library_path() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let name = "libgleaner_test_functions.so";
    let beside = program.parent()?;
    [beside.join("deps").join(name), beside.join(name)].into_iter().find(|path| path.is_file())
}

/// The sources of the C libraries, which tests compile with the system's `cc`.
pub const RFAAS_C: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/rfaas.c");
/// Needs `gleaner_function.h`, which lies in [`NATIVE_INCLUDE`].
pub const NATIVE_C: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/native.c");
/// The directory of the C ABI's header.
pub const NATIVE_INCLUDE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../client/function/include");

/// The input, as it came.
#[function]
fn echo(input: &[u8], output: &mut Output) -> Result<(), Error> {
    output.write(input)
}

/// The wrapping sum of the input's little-endian u64s, as one.
#[function]
fn sum(input: &[u8], output: &mut Output) -> Result<(), Error> {
    let (numbers, rest) = input.as_chunks::<8>();
    if !rest.is_empty() {
        return Err(Error::new(22, format!("{} bytes are no whole u64s", input.len())));
    }
    let sum = numbers.iter().fold(0u64, |sum, n| sum.wrapping_add(u64::from_le_bytes(*n)));
    output.write(&sum.to_le_bytes())
}

/// FNV-1a over the input, as a u64.
#[function]
fn checksum(input: &[u8], output: &mut Output) -> Result<(), Error> {
    output.write(&fnv(input).to_le_bytes())
}

/// Computes for as many nanoseconds as the input says, a u64, or until the caller gives up.
#[function]
fn spin(input: &[u8], output: &mut Output, context: &Context) -> Result<(), Error> {
    let bound = Duration::from_nanos(number(input)?);
    let start = Instant::now();
    while start.elapsed() < bound {
        if context.cancelled() {
            return Err(Error::new(125, "cancelled while it ran"));
        }
        std::hint::spin_loop();
    }
    output.write(&(start.elapsed().as_nanos() as u64).to_le_bytes())
}

/// Holds as many bytes as the input says, a u64, in huge pages where the system gives them, and spins: never returns.
#[function]
fn hold_and_spin(input: &[u8], _: &mut Output) -> Result<(), Error> {
    let len = number(input)? as usize;
    let mut held = Vec::<u8>::new();
    held.try_reserve_exact(len + HUGE_PAGE_BYTES)
        .map_err(|error| Error::new(12, error.to_string()))?;
    let before = held.as_ptr().align_offset(HUGE_PAGE_BYTES);
    let held = &mut held.spare_capacity_mut()[before..before + len];
    // SAFETY: the range is the vector's own, and the advice changes no byte of it.
    unsafe { libc::madvise(held.as_mut_ptr().cast(), len, libc::MADV_HUGEPAGE) };
    held.fill(MaybeUninit::new(1));
    std::hint::black_box(&held);
    loop {
        std::hint::spin_loop();
    }
}

/// How many primes lie in `first..end`, two u64s; as a u64. Up to 10^6 there are 78,498.
#[function]
fn count_primes(input: &[u8], output: &mut Output) -> Result<(), Error> {
    let [first, end] = input.as_chunks::<8>().0 else {
        return Err(Error::new(22, "the input is two u64s: first and end"));
    };
    let range = u64::from_le_bytes(*first)..u64::from_le_bytes(*end);
    let count = range.filter(|n| is_prime(*n)).count() as u64;
    output.write(&count.to_le_bytes())
}

/// How many calls this thread has had, this one included, as a u64.
#[function(init = no_calls)]
fn counter(calls: &mut Calls, _: &[u8], output: &mut Output) -> Result<(), Error> {
    calls.0 += 1;
    output.write(&calls.0.to_le_bytes())
}

/// The lane, the lanes and the nanoseconds that are left (`u64::MAX` without a bound): two u32s and a u64.
#[function]
fn about(_: &[u8], output: &mut Output, context: &Context) -> Result<(), Error> {
    output.write(&context.lane().to_le_bytes())?;
    output.write(&context.lanes().to_le_bytes())?;
    output.write(&context.remaining_ns().unwrap_or(u64::MAX).to_le_bytes())
}

/// As many bytes as the input says, a u64: each is its place's low byte.
#[function]
fn produce(input: &[u8], output: &mut Output) -> Result<(), Error> {
    let len = number(input)? as usize;
    let most = len.min(output.capacity());
    for (at, byte) in output.buffer()[..most].iter_mut().enumerate() {
        *byte = at as u8;
    }
    output.set_len(len);
    Ok(())
}

/// Fails with the code that the input says, a u32.
#[function]
fn fail(input: &[u8], _: &mut Output) -> Result<(), Error> {
    let code = input.first_chunk().map_or(1, |code| i32::from_le_bytes(*code));
    Err(Error::new(code, format!("failed with code {code}, as asked")))
}

/// rFaaS's echo.
///
/// # Safety
/// The worker's buffers: `size` bytes of input, room for as many in the output.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rfaas_echo(input: *mut u8, size: u32, output: *mut u8) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(input, output, size as usize) };
    size
}

/// What a huge page holds; the advice is for whole ones.
const HUGE_PAGE_BYTES: usize = 2 << 20;

struct Calls(u64);

fn no_calls() -> Result<Calls, Error> {
    Ok(Calls(0))
}

fn number(input: &[u8]) -> Result<u64, Error> {
    match input.try_into() {
        Ok(bytes) => Ok(u64::from_le_bytes(bytes)),
        Err(_) => Err(Error::new(22, "the input is one u64")),
    }
}

fn is_prime(n: u64) -> bool {
    n == 2
        || (n > 2
            && !n.is_multiple_of(2)
            && (3..).step_by(2).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d)))
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}
