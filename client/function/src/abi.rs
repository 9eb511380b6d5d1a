//! The C ABI between a worker and a function library, as `include/gleaner_function.h` has it. The worker and the attribute use
//! it; people who write functions in Rust do not.
#![allow(missing_docs)] // each field's meaning is in the header, once

use std::ffi::{c_char, c_void};

/// The version of all that is here.
pub const VERSION: u32 = 1;

/// Before a function's name, in its descriptor's.
pub const SYMBOL_PREFIX: &str = "gleaner_fn_";

/// The code of a call that panicked.
pub const CODE_PANIC: i32 = -1;

/// `struct gleaner_context`.
#[repr(C)]
#[derive(Debug)]
pub struct RawContext {
    pub abi_version: u32,
    pub lane: u32,
    pub lanes: u32,
    pub reserved: u32,
    pub invocation: u64,
    pub state: *mut c_void,
    pub error: *mut c_char,
    pub error_capacity: usize,
    pub remaining_ns: unsafe extern "C" fn(*const RawContext) -> u64,
    pub cancelled: unsafe extern "C" fn(*const RawContext) -> i32,
}

/// `gleaner_function.invoke`.
pub type Invoke = unsafe extern "C" fn(
    context: *mut RawContext,
    input: *const c_void,
    input_len: usize,
    output: *mut c_void,
    output_capacity: usize,
    output_len: *mut usize,
) -> i32;

/// `gleaner_function.init`.
pub type Init = unsafe extern "C" fn(context: *mut RawContext, state: *mut *mut c_void) -> i32;

/// `gleaner_function.fini`.
pub type Fini = unsafe extern "C" fn(state: *mut c_void);

/// `struct gleaner_function`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct RawFunction {
    pub abi_version: u32,
    pub flags: u32,
    pub invoke: Option<Invoke>,
    pub init: Option<Init>,
    pub fini: Option<Fini>,
}

/// rFaaS's functions: the return value is the output's length.
pub type Rfaas =
    unsafe extern "C" fn(input: *mut c_void, input_len: u32, output: *mut c_void) -> u32;
