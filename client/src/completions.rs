//! Many calls under way at once, taken in the order in which they end.

use std::{fmt, time::Instant};

use crate::{
    calls::{CallKey, Calls, lost_reply},
    ended::Listener,
    error::CallError,
    function::{Function, once},
    tune::DROPPED_GRACE,
};

/// A bounded number of calls, each with a tag of the caller's: every tag that is pushed comes back once, with its call's result, in
/// the order in which the calls end. Taking one looks through nothing, and allocates nothing but the reply that it hands out.
/// Dropping it gives up what is under way.
///
/// ```no_run
/// # fn example(work: gleaner::Function<'_>) {
/// let mut calls = work.completions();
/// let mut inputs = (0..1_000_000u64).map(|n| (n, n.to_le_bytes()));
/// loop {
///     while !calls.is_full()
///         && let Some((n, input)) = inputs.next()
///     {
///         calls.push(&input, n).expect("it is not full");
///     }
///     let Some((n, result)) = calls.next() else { break };
///     println!("{n}: {result:?}");
/// }
/// # }
/// ```
pub struct Completions<'p, T> {
    function: Function<'p>,
    queue: usize,
    bound: usize,
    len: usize,
    /// The pushed calls and their tags, by the calls' places in the pool.
    tags: Vec<Option<(CallKey, T)>>,
    /// What could not be sent, and why.
    refused: Vec<(T, CallError)>,
}

/// As many calls as the queue takes are under way or not taken yet: take one first. Holds the tag that was not pushed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full(..)")
    }
}

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the completion queue is full: take a result before pushing another call")
    }
}

impl<T> std::error::Error for Full<T> {}

impl<'p> Function<'p> {
    /// An empty queue of calls of this function, for as many at once as the pool's leases have slots now.
    pub fn completions<T>(&self) -> Completions<'p, T> {
        let bound = self.pool.calls().slots();
        self.completions_of(bound)
    }

    /// The same for at most so many calls at once. What exceeds the pool's slots waits in [`Completions::push`].
    pub fn completions_of<T>(&self, bound: usize) -> Completions<'p, T> {
        let bound = bound.max(1);
        let queue = self.pool.calls().ended.open_queue(bound);
        let (tags, refused) = (Vec::new(), Vec::new());
        Completions { function: self.clone(), queue, bound, len: 0, tags, refused }
    }
}

impl<'p, T> Completions<'p, T> {
    /// The most calls at once.
    pub fn bound(&self) -> usize {
        self.bound
    }

    /// Calls that were pushed and not taken yet.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is left to be taken.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a result must be taken before the next call is pushed.
    pub fn is_full(&self) -> bool {
        self.len == self.bound
    }

    /// Sends a call. What prevents it is the call's result.
    pub fn push(&mut self, input: &[u8], tag: T) -> Result<(), Full<T>> {
        self.push_with(input.len(), |buffer| buffer.copy_from_slice(input), tag)
    }

    /// The same with an input of `len` bytes that `fill` writes in place. `fill` may not use the pool.
    pub fn push_with(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
        tag: T,
    ) -> Result<(), Full<T>> {
        let (index, settings) = (self.function.index, self.function.settings);
        self.admit(tag, |calls, told| calls.submit(index, &settings, told, len, &mut once(fill)))
    }

    /// Sends a call of another function of the same pool.
    ///
    /// # Panics
    /// If the function is another pool's.
    pub fn push_to(
        &mut self,
        function: &Function<'p>,
        input: &[u8],
        tag: T,
    ) -> Result<(), Full<T>> {
        let same = std::ptr::eq(function.pool, self.function.pool);
        assert!(same, "a completion queue takes calls of its own pool only");
        let mut fill = |buffer: &mut [u8]| buffer.copy_from_slice(input);
        let (index, settings) = (function.index, function.settings);
        self.admit(tag, |calls, told| calls.submit(index, &settings, told, input.len(), &mut fill))
    }

    /// Pushes calls, each an input and its tag, until the queue is full or there are no more; they go out together, which costs
    /// less than one by one. Returns how many were pushed.
    pub fn fill<I: AsRef<[u8]>>(&mut self, calls: &mut impl Iterator<Item = (I, T)>) -> usize {
        let before = self.len;
        self.function.pool.calls().hold();
        while !self.is_full()
            && let Some((input, tag)) = calls.next()
        {
            let pushed = self.push(input.as_ref(), tag);
            debug_assert!(pushed.is_ok(), "it was not full");
        }
        self.function.pool.calls().release();
        self.len - before
    }

    /// Waits until some call has ended, and hands its reply to `read` in place, or the error out. `None` if none was pushed. `read`
    /// may not use the pool; it is called again if the reply's memory was taken back while it read.
    pub fn next_with<R>(
        &mut self,
        mut read: impl FnMut(&[u8]) -> R,
    ) -> Option<(T, Result<R, CallError>)> {
        while self.len > 0 {
            if let Some(taken) = self.take(&mut read) {
                return Some(taken);
            }
            self.function.pool.calls().await_any();
        }
        None
    }

    /// A call that has ended, and its reply; `None` if there is none now.
    pub fn try_next(&mut self) -> Option<(T, Result<Vec<u8>, CallError>)> {
        self.try_next_with(<[u8]>::to_vec)
    }

    /// The same with the reply in place, as in [`next_with`](Self::next_with).
    pub fn try_next_with<R>(
        &mut self,
        mut read: impl FnMut(&[u8]) -> R,
    ) -> Option<(T, Result<R, CallError>)> {
        if let Some(taken) = self.take(&mut read) {
            return Some(taken);
        }
        let mut calls = self.function.pool.calls();
        calls.pump();
        calls.look_around();
        drop(calls);
        self.take(&mut read)
    }

    fn admit(
        &mut self,
        tag: T,
        submit: impl FnOnce(&mut Calls, Listener) -> Result<CallKey, CallError>,
    ) -> Result<(), Full<T>> {
        if self.is_full() {
            return Err(Full(tag));
        }
        self.len += 1;
        let mut calls = self.function.pool.calls();
        match submit(&mut calls, Listener::Queue(self.queue)) {
            Ok(key) => {
                let index = key.index as usize;
                if self.tags.len() <= index {
                    self.tags.resize_with(index + 1, || None);
                }
                self.tags[index] = Some((key, tag));
            }
            Err(error) => self.refused.push((tag, error)),
        }
        Ok(())
    }

    /// Takes one that was told of, if there is one.
    fn take<R>(&mut self, read: &mut impl FnMut(&[u8]) -> R) -> Option<(T, Result<R, CallError>)> {
        if let Some((tag, error)) = self.refused.pop() {
            self.len -= 1;
            return Some((tag, Err(error)));
        }
        let mut calls = self.function.pool.calls();
        while let Some(told) = calls.ended.next_of(self.queue) {
            let place = &mut self.tags[told.index as usize];
            // Told of twice and taken already, or taken back while it was read and told of again later.
            if place.as_ref().is_none_or(|(key, _)| *key != told) {
                continue;
            }
            let mut reply = None;
            if let Some(result) = calls.try_collect(told, &mut |bytes| reply = Some(read(bytes)))
                && let Some((_, tag)) = place.take()
            {
                self.len -= 1;
                return Some((
                    tag,
                    result.map_err(|error| *error).and_then(|()| reply.ok_or_else(lost_reply)),
                ));
            }
        }
        None
    }
}

/// Waits for one result after the other, until all that was pushed is taken; pushing goes on between.
impl<T> Iterator for Completions<'_, T> {
    type Item = (T, Result<Vec<u8>, CallError>);

    fn next(&mut self) -> Option<Self::Item> {
        self.next_with(<[u8]>::to_vec)
    }
}

impl<T> Drop for Completions<'_, T> {
    fn drop(&mut self) {
        let mut calls = self.function.pool.calls();
        for (key, _) in self.tags.iter().flatten() {
            calls.drop_call(*key, DROPPED_GRACE);
        }
        calls.ended.close_queue(self.queue);
    }
}

impl Calls {
    /// Slots of all live lanes.
    fn slots(&self) -> usize {
        let live = self.sessions.iter().flatten().filter(|open| open.closing.is_none());
        let lanes: usize = live.map(|open| open.lanes.len()).sum();
        lanes.max(1) * usize::from(self.request.window)
    }

    /// Waits until something has happened: an answer, or what only shows in the calls.
    fn await_any(&mut self) {
        let due: Option<Instant> = self.due;
        if !self.pump() {
            self.make_room();
            self.idle(None, due);
        } else {
            self.look_around();
        }
    }
}
