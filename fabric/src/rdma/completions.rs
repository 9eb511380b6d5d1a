//! Completion queues, and the channel on which one sleeps for them.
// UNSAFETY: calls of libibverbs with pointers that it gave, owned by one value each and given back once.
#![allow(unsafe_code)]

use std::{os::fd::BorrowedFd, ptr, ptr::NonNull, sync::Arc};

use super::{
    device::{Device, Opened, set_nonblocking},
    error::{RdmaError, WorkStatus},
    ffi,
};

/// A queue of completions, with its channel where one is to sleep for them.
#[derive(Debug)]
pub struct CompletionQueue {
    pub(super) queue: Arc<Queue>,
    /// Events taken from the channel and not acknowledged yet.
    unacknowledged: u32,
}

#[derive(Debug)]
pub(super) struct Queue {
    pub(super) raw: NonNull<ffi::CompletionQueue>,
    channel: Option<NonNull<ffi::CompletionChannel>>,
    device: Arc<Opened>,
}

// SAFETY: the verbs may be called by any thread, several at a time.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

/// Events that are acknowledged at a time: each acknowledgement takes a lock.
const ACKNOWLEDGE: u32 = 64;

/// One work request's end.
#[derive(Debug, Clone, Copy, Default)]
#[repr(transparent)]
pub struct Completion(ffi::Completion);

impl Completion {
    /// How it ended.
    #[inline]
    pub fn result(&self) -> Result<(), WorkStatus> {
        match self.0.status {
            ffi::WC_SUCCESS => Ok(()),
            status => Err(WorkStatus(status)),
        }
    }

    /// The number that its request was given.
    #[inline]
    pub fn id(&self) -> u64 {
        self.0.wr_id
    }

    /// A peer's write that has arrived: its immediate.
    #[inline]
    pub fn immediate(&self) -> Option<u32> {
        let arrived = self.0.opcode == ffi::WC_RECV_RDMA_WITH_IMM;
        arrived.then(|| u32::from_be(self.0.imm_data))
    }

    /// Bytes that it has written.
    #[inline]
    pub fn written(&self) -> u32 {
        self.0.byte_len
    }
}

impl CompletionQueue {
    /// A queue for so many completions at once, with a channel if one is to sleep for them.
    pub fn new(device: &Device, entries: u32, sleeps: bool) -> Result<Self, RdmaError> {
        let device = Arc::clone(&device.0);
        let (verbs, context) = (device.verbs, device.context.as_ptr());
        let channel = match sleeps {
            // SAFETY: the context is open.
            true => Some(
                NonNull::new(unsafe { (verbs.create_comp_channel)(context) })
                    .ok_or_else(|| device.last_failed("make a completion channel"))?,
            ),
            false => None,
        };
        let raw_channel = channel.map_or(ptr::null_mut(), NonNull::as_ptr);
        // SAFETY: the context is open, and the channel was made of it and outlives the queue.
        let raw =
            unsafe { (verbs.create_cq)(context, entries as i32, ptr::null_mut(), raw_channel, 0) };
        let Some(raw) = NonNull::new(raw) else {
            let error = device.last_failed("make a completion queue");
            if let Some(channel) = channel {
                // SAFETY: made above, and no queue uses it.
                unsafe { (verbs.destroy_comp_channel)(channel.as_ptr()) };
            }
            return Err(error);
        };
        let made = Self { queue: Arc::new(Queue { raw, channel, device }), unacknowledged: 0 };
        if let Some(fd) = made.channel_fd() {
            let watched = set_nonblocking(fd);
            watched.map_err(|error| made.queue.device.failed_with("watch a channel", error))?;
        }
        Ok(made)
    }

    /// Takes completions that are there, at most as many as fit; returns how many. No system call with most devices.
    #[inline(always)]
    pub fn poll(&mut self, into: &mut [Completion]) -> Result<usize, RdmaError> {
        let ops = self.queue.device.ops();
        // SAFETY: the queue is live, and `into` has room for as many completions of C's layout as are said.
        let got = unsafe {
            (ops.poll_cq)(self.queue.raw.as_ptr(), into.len() as i32, into.as_mut_ptr().cast())
        };
        usize::try_from(got).map_err(|_| self.queue.device.failed("poll a completion queue", got))
    }

    /// Asks for the channel to become readable with the next completion. Poll once more afterwards: what came before rings
    /// nobody.
    pub fn request_event(&mut self) -> Result<(), RdmaError> {
        // SAFETY: the queue is live.
        let code = unsafe { (self.queue.device.ops().req_notify_cq)(self.queue.raw.as_ptr(), 0) };
        self.queue.device.check("ask for a completion event", code)
    }

    /// What becomes readable.
    pub fn channel_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.channel.map(|channel| {
            // SAFETY: the channel lives as long as the queue, and its descriptor as long as the channel.
            unsafe { BorrowedFd::borrow_raw(channel.as_ref().fd) }
        })
    }

    /// Takes an event off the channel, if one is there. Each request brings one at most.
    pub fn take_event(&mut self) -> bool {
        let Some(channel) = self.queue.channel else { return false };
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        let verbs = self.queue.device.verbs;
        // SAFETY: the channel is live and does not block, and both places outlive the call.
        let took = unsafe { (verbs.get_cq_event)(channel.as_ptr(), &mut queue, &mut context) } == 0;
        self.unacknowledged += u32::from(took);
        if self.unacknowledged >= ACKNOWLEDGE {
            self.acknowledge();
        }
        took
    }

    fn acknowledge(&mut self) {
        // SAFETY: the queue is live, and so many events of it were taken: the channel is its own.
        unsafe {
            (self.queue.device.verbs.ack_cq_events)(self.queue.raw.as_ptr(), self.unacknowledged);
        }
        self.unacknowledged = 0;
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // Destroying a queue waits for the acknowledgement of each event that was taken.
        self.acknowledge();
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: queue pairs that use it hold this value, so it is the last; the channel goes after its only queue.
        unsafe {
            (self.device.verbs.destroy_cq)(self.raw.as_ptr());
            if let Some(channel) = self.channel {
                (self.device.verbs.destroy_comp_channel)(channel.as_ptr());
            }
        }
    }
}
