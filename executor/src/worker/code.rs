//! The code and constants that a worker has used to get ready, taken out of its page tables again.
// UNSAFETY: the loader's list of what is mapped, and an advice to the kernel on what nobody writes to.
#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_void},
    ptr, slice,
};

use libc::{PF_W, PT_LOAD};

/// Programs and libraries are mapped by such pages.
const PAGE: usize = 4096;

/// Forgets which pages of code and constants this process has used. They stay in memory, and each comes back when it is used again; but
/// when the process ends, while a batch job waits for its node, the kernel goes over every page that it has.
pub(super) fn forget() {
    // SAFETY: the loader calls back while it holds its list, and with nothing but this list's entries.
    unsafe { libc::dl_iterate_phdr(Some(forget_of), ptr::null_mut()) };
}

/// Those of one program or library. What is relocated lies in its writable part.
unsafe extern "C" fn forget_of(object: *mut libc::dl_phdr_info, _: usize, _: *mut c_void) -> c_int {
    // SAFETY: the loader's own entry, valid during this call.
    let (base, headers) = unsafe {
        let object = &*object;
        (object.dlpi_addr, slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()))
    };
    let code =
        headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_flags & PF_W == 0);
    for header in code {
        let (start, len) = pages(base, header.p_vaddr, header.p_memsz);
        // SAFETY: mapped from a file, or the kernel's own page of functions, and never written to: what is read there after this is
        // what was there before. Refused, it changes nothing.
        unsafe { libc::madvise(ptr::with_exposed_provenance_mut(start), len, libc::MADV_DONTNEED) };
    }
    0
}

/// Where the pages of a segment begin, and how many bytes they are. An object whose own addresses are high has a base that wraps: User-Mode
/// Linux's page of functions does.
fn pages(base: u64, address: u64, bytes: u64) -> (usize, usize) {
    let start = base.wrapping_add(address) as usize;
    let first = start & !(PAGE - 1);
    (first, (start - first + bytes as usize).next_multiple_of(PAGE))
}

#[cfg(test)]
mod tests {
    use std::fs;

    /// Pages of files in this process's page tables.
    fn file_kib() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn a_base_may_wrap() {
        assert_eq!(super::pages(0x7000, 0x1234, 0x2000), (0x8000, 0x3000));
        let high = 0xffff_ffff_ff60_0000;
        assert_eq!(super::pages(0x10_0000_u64.wrapping_sub(high), high, 0x10), (0x10_0000, 0x1000));
    }

    #[test]
    fn code_that_was_run_is_forgotten_and_runs_again() {
        let before = file_kib();
        super::forget();
        let after = file_kib();
        assert!(after < before, "{before} KiB, then {after}");
    }
}
