//! Mapped memory: a link's regions, and the words that two processes share. Used by the backends and by the executor's
//! board; knows nothing of headers.
//!
//! Unsafe lives here so that its users have none: a mapping is owned by one value, is never moved, and goes away with it.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, RawFd},
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

use crate::tune::HUGE_PAGE_BYTES;

/// One mapping, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is plain memory that belongs to no thread; who may touch it when is its wrapper's rule.
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself gives out no access.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(len: usize, flags: libc::c_int, fd: RawFd) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory that exists.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0)
        };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Self { base, len }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The first `len` bytes of a file, shared with all who map it.
    pub(crate) fn shared(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        Self::new(len, libc::MAP_SHARED, fd.as_raw_fd())
    }

    /// Where it starts.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Asks for huge pages from `start` to `end`, if one fits. A system that has none changes nothing.
    pub(crate) fn advise_huge(&self, start: usize, end: usize) {
        let end = end.min(self.len);
        if end.saturating_sub(start) >= HUGE_PAGE_BYTES {
            // SAFETY: the range lies inside the mapping, and the advice changes no byte of it.
            unsafe {
                let base = self.base.as_ptr().add(start);
                libc::madvise(base.cast(), end - start, libc::MADV_HUGEPAGE);
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and len are the mapping's own, and no borrow of it outlives its owner.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// Bytes that one end of a link owns: zeroed, and taken from the system only where they are touched.
#[derive(Debug)]
pub struct Region(Mapping);

impl Region {
    /// A region of `len` bytes, at least 1.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Mapping::new(len.max(1), flags, -1).map(Self)
    }

    /// Asks for huge pages from `offset` on: large payloads touch fewer of them, and they are given back faster. The slots
    /// before it stay in small pages. A system that has none changes nothing.
    pub fn advise_huge(&mut self, offset: usize) {
        self.0.advise_huge(offset.next_multiple_of(HUGE_PAGE_BYTES), self.0.len);
    }

    /// Leaves the region out of processes that this one forks: a page that a device writes to must not be copied away from it.
    pub(crate) fn keep_from_children(&mut self) {
        // SAFETY: the range is the mapping's, and the advice changes no byte of it here.
        unsafe { libc::madvise(self.0.base.as_ptr().cast(), self.0.len, libc::MADV_DONTFORK) };
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `len` readable bytes for as long as self lives, and `&self` excludes `bytes_mut`.
        unsafe { std::slice::from_raw_parts(self.0.base.as_ptr(), self.0.len) }
    }

    /// Its bytes, to write to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `len` writable bytes for as long as self lives, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.0.base.as_ptr(), self.0.len) }
    }
}

/// Memory shared with another process, seen only as 64-bit atomics: whatever the other side writes, each read is one value.
#[derive(Debug)]
pub struct Words(Mapping);

impl Words {
    /// Maps the first `words` words of `fd`. The caller makes sure that the file cannot shrink (a sealed memfd), since
    /// touching what is gone raises SIGBUS.
    pub fn map(fd: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let len = words.checked_mul(8).ok_or(io::ErrorKind::InvalidInput)?;
        Mapping::shared(fd, len.max(8)).map(Self)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len / 8
    }

    /// True for no words at all, which no mapping has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them.
    #[inline]
    pub fn all(&self) -> &[AtomicU64] {
        // SAFETY: so many words lie inside the mapping, pages are 8-aligned, and every bit pattern is a value.
        unsafe { std::slice::from_raw_parts(self.0.base.as_ptr().cast(), self.len()) }
    }

    /// Word number `index`. Panics if there is none: callers check indexes that come from peers first.
    #[inline]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        &self.all()[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_zeroed_and_writable_to_its_last_byte() {
        let mut region = Region::anonymous(1 << 20).unwrap();
        assert!(region.bytes().iter().all(|byte| *byte == 0));
        region.bytes_mut()[(1 << 20) - 1] = 7;
        assert_eq!(region.bytes()[(1 << 20) - 1], 7);
    }
}
