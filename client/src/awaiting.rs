//! Calls as futures, for any executor: see [`crate::Pool::process`] for who moves them on.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use crate::{
    calls::{CallKey, Calls, Fill, lost_reply},
    ended::Listener,
    error::CallError,
    function::{Function, Settings, once},
    pool::Pool,
    tune::DROPPED_GRACE,
};

/// A call under way, to be awaited. It was sent when it was made; dropping it gives it up.
///
/// Somebody must run [`Pool::process`] meanwhile, as [its page](Pool::process) shows.
#[must_use = "a call that nobody awaits is given up"]
pub struct CallFuture<'p, F = Copied> {
    pool: &'p Pool,
    stage: Stage,
    read: F,
}

/// How [`Function::call`]'s futures read a reply: into a copy.
type Copied = fn(&[u8]) -> Vec<u8>;

enum Stage {
    /// It could not be sent.
    Refused(CallError),
    UnderWay(CallKey),
    Over,
}

/// A call that was begun.
struct Begun {
    key: CallKey,
    /// Who sleeps for the pool has to look again, since it does not know of this.
    news: bool,
}

impl<'p> Function<'p> {
    /// Calls it and does not wait at all: while every slot is in use, a copy of the input waits for one. What prevents the call is
    /// the future's result.
    pub fn call(&self, input: &[u8]) -> CallFuture<'p> {
        let read: Copied = <[u8]>::to_vec;
        self.call_with(input.len(), |buffer| buffer.copy_from_slice(input), read)
    }

    /// The same with an input of `len` bytes that `fill` writes in place, and a reply that `read` reads in place when the future
    /// is polled. Neither may use the pool; `read` is called again if the reply's memory was taken back while it read.
    pub fn call_with<R, F>(
        &self,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
        read: F,
    ) -> CallFuture<'p, F>
    where
        F: FnMut(&[u8]) -> R,
    {
        let pool = self.pool;
        let begun = pool.calls.borrow_mut().begin(self.index, &self.settings, len, &mut once(fill));
        let stage = match begun {
            Ok(Begun { key, news }) => {
                if news {
                    pool.ring();
                }
                Stage::UnderWay(key)
            }
            Err(error) => Stage::Refused(error),
        };
        CallFuture { pool, stage, read }
    }
}

// What `read` is does not matter to where the future lies.
impl<F> Unpin for CallFuture<'_, F> {}

impl<R, F: FnMut(&[u8]) -> R> Future for CallFuture<'_, F> {
    type Output = Result<R, CallError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let key = match std::mem::replace(&mut this.stage, Stage::Over) {
            Stage::UnderWay(key) => key,
            Stage::Refused(error) => return Poll::Ready(Err(error)),
            Stage::Over => panic!("a call was awaited after it had ended"),
        };
        let mut calls = this.pool.calls.borrow_mut();
        let mut reply = None;
        let read = &mut |bytes: &[u8]| reply = Some((this.read)(bytes));
        if let Some(result) = calls.try_collect(key, read) {
            // The slot that has become free may be for one that waits.
            let waits = !calls.queue.is_empty();
            if waits {
                calls.dispatch();
            }
            drop(calls);
            if waits {
                this.pool.ring();
            }
            return Poll::Ready(
                result.map_err(|error| *error).and_then(|()| reply.ok_or_else(lost_reply)),
            );
        }
        this.stage = Stage::UnderWay(key);
        let before = calls.set_listener(key, Listener::Task(context.waker().clone()));
        drop(calls);
        drop(before);
        Poll::Pending
    }
}

impl<F> Drop for CallFuture<'_, F> {
    fn drop(&mut self) {
        if let Stage::UnderWay(key) = self.stage {
            let mut calls = self.pool.calls();
            let waker = calls.set_listener(key, Listener::Nobody);
            calls.drop_call(key, DROPPED_GRACE);
            drop(calls);
            drop(waker);
        }
    }
}

impl<F> fmt::Debug for CallFuture<'_, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallFuture").finish_non_exhaustive()
    }
}

impl Calls {
    /// Sends a call if there is a slot, else queues it: never waits.
    fn begin(
        &mut self,
        function: u32,
        settings: &Settings,
        len: usize,
        mut fill: Fill<'_>,
    ) -> Result<Begun, CallError> {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        self.check_size(len, settings)?;
        let due = self.due;
        self.last_number += 1;
        let index = self.record(function, settings, settings.due(), Listener::Nobody);
        // Behind those that wait already.
        let slot = if self.queue.is_empty() { self.prepare(len, settings) } else { None };
        let Some(place) = slot else {
            self.enqueue(index, len, &mut fill);
            return Ok(Begun { key: self.key(index), news: true });
        };
        self.send(index, place, &mut fill);
        let unsent = self.sessions[place.session()].as_ref().is_some_and(|open| {
            open.closing.is_some() || open.lanes[place.lane()].link_ref().unsent()
        });
        Ok(Begun { key: self.key(index), news: unsent || self.due != due })
    }
}
