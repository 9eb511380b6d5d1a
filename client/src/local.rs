//! Local fallback: the same library, loaded into this process, when no node can be had.
//!
//! Used by [`crate::relocate`]. The caller asked for it, so the function is trusted as far as the caller trusts its own code:
//! a crash here is a crash of the caller. The bytes are loaded from a sealed memfd, as on a node.

// UNSAFETY: loading a library and calling its functions; every pointer handed over lives in the caller's frame.
#![allow(unsafe_code)]

use std::{
    ffi::{CString, c_void},
    fs::File,
    io::Write,
    os::fd::AsRawFd,
};

use gleaner_function::abi::{Fini, Invoke, RawContext, RawFunction, Rfaas, SYMBOL_PREFIX, VERSION};
use gleaner_proto::header::GUARD_LEN;
use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::{error::Failure, library::Library};

/// Longest message of a function's error.
const ERROR_LEN: usize = 256;
/// What the guard behind an output holds before a call.
const GUARD: u8 = 0xa5;

/// A function of a library that was loaded into this process.
pub(crate) struct LocalFunction {
    entry: Entry,
    output: Vec<u8>,
    /// Keeps the function's code where it is: declared last, dropped last.
    _library: Loaded,
}

enum Entry {
    Gleaner { invoke: Invoke, state: *mut c_void, fini: Option<Fini> },
    Rfaas(Rfaas),
}

// SAFETY: a pool is used by one thread at a time, and the ABI lets a state move between calls of one lane.
unsafe impl Send for LocalFunction {}

impl LocalFunction {
    /// Loads the library and finds the function.
    pub(crate) fn open(library: &Library, name: &str) -> Result<Self, String> {
        let library = load(library)?;
        let found = find(&library, name);
        let entry = begin(found.ok_or("the library has no function of that name")?)?;
        Ok(Self { entry, output: Vec::new(), _library: library })
    }

    /// Calls it.
    pub(crate) fn call(&mut self, mut input: Box<[u8]>, capacity: u32) -> Result<Vec<u8>, Failure> {
        let room = capacity as usize;
        self.output.clear();
        self.output.resize(room, 0);
        self.output.resize(room + GUARD_LEN, GUARD);
        let len = match self.entry {
            Entry::Gleaner { invoke, state, .. } => {
                call_gleaner(invoke, state, &input, &mut self.output[..room])?
            }
            Entry::Rfaas(function) => {
                let (bytes, len) = (input.as_mut_ptr(), input.len() as u32);
                // SAFETY: input and output are as long as their lengths say. The ABI has no capacity: a function that
                // writes more than the caller left room for is found by the guard, as far as it is.
                unsafe { function(bytes.cast(), len, self.output.as_mut_ptr().cast()) as usize }
            }
        };
        if self.output[room..].iter().any(|byte| *byte != GUARD) {
            let detail = "the function wrote past its output".into();
            return Err(Failure::WorkerDied { node: "this process".into(), detail });
        }
        match self.output[..room].get(..len) {
            Some(reply) => Ok(reply.to_vec()),
            None => Err(Failure::ReplyTooLarge { capacity }),
        }
    }
}

impl Drop for LocalFunction {
    fn drop(&mut self) {
        if let Entry::Gleaner { state, fini: Some(fini), .. } = self.entry {
            // SAFETY: the state is what this function's own `init` made, and its library is still loaded.
            unsafe { fini(state) };
        }
    }
}

fn load(library: &Library) -> Result<Loaded, String> {
    let explain = |error: std::io::Error| format!("cannot keep the library: {error}");
    let fd = memfd_create(c"gleaner-library", MFdFlags::MFD_CLOEXEC)
        .map_err(|error| explain(error.into()))?;
    let mut file = File::from(fd);
    file.write_all(library.bytes()).map_err(explain)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: the caller asked for this library's code to run here; its constructors are part of it.
    unsafe { Loaded::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| format!("the library cannot be loaded: {error}"))
}

/// Gleaner's descriptor if the library has one, else rFaaS's plain function.
fn find(loaded: &Loaded, name: &str) -> Option<Found> {
    let described = CString::new(format!("{SYMBOL_PREFIX}{name}")).ok()?;
    // SAFETY: a symbol of that name is a descriptor by the ABI.
    let descriptor = unsafe { loaded.get::<*const RawFunction>(described.as_bytes_with_nul()) };
    if let Ok(descriptor) = descriptor {
        // SAFETY: the descriptor is static data of a library that stays loaded.
        return Some(Found::Gleaner(unsafe { **descriptor }));
    }
    let plain = CString::new(name).ok()?;
    // SAFETY: without a descriptor, a symbol of that name is called by rFaaS's ABI: the caller named it.
    let function = unsafe { loaded.get::<Rfaas>(plain.as_bytes_with_nul()) };
    function.ok().map(|function| Found::Rfaas(*function))
}

enum Found {
    Gleaner(RawFunction),
    Rfaas(Rfaas),
}

/// Makes the function's state.
fn begin(found: Found) -> Result<Entry, String> {
    let function = match found {
        Found::Rfaas(function) => return Ok(Entry::Rfaas(function)),
        Found::Gleaner(function) => function,
    };
    if function.abi_version != VERSION {
        return Err(format!("its ABI is version {}, not {VERSION}", function.abi_version));
    }
    let invoke = function.invoke.ok_or("its descriptor has no invoke")?;
    let mut state = std::ptr::null_mut();
    if let Some(init) = function.init {
        let mut message = [0; ERROR_LEN];
        let mut context = context(std::ptr::null_mut(), &mut message);
        // SAFETY: context and state live in this frame, as the ABI asks.
        let code = unsafe { init(&mut context, &mut state) };
        if code != 0 {
            return Err(format!("its init failed with code {code}: {}", text(&message)));
        }
    }
    Ok(Entry::Gleaner { invoke, state, fini: function.fini })
}

fn call_gleaner(
    invoke: Invoke,
    state: *mut c_void,
    input: &[u8],
    output: &mut [u8],
) -> Result<usize, Failure> {
    let mut message = [0; ERROR_LEN];
    let mut context = context(state, &mut message);
    let mut len = 0;
    // SAFETY: every pointer is to memory of this frame or of the caller's slices, as long as its length says.
    let code = unsafe {
        invoke(
            &mut context,
            input.as_ptr().cast(),
            input.len(),
            output.as_mut_ptr().cast(),
            output.len(),
            &mut len,
        )
    };
    // A length beyond the capacity is a reply that is too large, whatever the code says.
    if code != 0 && len <= output.len() {
        return Err(Failure::Function { code: code as u32, message: text(&message) });
    }
    Ok(len)
}

fn context(state: *mut c_void, message: &mut [u8; ERROR_LEN]) -> RawContext {
    RawContext {
        abi_version: VERSION,
        lane: 0,
        lanes: 1,
        reserved: 0,
        invocation: 0,
        state,
        error: message.as_mut_ptr().cast(),
        error_capacity: ERROR_LEN,
        remaining_ns: unbounded,
        cancelled: never,
    }
}

/// Nothing bounds a call in its caller's own process.
unsafe extern "C" fn unbounded(_: *const RawContext) -> u64 {
    u64::MAX
}

unsafe extern "C" fn never(_: *const RawContext) -> i32 {
    0
}

fn text(message: &[u8; ERROR_LEN]) -> String {
    let end = message.iter().position(|byte| *byte == 0).unwrap_or(ERROR_LEN);
    String::from_utf8_lossy(&message[..end]).into_owned()
}
