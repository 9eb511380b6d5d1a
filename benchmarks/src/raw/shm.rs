//! Two ends on one shared mapping: a slot is a flag and the payload right behind it, so that a small message is one cache
//! line. How an end waits for a flag is the only difference between spinning and sleeping.
// UNSAFETY: two threads share one mapping, by flags that say whose turn it is.
#![allow(unsafe_code)]

use std::{
    num::NonZeroUsize,
    os::raw::c_void,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use nix::sys::{
    memfd::{MFdFlags, memfd_create},
    mman::{MapFlags, ProtFlags, mmap, munmap},
};

use super::{Load, Transport};
use crate::stage::pin;

/// Bytes that processors fetch together: two cache lines, so that a slot's neighbour is not fetched along with it.
const LINES: usize = 128;
/// Bytes before a slot's payload: its flag, and the payload's alignment.
const HEAD: usize = 8;
/// The flag of an end that has gone.
const GONE: u32 = u32::MAX;

/// How an end waits for its turn.
pub(super) trait Wait: Send + 'static {
    /// Returns once the flag is no longer `old`.
    fn wait(flag: &AtomicU32, old: u32);
    /// The flag was changed.
    fn wake(flag: &AtomicU32);
}

/// Looks again at once, without a pause: the least latency that there is.
pub(super) struct Spin;

impl Wait for Spin {
    fn wait(flag: &AtomicU32, old: u32) {
        while flag.load(Ordering::Acquire) == old {}
    }

    fn wake(_: &AtomicU32) {}
}

/// Starts the peer; returns this thread's end.
pub(super) fn start<W: Wait>(load: Load) -> Result<End<W>> {
    let ring = Arc::new(Ring::new(load)?);
    let theirs = ring.clone();
    let peer = thread::spawn(move || pin(load.cpu).map(|()| serve::<W>(&theirs, load)));
    Ok(End { ring, sent: 0, received: 0, peer: Some(peer), wait: std::marker::PhantomData })
}

/// The caller's end.
pub(super) struct End<W: Wait> {
    ring: Arc<Ring>,
    sent: u32,
    received: u32,
    peer: Option<JoinHandle<Result<()>>>,
    wait: std::marker::PhantomData<W>,
}

impl<W: Wait> Transport for End<W> {
    fn send(&mut self, request: &[u8]) -> Result<()> {
        let place = self.ring.request(self.sent);
        // SAFETY: the caller's turn: at most `depth` requests are under way, so this slot's last one was answered.
        unsafe { place.bytes(request.len()) }.copy_from_slice(request);
        self.sent += 1;
        place.publish::<W>(self.sent);
        Ok(())
    }

    fn receive(&mut self, reply: &mut [u8]) -> Result<()> {
        let place = self.ring.reply(self.received);
        self.received += 1;
        place.await_number::<W>(self.received);
        // SAFETY: the flag says that the peer has finished writing it.
        reply.copy_from_slice(unsafe { place.bytes(reply.len()) });
        Ok(())
    }
}

impl<W: Wait> Drop for End<W> {
    fn drop(&mut self) {
        self.ring.request(self.sent).publish::<W>(GONE);
        if let Some(peer) = self.peer.take() {
            // The peer only computes: it has no error to tell but that of pinning, which the caller had as well.
            let _ = peer.join();
        }
    }
}

fn serve<W: Wait>(ring: &Ring, load: Load) {
    for number in 0.. {
        let (request, reply) = (ring.request(number), ring.reply(number));
        if request.await_number::<W>(number + 1) == GONE {
            return;
        }
        // SAFETY: the flag says that the caller has written the request and waits for the reply.
        let (request, room) = unsafe { (request.bytes(load.request), reply.bytes(load.reply())) };
        load.work.run(request, room);
        reply.publish::<W>(number + 1);
    }
}

/// The mapping: `depth` slots for requests, as many for replies.
struct Ring {
    base: NonNull<c_void>,
    len: NonZeroUsize,
    depth: usize,
    stride: usize,
}

// SAFETY: plain memory; the flags say who may touch which part of it.
unsafe impl Send for Ring {}
// SAFETY: as above.
unsafe impl Sync for Ring {}

/// Bytes from one slot to the next. The requests' come first.
pub(crate) fn stride(load: Load) -> usize {
    (HEAD + load.request.max(load.reply())).next_multiple_of(LINES)
}

/// One slot of one direction.
struct Place<'a> {
    flag: &'a AtomicU32,
    payload: NonNull<u8>,
}

impl Ring {
    fn new(load: Load) -> Result<Self> {
        let stride = stride(load);
        let len = NonZeroUsize::new(2 * load.depth * stride).context("an empty mapping")?;
        let file = memfd_create("baseline", MFdFlags::MFD_CLOEXEC).context("make a memfd")?;
        nix::unistd::ftruncate(&file, len.get() as i64).context("size the memfd")?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base = unsafe { mmap(None, len, access, MapFlags::MAP_SHARED, &file, 0) };
        Ok(Self { base: base.context("map the memfd")?, len, depth: load.depth, stride })
    }

    fn request(&self, number: u32) -> Place<'_> {
        self.place(number as usize % self.depth)
    }

    fn reply(&self, number: u32) -> Place<'_> {
        self.place(self.depth + number as usize % self.depth)
    }

    fn place(&self, index: usize) -> Place<'_> {
        // SAFETY: `index` is below twice the depth, so that flag and payload lie inside the mapping; the flag is aligned, as
        // the stride is a multiple of whole lines, and is only ever used as an atomic.
        unsafe {
            let start = self.base.cast::<u8>().add(index * self.stride);
            let flag = AtomicU32::from_ptr(start.as_ptr().cast());
            Place { flag, payload: start.add(HEAD) }
        }
    }
}

impl Place<'_> {
    /// # Safety
    /// It must be the caller's turn on this slot, and `len` at most what the ring was made for.
    #[allow(clippy::mut_from_ref)] // whose turn it is, the flag says
    unsafe fn bytes(&self, len: usize) -> &mut [u8] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.payload.as_ptr(), len) }
    }

    fn publish<W: Wait>(&self, number: u32) {
        self.flag.store(number, Ordering::Release);
        W::wake(self.flag);
    }

    /// Waits until the slot has this number, or its writer has gone.
    fn await_number<W: Wait>(&self, number: u32) -> u32 {
        loop {
            let now = self.flag.load(Ordering::Acquire);
            if now == number || now == GONE {
                return now;
            }
            W::wait(self.flag, now);
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping's own base and length; both ends have gone.
        let _ = unsafe { munmap(self.base, self.len.get()) };
    }
}
