//! Loads function libraries and calls their functions: the one place where foreign code is entered.
//!
//! The main thread loads, lanes call. Loading runs the library's constructors, so it happens inside the sandbox, and never
//! before: the library's file is sealed and is an ELF library for this machine, or it is refused by name.
// UNSAFETY: dlopen, symbols and calls of foreign code. What the code does with its own process is the sandbox's matter.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, c_void},
    os::fd::{AsRawFd, OwnedFd},
    sync::OnceLock,
};

use gleaner_fabric::clock::{self, Clock};
use gleaner_function::abi::{self, RawContext, RawFunction};
use gleaner_proto::header::GUARD_LEN;
use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};

use super::{
    elf,
    ipc::{Abi, FUNCTIONS_MAX, LIBRARIES_MAX},
};
use crate::board::Slot;

/// Why a function cannot be called. The texts go to the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum FunctionError {
    #[error("library {0} was never sent to this worker")]
    NoLibrary(u32),
    #[error("the library is not usable: {0}")]
    File(#[from] elf::BadLibrary),
    #[error("the library does not load: {0}")]
    Load(#[source] libloading::Error),
    #[error(
        "the library exports neither gleaner_fn_{name} nor {name}; a Rust function needs #[function], \
         a C function external linkage and default visibility"
    )]
    NotThere { name: String },
    #[error("the library exports no {symbol}")]
    NoSymbol { symbol: String },
    #[error("gleaner_fn_{name} is of ABI {version} with flags {flags}; this worker knows ABI {known} without flags",
        known = abi::VERSION)]
    Version { name: String, version: u32, flags: u32 },
    #[error("gleaner_fn_{name} has no invoke")]
    NoInvoke { name: String },
    #[error("function number {0} is open already")]
    Twice(u32),
}

/// The lease's functions by number: written by the main thread, read by the lanes without a lock.
pub(super) struct Table {
    functions: Box<[OnceLock<Function>]>,
}

/// A function that can be called.
#[derive(Debug, Clone, Copy)]
pub(super) enum Function {
    Rfaas(abi::Rfaas),
    Gleaner { invoke: abi::Invoke, init: Option<abi::Init>, fini: Option<abi::Fini> },
}

/// The lease's libraries by number. The main thread's own.
pub(super) struct Libraries {
    libraries: Vec<Option<Library>>,
}

enum Library {
    /// Sent, and no function of it opened yet.
    Sent(OwnedFd),
    Loaded(Loaded),
}

struct Loaded {
    handle: Handle,
    /// The name under which the loader knows it.
    path: String,
    _file: OwnedFd,
}

impl Table {
    pub(super) fn new() -> Self {
        Self { functions: (0..FUNCTIONS_MAX).map(|_| OnceLock::new()).collect() }
    }

    pub(super) fn get(&self, number: u32) -> Option<Function> {
        self.functions.get(number as usize)?.get().copied()
    }

    /// Opens a function under a number; returns how it is called.
    pub(super) fn open(
        &self,
        number: u32,
        libraries: &mut Libraries,
        library: u32,
        name: &str,
        abi: Abi,
    ) -> Result<Abi, FunctionError> {
        let function = libraries.loaded(library)?.find(name, abi)?;
        let place = self.functions.get(number as usize).ok_or(FunctionError::Twice(number))?;
        place.set(function).map_err(|_| FunctionError::Twice(number))?;
        Ok(match function {
            Function::Rfaas(_) => Abi::Rfaas,
            Function::Gleaner { .. } => Abi::Gleaner,
        })
    }
}

impl Libraries {
    pub(super) fn new() -> Self {
        Self { libraries: (0..LIBRARIES_MAX).map(|_| None).collect() }
    }

    /// Keeps a library's file. Sending it again changes nothing.
    pub(super) fn add(&mut self, number: u32, file: OwnedFd) {
        if let Some(place) = self.libraries.get_mut(number as usize) {
            place.get_or_insert(Library::Sent(file));
        }
    }

    /// The library, loaded now if it was not. One that does not load may be tried again.
    fn loaded(&mut self, number: u32) -> Result<&Loaded, FunctionError> {
        let missing = FunctionError::NoLibrary(number);
        let Some(place) = self.libraries.get_mut(number as usize) else { return Err(missing) };
        match place {
            Some(Library::Loaded(_)) => {}
            Some(Library::Sent(file)) => {
                elf::check(file)?;
                let loaded = Loaded::load(file)?;
                *place = Some(Library::Loaded(loaded));
            }
            None => return Err(missing),
        }
        match place {
            Some(Library::Loaded(loaded)) => Ok(loaded),
            _ => Err(missing),
        }
    }
}

impl Loaded {
    fn load(file: &OwnedFd) -> Result<Self, FunctionError> {
        let file = file.try_clone().map_err(elf::BadLibrary::from)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // SAFETY: the library's constructors run here. They are foreign code like its functions, inside the same sandbox.
        let handle = unsafe { Handle::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(FunctionError::Load)?;
        Ok(Self { handle, path, _file: file })
    }

    fn find(&self, name: &str, abi: Abi) -> Result<Function, FunctionError> {
        let descriptor = format!("{}{name}", abi::SYMBOL_PREFIX);
        if abi != Abi::Rfaas {
            match self.symbol(&descriptor) {
                Some(address) => return read_descriptor(name, address),
                None if abi == Abi::Gleaner => {
                    return Err(FunctionError::NoSymbol { symbol: descriptor });
                }
                None => {}
            }
        }
        match self.symbol(name) {
            // SAFETY: the client says that this symbol is such a function; if it is not, its own worker crashes.
            Some(address) => Ok(Function::Rfaas(unsafe {
                std::mem::transmute::<*mut c_void, abi::Rfaas>(address)
            })),
            None if abi == Abi::Rfaas => Err(FunctionError::NoSymbol { symbol: name.into() }),
            None => Err(FunctionError::NotThere { name: name.into() }),
        }
    }

    /// The address of a symbol of this very library: not of one that it needs, where `exit` and `system` are found.
    fn symbol(&self, name: &str) -> Option<*mut c_void> {
        // SAFETY: only the address is taken; nothing is called or read.
        let address = unsafe { self.handle.get::<*mut c_void>(name.as_bytes()) }.ok()?.into_raw();
        // SAFETY: all-zero is a valid Dl_info, and dladdr only writes it.
        let origin = unsafe {
            let mut info: libc::Dl_info = std::mem::zeroed();
            let found = libc::dladdr(address, &mut info) != 0 && !info.dli_fname.is_null();
            found.then(|| CStr::from_ptr(info.dli_fname))
        };
        (origin?.to_bytes() == self.path.as_bytes()).then_some(address)
    }
}

fn read_descriptor(name: &str, address: *mut c_void) -> Result<Function, FunctionError> {
    // SAFETY: the symbol lies in the library's data. A descriptor that is cut short gives nonsense or crashes the worker of
    // the one who sent it.
    let raw = unsafe { address.cast::<RawFunction>().read_unaligned() };
    let name = || name.to_owned();
    if raw.abi_version != abi::VERSION || raw.flags != 0 {
        return Err(FunctionError::Version {
            name: name(),
            version: raw.abi_version,
            flags: raw.flags,
        });
    }
    let invoke = raw.invoke.ok_or_else(|| FunctionError::NoInvoke { name: name() })?;
    Ok(Function::Gleaner { invoke, init: raw.init, fini: raw.fini })
}

/// What the context's two functions look at; begins with what the function sees.
#[repr(C)]
pub(super) struct CallContext<'a> {
    pub(super) raw: RawContext,
    pub(super) clock: Clock,
    /// When the call began, in ticks.
    pub(super) begun: u64,
    /// The time that it is left; 0: no bound.
    pub(super) time_ns: u64,
    /// Its slot; `None` before the first call.
    pub(super) slot: Option<Slot<'a>>,
}

/// A Gleaner function's `remaining_ns`.
pub(super) unsafe extern "C" fn remaining_ns(context: *const RawContext) -> u64 {
    // SAFETY: a function may only pass on the context that it was given, which is the first field of ours.
    let context = unsafe { &*context.cast::<CallContext<'_>>() };
    let ran = context.clock.ns(clock::ticks().saturating_sub(context.begun));
    match context.time_ns {
        0 => u64::MAX,
        time => time.saturating_sub(ran),
    }
}

/// A Gleaner function's `cancelled`.
pub(super) unsafe extern "C" fn cancelled(context: *const RawContext) -> i32 {
    // SAFETY: as above.
    let context = unsafe { &*context.cast::<CallContext<'_>>() };
    i32::from(context.slot.is_some_and(|slot| slot.cancelled(context.raw.invocation)))
}

/// Calls an rFaaS function. Returns the length that it says it wrote.
pub(super) fn call_rfaas(function: abi::Rfaas, input: &mut [u8], output: &mut [u8]) -> usize {
    // SAFETY: the buffers live through the call. That it writes no more than fits is checked after it, by the guard.
    unsafe {
        function(input.as_mut_ptr().cast(), input.len() as u32, output.as_mut_ptr().cast()) as usize
    }
}

/// Calls `invoke` with an output that ends with a guard. Returns its code, and the length it says.
pub(super) fn call_gleaner(
    invoke: abi::Invoke,
    context: &mut CallContext<'_>,
    input: &[u8],
    output: &mut [u8],
) -> (i32, usize) {
    let mut length = 0;
    // SAFETY: as above; the context is valid during the call.
    let code = unsafe {
        invoke(
            std::ptr::from_mut(context).cast(),
            input.as_ptr().cast(),
            input.len(),
            output.as_mut_ptr().cast(),
            output.len().saturating_sub(GUARD_LEN),
            &mut length,
        )
    };
    (code, length)
}

/// A function's state on one lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct State(*mut c_void);

/// Calls `init`. The error is the function's own code.
pub(super) fn call_init(init: abi::Init, context: &mut CallContext<'_>) -> Result<State, i32> {
    let mut state = std::ptr::null_mut();
    // SAFETY: as above.
    match unsafe { init(std::ptr::from_mut(context).cast(), &mut state) } {
        0 => Ok(State(state)),
        code => Err(code),
    }
}

/// Calls `fini`.
pub(super) fn call_fini(fini: abi::Fini, state: State) {
    // SAFETY: the state came from the same function's `init` on this thread, and is not used again.
    unsafe { fini(state.0) };
}

impl State {
    pub(super) fn none() -> Self {
        Self(std::ptr::null_mut())
    }

    pub(super) fn pointer(self) -> *mut c_void {
        self.0
    }
}
