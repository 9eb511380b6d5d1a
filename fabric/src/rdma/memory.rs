//! Memory that a device may reach, and the protection domain that says through which queue pairs.
// UNSAFETY: calls of libibverbs with pointers that it gave, owned by one value each and given back once.
#![allow(unsafe_code)]

use std::{ptr::NonNull, sync::Arc};

use gleaner_proto::header::{BLOCK_ALIGN, HEADER_LEN};

use super::{
    device::{Device, Opened},
    error::RdmaError,
    ffi,
};
use crate::region::Region;

/// A protection domain: queue pairs and memory of one reach each other, and nothing of any other.
#[derive(Debug, Clone)]
pub struct ProtectionDomain(pub(super) Arc<Domain>);

#[derive(Debug)]
pub(super) struct Domain {
    pub(super) raw: NonNull<ffi::ProtectionDomain>,
    pub(super) device: Arc<Opened>,
}

// SAFETY: the verbs may be called by any thread, several at a time.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

/// What the peer may do to a region. Never read it, and no atomics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: it is read by our own device alone.
    Own,
    /// Write to it.
    PeerWrites,
}

/// A region that the device may reach, pinned until it is dropped: then it is deregistered first, and its pages go back to the
/// system, which zeroes them before anybody else gets them.
#[derive(Debug)]
pub struct Registered {
    raw: NonNull<ffi::MemoryRegion>,
    domain: Arc<Domain>,
    region: Region,
}

// SAFETY: the registration may be used by any thread; the bytes are `region`'s, which is Send.
unsafe impl Send for Registered {}

impl ProtectionDomain {
    /// A new one.
    pub fn new(device: &Device) -> Result<Self, RdmaError> {
        let device = Arc::clone(&device.0);
        // SAFETY: the context is open.
        let raw = unsafe { (device.verbs.alloc_pd)(device.context.as_ptr()) };
        let raw =
            NonNull::new(raw).ok_or_else(|| device.last_failed("make a protection domain"))?;
        Ok(Self(Arc::new(Domain { raw, device })))
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: what was made in it holds this value, so it is the last.
        unsafe { (self.device.verbs.dealloc_pd)(self.raw.as_ptr()) };
    }
}

impl Registered {
    /// Pins a region and makes it known to the device.
    pub fn new(
        domain: &ProtectionDomain,
        mut region: Region,
        access: Access,
    ) -> Result<Self, RdmaError> {
        let domain = Arc::clone(&domain.0);
        let flags = match access {
            Access::Own => 0,
            // The standard asks for the local right wherever the remote one is given.
            Access::PeerWrites => ffi::ACCESS_LOCAL_WRITE | ffi::ACCESS_REMOTE_WRITE,
        };
        region.keep_from_children();
        let bytes = region.bytes_mut();
        let (start, len) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: the range is the region's, which this value owns and deregisters before it goes.
        let raw = unsafe { (domain.device.verbs.reg_mr)(domain.raw.as_ptr(), start, len, flags) };
        let raw = NonNull::new(raw)
            .ok_or_else(|| domain.device.last_failed("pin and register a link's memory"))?;
        Ok(Self { raw, domain, region })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.region.bytes()
    }

    /// Its bytes, to write to.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.region.bytes_mut()
    }

    /// One read of a header that the peer may write to meanwhile.
    #[inline]
    pub fn snapshot(&self, offset: usize) -> [u8; HEADER_LEN] {
        assert!(offset.is_multiple_of(BLOCK_ALIGN), "no block starts there");
        let header = self.bytes()[offset..offset + HEADER_LEN].as_ptr().cast::<u64>();
        let mut snapshot = [0; HEADER_LEN];
        // By words: a volatile array of bytes is read byte by byte, which costs a hot call a hundred instructions.
        for (at, bytes) in snapshot.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            // SAFETY: the word lies inside the region; blocks, and so their headers, are aligned to more than a word.
            *bytes = unsafe { header.add(at).read_volatile() }.to_ne_bytes();
        }
        snapshot
    }

    /// Where it lies: what a peer writes to is told as this address and more.
    pub fn address(&self) -> u64 {
        self.region.bytes().as_ptr() as u64
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.region.bytes().len()
    }

    /// Never: a region has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// What our own device needs to read it.
    pub(super) fn local_key(&self) -> u32 {
        // SAFETY: the registration lives as long as self.
        unsafe { self.raw.as_ref() }.lkey
    }

    /// What a peer needs to write to it.
    pub fn remote_key(&self) -> u32 {
        // SAFETY: as above.
        unsafe { self.raw.as_ref() }.rkey
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: registered once, deregistered once, before `region` is unmapped. What is still under way is refused by the
        // device from here on.
        unsafe { (self.domain.device.verbs.dereg_mr)(self.raw.as_ptr()) };
    }
}
