//! Calling functions: at once, with tickets, over many inputs, in place.

use std::time::{Duration, Instant};

use crate::{
    at_once::Copying,
    calls::{CallKey, Calls, lost_reply},
    error::{CallError, Failure},
    event::CallStats,
    pool::Pool,
    tune::DROPPED_GRACE,
};

/// A function in a pool. Its settings are its own: a clone with others is another view of the same function.
#[derive(Clone)]
pub struct Function<'p> {
    pub(crate) pool: &'p Pool,
    pub(crate) index: u32,
    pub(crate) settings: Settings,
}

/// How calls are made; see [`Function`]'s methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Settings {
    pub(crate) idempotent: bool,
    pub(crate) deadline: Option<Duration>,
    pub(crate) reply_capacity: Option<u32>,
}

impl Settings {
    /// When a call that begins now is over at the latest.
    #[inline]
    pub(crate) fn due(&self) -> Option<Instant> {
        self.deadline.map(|deadline| Instant::now() + deadline)
    }
}

/// A reply that is longer than its caller's buffer.
#[cold]
fn too_large(capacity: usize) -> CallError {
    let capacity = u32::try_from(capacity).unwrap_or(u32::MAX);
    CallError::Failed(Failure::ReplyTooLarge { capacity })
}

/// What fills an input, for who asks for it once.
#[inline]
pub(crate) fn once(fill: impl FnOnce(&mut [u8])) -> impl FnMut(&mut [u8]) {
    let mut fill = Some(fill);
    move |buffer| {
        if let Some(fill) = fill.take() {
            fill(buffer);
        }
    }
}

/// A call under way. Dropping it gives the call up.
pub struct Ticket<'p> {
    pool: &'p Pool,
    call: CallKey,
    taken: bool,
}

/// A call's reply and what it went through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The reply's bytes.
    pub bytes: Vec<u8>,
    /// What the call went through.
    pub stats: CallStats,
}

impl<'p> Function<'p> {
    pub(crate) fn new(pool: &'p Pool, index: u32) -> Self {
        Self { pool, index, settings: Settings::default() }
    }

    /// Declares that running it twice does no harm: after an eviction, calls that had started run again elsewhere.
    pub fn idempotent(mut self, idempotent: bool) -> Self {
        self.settings.idempotent = idempotent;
        self
    }

    /// The time each call is left. One that runs over is stopped, its worker with it, and ends as FAILED.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = Some(deadline);
        self
    }

    /// The most bytes that a reply may have. Default: what fits a slot.
    pub fn reply_capacity(mut self, bytes: u32) -> Self {
        self.settings.reply_capacity = Some(bytes);
        self
    }

    /// Calls it and waits for the reply.
    pub fn invoke(&self, input: &[u8]) -> Result<Vec<u8>, CallError> {
        self.invoke_with(input.len(), |buffer| buffer.copy_from_slice(input), <[u8]>::to_vec)
    }

    /// Calls it and copies the reply to the front of `output`: no memory is allocated. Returns the reply's length;
    /// one that is longer than `output` ends as FAILED.
    pub fn invoke_into(&self, input: &[u8], output: &mut [u8]) -> Result<usize, CallError> {
        let capacity = output.len();
        let mut copying = Copying { input, output, len: 0 };
        let mut calls = self.pool.calls();
        calls
            .invoke(self.index, &self.settings, input.len(), &mut copying)
            .map_err(|error| *error)?;
        if copying.len > capacity {
            return Err(too_large(capacity));
        }
        Ok(copying.len)
    }

    /// Calls it with an input of `len` bytes that `fill` writes in place, and hands the reply to `read` in place.
    /// Neither may use the pool. `read` is called again if the reply's memory was taken back while it read: what it did
    /// with the first reply counts for nothing.
    pub fn invoke_with<R>(
        &self,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
        read: impl FnMut(&[u8]) -> R,
    ) -> Result<R, CallError> {
        let (mut result, mut read) = (None, read);
        let read = &mut |reply: &[u8]| result = Some(read(reply));
        let mut calls = self.pool.calls();
        calls
            .invoke_with(self.index, &self.settings, len, &mut once(fill), read)
            .map_err(|error| *error)?;
        result.ok_or_else(lost_reply)
    }

    /// Sends a call and does not wait for its reply; waits for a free slot if all are in use.
    pub fn submit(&self, input: &[u8]) -> Result<Ticket<'p>, CallError> {
        self.ticket(|calls| calls.submit(self.index, &self.settings, None, input))
    }

    /// As [`submit`](Self::submit), with an input that `fill` writes in place.
    pub fn submit_with(
        &self,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<Ticket<'p>, CallError> {
        let fill = &mut once(fill);
        self.ticket(|calls| calls.submit_with(self.index, &self.settings, None, len, fill))
    }

    fn ticket(
        &self,
        submit: impl FnOnce(&mut Calls) -> Result<u32, Box<CallError>>,
    ) -> Result<Ticket<'p>, CallError> {
        let mut calls = self.pool.calls();
        let call = submit(&mut calls).map_err(|error| *error)?;
        Ok(Ticket { pool: self.pool, call: calls.key(call), taken: false })
    }

    /// Calls it once for each input, on all cores at once, and returns the results in the inputs' order.
    pub fn map<I>(&self, inputs: I) -> Vec<Result<Vec<u8>, CallError>>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        self.pool.calls().hold();
        let tickets: Vec<_> = inputs.into_iter().map(|input| self.submit(input.as_ref())).collect();
        self.pool.calls().release();
        tickets.into_iter().map(|ticket| ticket?.wait()).collect()
    }
}

impl Ticket<'_> {
    /// Waits for the reply.
    pub fn wait(self) -> Result<Vec<u8>, CallError> {
        self.wait_reply().map(|reply| reply.bytes)
    }

    /// Waits for the reply, and tells what the call went through.
    pub fn wait_reply(mut self) -> Result<Reply, CallError> {
        self.taken = true;
        let mut calls = self.pool.calls();
        let bytes = calls.read(self.call, <[u8]>::to_vec)?;
        Ok(Reply { bytes, stats: calls.stats_of(self.call) })
    }

    /// Waits for the reply and hands it to `read` in place. `read` may not use the pool.
    pub fn wait_with<R>(mut self, read: impl FnMut(&[u8]) -> R) -> Result<R, CallError> {
        self.taken = true;
        self.pool.calls().read(self.call, read)
    }

    /// Whether the call has ended, without waiting.
    pub fn is_done(&self) -> bool {
        let mut calls = self.pool.calls();
        calls.pump();
        calls.look_around();
        calls.is_done(self.call)
    }

    /// Gives the call up: it ends as FAILED unless it ends well first. One that runs longer than `grace` from now is
    /// stopped, its worker with it. Wait for the ticket to learn how it ended.
    pub fn cancel(&self, grace: Duration) {
        self.pool.calls().cancel(self.call, grace);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if !self.taken {
            self.pool.calls().drop_call(self.call, DROPPED_GRACE);
        }
    }
}
