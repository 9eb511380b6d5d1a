//! What a function library is written with.
//!
//! A library is a crate of type `cdylib`. Each function that clients may call carries the attribute:
//!
//! ```
//! use gleaner_function::{Context, Error, Output, function};
//!
//! #[function]
//! fn double(input: &[u8], output: &mut Output) -> Result<(), Error> {
//!     for byte in input {
//!         output.write(&[byte.wrapping_mul(2)])?;
//!     }
//!     Ok(())
//! }
//!
//! /// State is made once a worker thread, before its first call, and kept between calls.
//! fn start() -> Result<u64, Error> {
//!     Ok(0)
//! }
//!
//! #[function(init = start)]
//! fn count(calls: &mut u64, _input: &[u8], output: &mut Output, context: &Context) -> Result<(), Error> {
//!     *calls += 1;
//!     if context.cancelled() {
//!         return Err(Error::new(7, "the caller gave up"));
//!     }
//!     output.write(&calls.to_le_bytes())
//! }
//! ```
//!
//! A panic ends its call with an error that carries the panic's message, and nothing else. The same ABI in C is
//! `include/gleaner_function.h`.

pub mod abi;
mod glue;

use std::fmt;

pub use gleaner_function_macros::function;
#[doc(hidden)]
pub use glue::{fini, init, invoke};

/// Where a function writes its reply: the caller's own buffer, or the block that is sent to it.
#[derive(Debug)]
pub struct Output<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

/// Why a call failed, for its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    code: i32,
    message: String,
}

/// What a call may know about itself.
#[derive(Debug)]
pub struct Context<'a> {
    raw: &'a abi::RawContext,
}

impl Output<'_> {
    /// The most bytes that the caller takes.
    pub fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Appends bytes. What exceeds the capacity is counted and not written: the caller then learns the size it needs.
    #[inline]
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let end = self.len.saturating_add(bytes.len());
        let room = self.bytes.get_mut(self.len..end);
        self.len = end;
        match room {
            Some(room) => {
                room.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::too_large()),
        }
    }

    /// The whole buffer, to fill in place; follow it with [`set_len`](Self::set_len).
    pub fn buffer(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// The reply is the buffer's first `len` bytes. A length above the capacity tells the caller what it needs.
    pub fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    /// Bytes of the reply so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True as long as the reply is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Error {
    #[cold]
    fn too_large() -> Self {
        Self::new(0, "the reply exceeds the caller's capacity")
    }

    /// An error with a code of the function's own and a message for people.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The function's own code.
    pub fn code(&self) -> i32 {
        self.code
    }

    /// The message.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

/// Any error becomes one with code 1 and its text, so that `?` works.
impl<E: std::error::Error> From<E> for Error {
    fn from(error: E) -> Self {
        Self::new(1, error.to_string())
    }
}

impl Context<'_> {
    /// This thread's number in the lease.
    pub fn lane(&self) -> u32 {
        self.raw.lane
    }

    /// Threads of the lease: one for each leased core.
    pub fn lanes(&self) -> u32 {
        self.raw.lanes
    }

    /// The caller's number of this call.
    pub fn invocation(&self) -> u64 {
        self.raw.invocation
    }
}
