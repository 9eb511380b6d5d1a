//! libibverbs, loaded when RDMA is first asked for: programs start without it.
//!
//! What runs once a link goes through the functions here; what runs once a call goes through the provider's own, whose
//! addresses lie in the opened context, as in C.
// UNSAFETY: the types of the functions are those of rdma-core's header, whose soname has not changed since 2006.
#![allow(unsafe_code)]

use std::sync::OnceLock;

use libc::{c_char, c_int, c_uint, c_void, ssize_t};
use libloading::Library;

use super::{error::RdmaError, ffi::*};

const LIBRARY: &str = "libibverbs.so.1";

/// Declares the table of functions and how it is filled.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*) $(-> $answer:ty)?;)*) => {
        /// The functions that are called at set-up and tear-down.
        pub(super) struct Verbs {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) $(-> $answer)?,)*
            /// The pointers stay good for as long as it is loaded.
            _library: Library,
        }

        impl Verbs {
            fn load(file: &str) -> Result<Self, libloading::Error> {
                // SAFETY: the library's initialiser has no preconditions; the name comes from this file.
                let library = unsafe { Library::new(file) }?;
                // SAFETY: the types are the header's; without a version asked for, the symbol's newest is found.
                unsafe {
                    Ok(Self { $($field: *library.get($symbol)?,)* _library: library })
                }
            }
        }
    };
}

functions! {
    get_device_list = b"ibv_get_device_list": fn(*mut c_int) -> *mut *mut Device;
    free_device_list = b"ibv_free_device_list": fn(*mut *mut Device);
    get_device_name = b"ibv_get_device_name": fn(*mut Device) -> *const c_char;
    open_device = b"ibv_open_device": fn(*mut Device) -> *mut Context;
    close_device = b"ibv_close_device": fn(*mut Context) -> c_int;
    query_device = b"ibv_query_device": fn(*mut Context, *mut DeviceAttributes) -> c_int;
    query_port = b"ibv_query_port": fn(*mut Context, u8, *mut PortAttributes) -> c_int;
    query_gid_table = b"_ibv_query_gid_table": fn(*mut Context, *mut GidEntry, usize, u32, usize) -> ssize_t;
    get_async_event = b"ibv_get_async_event": fn(*mut Context, *mut AsyncEvent) -> c_int;
    ack_async_event = b"ibv_ack_async_event": fn(*mut AsyncEvent);
    alloc_pd = b"ibv_alloc_pd": fn(*mut Context) -> *mut ProtectionDomain;
    dealloc_pd = b"ibv_dealloc_pd": fn(*mut ProtectionDomain) -> c_int;
    reg_mr = b"ibv_reg_mr": fn(*mut ProtectionDomain, *mut c_void, usize, c_int) -> *mut MemoryRegion;
    dereg_mr = b"ibv_dereg_mr": fn(*mut MemoryRegion) -> c_int;
    create_comp_channel = b"ibv_create_comp_channel": fn(*mut Context) -> *mut CompletionChannel;
    destroy_comp_channel = b"ibv_destroy_comp_channel": fn(*mut CompletionChannel) -> c_int;
    create_cq = b"ibv_create_cq": fn(*mut Context, c_int, *mut c_void, *mut CompletionChannel, c_int) -> *mut CompletionQueue;
    destroy_cq = b"ibv_destroy_cq": fn(*mut CompletionQueue) -> c_int;
    get_cq_event = b"ibv_get_cq_event": fn(*mut CompletionChannel, *mut *mut CompletionQueue, *mut *mut c_void) -> c_int;
    ack_cq_events = b"ibv_ack_cq_events": fn(*mut CompletionQueue, c_uint);
    create_qp = b"ibv_create_qp": fn(*mut ProtectionDomain, *mut QueuePairInit) -> *mut QueuePair;
    modify_qp = b"ibv_modify_qp": fn(*mut QueuePair, *mut QueuePairAttributes, c_int) -> c_int;
    destroy_qp = b"ibv_destroy_qp": fn(*mut QueuePair) -> c_int;
}

/// The library, loaded by the first call. Whether it is there is asked once a process.
pub(super) fn verbs() -> Result<&'static Verbs, RdmaError> {
    static LOADED: OnceLock<Result<Verbs, String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| Verbs::load(LIBRARY).map_err(|error| error.to_string()));
    loaded.as_ref().map_err(|detail| RdmaError::NoLibrary { detail: detail.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_an_error() {
        assert!(Verbs::load("libibverbs-none.so.1").is_err());
        assert!(Verbs::load("libc.so.6").is_err());
    }
}
