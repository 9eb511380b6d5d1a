//! The `memory` backend: both ends in one process, for tests and for a client that runs functions in itself.
//!
//! The regions are shared as they are, and a message is a store: the block's header first, then the block's number in the ring
//! of bells, with Release. It is what the shared-memory backend does between processes, less the sealing. Both ends belong to
//! one program, which keeps to [`Link`]'s rule of who holds a block when.
//!
//! ```text
//! post: payload, header ──▶ bell[n] = block+1 (Release) ──▶ sleeper? eventfd        poll: bell[n] (Acquire) ──▶ snapshot
//! ```
// UNSAFETY: two ends see one mapping. Access is by raw pointers, in ranges that the geometry has checked.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use gleaner_proto::header::{GUARD_LEN, HEADER_LEN, Header};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::eventfd::{EfdFlags, EventFd},
};

use crate::{
    call::Runs,
    check::{self, Side},
    link::{Arrival, Block, Geometry, Link, LinkError, Payload},
    region::Region,
};

/// One direction: a region, and how its messages are announced.
struct Lane {
    /// Keeps the mapping alive; nothing borrows from it.
    _region: Region,
    base: NonNull<u8>,
    len: usize,
    /// Block index + 1 of each message under way; 0 is none. As many as there are slots.
    bells: Box<[AtomicU32]>,
    /// The receiver sleeps, or is about to.
    armed: AtomicBool,
    /// The sender is gone: what rang before still counts.
    closed: AtomicBool,
    wake: EventFd,
}

// SAFETY: the pointer is to memory that the lane owns; what is read and written there when is ordered by the bells.
unsafe impl Send for Lane {}
// SAFETY: as above.
unsafe impl Sync for Lane {}

/// One end of a link within a process.
pub struct MemoryLink {
    side: Side,
    geometry: Geometry,
    outgoing: Arc<Lane>,
    incoming: Arc<Lane>,
    posted: usize,
    polled: usize,
}

/// The two ends of a new link: the client's, then the worker's.
pub fn pair(geometry: Geometry) -> Result<(MemoryLink, MemoryLink), LinkError> {
    let (requests, responses) = (Arc::new(Lane::new(geometry)?), Arc::new(Lane::new(geometry)?));
    let end = |side, outgoing: &Arc<Lane>, incoming: &Arc<Lane>| MemoryLink {
        side,
        geometry,
        outgoing: Arc::clone(outgoing),
        incoming: Arc::clone(incoming),
        posted: 0,
        polled: 0,
    };
    Ok((end(Side::Client, &requests, &responses), end(Side::Worker, &responses, &requests)))
}

impl Lane {
    fn new(geometry: Geometry) -> Result<Self, LinkError> {
        let system = |step, source| LinkError::Io { step, source };
        let bytes = geometry.region_bytes() as usize;
        let mut region =
            Region::anonymous(bytes).map_err(|source| system("map the link's region", source))?;
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|error| system("make an eventfd", error.into()))?;
        Ok(Self {
            base: NonNull::from(region.bytes_mut()).cast(),
            len: bytes,
            _region: region,
            bells: (0..geometry.window).map(|_| AtomicU32::new(0)).collect(),
            armed: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            wake,
        })
    }

    /// Bytes of the region. Panics if they are not: callers have checked what peers named.
    fn bytes(&self, start: usize, len: usize) -> *mut [u8] {
        assert!(start <= self.len && len <= self.len - start, "bytes outside the region");
        std::ptr::slice_from_raw_parts_mut(self.base.as_ptr().wrapping_add(start), len)
    }

    fn ring(&self) {
        // The fence orders the bell's (or `closed`'s) store before the load: either this sees the sleeper, or it sees us.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::Relaxed) {
            // An eventfd that is full is readable already.
            let _ = self.wake.write(1);
        }
    }
}

impl MemoryLink {
    fn rings(&self) -> bool {
        let bell = &self.incoming.bells[self.polled % self.incoming.bells.len()];
        bell.load(Ordering::Acquire) != 0
    }

    fn payload(&self, payload: Payload) -> *mut [u8] {
        self.incoming.bytes(payload.offset as usize, payload.len as usize)
    }

    fn room(&self, block: Block) -> *mut [u8] {
        self.outgoing.bytes(block.payload_offset() as usize, block.capacity as usize + GUARD_LEN)
    }
}

impl Link for MemoryLink {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn outgoing(&mut self, block: Block) -> &mut [u8] {
        // SAFETY: inside the region; until it is posted, the block is the sender's.
        unsafe { &mut *self.room(block) }
    }

    fn post(&mut self, block: Block, header: &Header) -> Result<(), Box<LinkError>> {
        debug_assert_eq!(header.block, block.index(), "the header names another block");
        Ok(self.send_raw(block.offset as usize, &header.encode())?)
    }

    fn poll(&mut self) -> Result<Option<Arrival>, Box<LinkError>> {
        let bell = &self.incoming.bells[self.polled % self.incoming.bells.len()];
        let rung = bell.load(Ordering::Acquire);
        if rung == 0 {
            let closed = self.incoming.closed.load(Ordering::Acquire);
            return if closed && !self.rings() { Err(LinkError::Closed.into()) } else { Ok(None) };
        }
        let bell_block = rung - 1;
        let Some(place) = self.geometry.block(bell_block, 0) else {
            return Err(LinkError::Range { slot: 0, block: bell_block, len: 0 }.into());
        };
        let mut snapshot = [0; HEADER_LEN];
        let header = self.incoming.bytes(place.offset as usize, HEADER_LEN);
        // SAFETY: inside the region, and the bell says that the sender is done with the block.
        snapshot.copy_from_slice(unsafe { &*header });
        bell.store(0, Ordering::Release);
        self.polled = self.polled.wrapping_add(1);
        Ok(Some(check::arrival(self.geometry, self.side, &snapshot)?))
    }

    fn incoming(&self, payload: Payload) -> &[u8] {
        // SAFETY: inside the region; the block is the receiver's until its slot is used again.
        unsafe { &*self.payload(payload) }
    }

    fn exchange(&mut self, payload: Payload, reply: Block) -> (&mut [u8], &mut [u8]) {
        // SAFETY: as in `incoming` and `outgoing`; the two lie in two regions.
        unsafe { (&mut *self.payload(payload), &mut *self.room(reply)) }
    }

    fn serve(&mut self, runs: &mut dyn Runs) -> Result<bool, Box<LinkError>> {
        self.serve_with(runs)
    }

    fn unsent(&self) -> bool {
        false
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), LinkError> {
        let end = Instant::now().checked_add(timeout);
        while !self.arm()? {
            let left = end.map_or(Duration::MAX, |end| end.duration_since(Instant::now()));
            let bound = left.saturating_add(Duration::from_micros(999));
            let bound = PollTimeout::try_from(bound).unwrap_or(PollTimeout::MAX);
            let mut sleep = [PollFd::new(self.incoming.wake.as_fd(), PollFlags::POLLIN)];
            match poll(&mut sleep, bound) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => {
                    return Err(LinkError::Io { step: "poll the eventfd", source: error.into() });
                }
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
        }
        Ok(())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.incoming.wake.as_fd())
    }

    fn arm(&mut self) -> Result<bool, LinkError> {
        match self.incoming.wake.read() {
            Ok(_) | Err(nix::Error::EAGAIN) => {}
            Err(error) => {
                return Err(LinkError::Io {
                    step: "read the eventfd",
                    source: io::Error::from(error),
                });
            }
        }
        self.incoming.armed.store(true, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::SeqCst);
        Ok(self.rings() || self.incoming.closed.load(Ordering::Acquire))
    }
}

impl MemoryLink {
    /// Announces 64 bytes as a header at a block's place: what `post` does, and a hostile peer may.
    pub(crate) fn send_raw(
        &mut self,
        offset: usize,
        header: &[u8; HEADER_LEN],
    ) -> Result<(), LinkError> {
        if self.incoming.closed.load(Ordering::Acquire) {
            return Err(LinkError::Closed);
        }
        let bell = &self.outgoing.bells[self.posted % self.outgoing.bells.len()];
        if bell.load(Ordering::Acquire) != 0 {
            return Err(LinkError::Window { window: self.geometry.window });
        }
        let place = self.outgoing.bytes(offset, HEADER_LEN);
        // SAFETY: inside the region; until its bell rings, the block is the sender's.
        unsafe { &mut *place }.copy_from_slice(header);
        bell.store((offset / gleaner_proto::header::BLOCK_ALIGN) as u32 + 1, Ordering::Release);
        self.posted = self.posted.wrapping_add(1);
        self.outgoing.ring();
        Ok(())
    }
}

impl Drop for MemoryLink {
    fn drop(&mut self) {
        self.outgoing.closed.store(true, Ordering::Release);
        self.outgoing.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{HostilePair, Pair};

    fn boxed(geometry: Geometry) -> Pair {
        let (client, worker) = pair(geometry).unwrap();
        (Box::new(client), Box::new(worker))
    }

    fn hostile(geometry: Geometry) -> HostilePair {
        let (mut client, worker) = pair(geometry).unwrap();
        let send = move |bytes: &[u8]| {
            // A store of less than a header is none: memory has no half messages.
            if let Ok(header) = bytes.try_into() {
                client.send_raw(0, header).unwrap();
            }
        };
        (Box::new(worker), Box::new(send))
    }

    crate::conformance_suite!(boxed, hostile);

    #[test]
    fn a_bell_for_a_block_that_is_none_ends_the_link() {
        let geometry = Geometry { window: 2, slot_bytes: 256, arena_bytes: 0 };
        let (client, mut worker) = pair(geometry).unwrap();
        client.outgoing.bells[0].store(u32::MAX, Ordering::Release);
        assert!(matches!(*worker.poll().unwrap_err(), LinkError::Range { .. }));
    }
}
