//! Many calls under way at once, taken in the order in which they end.

use std::{fmt, time::Instant};

use crate::{
    calls::{CallKey, Calls, lost_reply},
    error::CallError,
    function::{Function, once},
    replies::Reaped,
    tune::{DROPPED_GRACE, GATHER_PAUSES, GATHERED_FROM},
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

/// What there was to be taken.
enum Taken<T, R> {
    Result(T, R),
    /// Answers, of which those who wait for them were told.
    Others,
    Nothing,
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
        if self.is_full() {
            return Err(Full(tag));
        }
        let Function { pool, index, ref settings } = self.function;
        let mut calls = pool.calls();
        let sent = calls.submit(index, settings, Some(self.queue), input);
        self.admit(sent.map(|index| calls.key(index)), tag);
        Ok(())
    }

    /// The same with an input of `len` bytes that `fill` writes in place. `fill` may not use the pool.
    pub fn push_with(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
        tag: T,
    ) -> Result<(), Full<T>> {
        if self.is_full() {
            return Err(Full(tag));
        }
        let Function { pool, index, ref settings } = self.function;
        let mut calls = pool.calls();
        let (queue, fill) = (Some(self.queue), &mut once(fill));
        let sent = calls.submit_with(index, settings, queue, len, fill);
        self.admit(sent.map(|index| calls.key(index)), tag);
        Ok(())
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
        if self.is_full() {
            return Err(Full(tag));
        }
        let &Function { pool, index, ref settings } = function;
        let mut calls = pool.calls();
        let sent = calls.submit(index, settings, Some(self.queue), input);
        self.admit(sent.map(|index| calls.key(index)), tag);
        Ok(())
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
        let mut calls = self.function.pool.calls();
        while self.len > 0 {
            match self.take(&mut calls, &mut read) {
                Taken::Result(tag, result) => return Some((tag, result)),
                Taken::Others => calls.look_around(),
                Taken::Nothing => {
                    self.let_gather();
                    calls.await_any();
                }
            }
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
        let mut calls = self.function.pool.calls();
        loop {
            match self.take(&mut calls, &mut read) {
                Taken::Result(tag, result) => return Some((tag, result)),
                Taken::Others => {}
                Taken::Nothing => {
                    calls.look_around();
                    return self.take_told(&mut calls, &mut read);
                }
            }
        }
    }

    /// Nothing has ended. Of many calls several will soon: who looks for each at once takes from the worker, for each, the cache line that it
    /// is about to write.
    #[inline]
    fn let_gather(&self) {
        if self.len >= GATHERED_FROM {
            (0..GATHER_PAUSES).for_each(|_| std::hint::spin_loop());
        }
    }

    /// A call was sent, or could not be.
    #[inline(always)]
    fn admit(&mut self, sent: Result<CallKey, Box<CallError>>, tag: T) {
        self.len += 1;
        let key = match sent {
            Ok(key) => key,
            Err(error) => return self.refused.push((tag, *error)),
        };
        let index = key.index as usize;
        if index >= self.tags.len() {
            self.make_places(index + 1);
        }
        self.tags[index] = Some((key, tag));
    }

    /// There never were so many calls at once. Knows no tag: what is handed to another function has to lie in memory.
    #[cold]
    #[inline(never)]
    fn make_places(&mut self, places: usize) {
        self.tags.resize_with(places, || None);
    }

    /// Takes one that was told of, or else the next reply to one of our calls that lies on a lane. Compiled into its callers: a
    /// result that goes through memory is written in parts and read as a whole, and waits for that.
    #[inline(always)]
    fn take<R>(
        &mut self,
        calls: &mut Calls,
        read: &mut impl FnMut(&[u8]) -> R,
    ) -> Taken<T, Result<R, CallError>> {
        if (calls.ended.told(self.queue) || !self.refused.is_empty())
            && let Some((tag, result)) = self.take_told(calls, read)
        {
            return Taken::Result(tag, result);
        }
        let mut reply = None;
        let index = match calls.reap(self.queue, &mut |bytes| reply = Some(read(bytes))) {
            Reaped::Read(index) => index,
            Reaped::Told => return Taken::Others,
            Reaped::Nothing => return Taken::Nothing,
        };
        match (self.tags[index as usize].take(), reply) {
            (Some((_, tag)), Some(reply)) => {
                self.len -= 1;
                Taken::Result(tag, Ok(reply))
            }
            _ => Taken::Others,
        }
    }

    /// Takes one that was told of, if there is one.
    #[inline(never)]
    fn take_told<R>(
        &mut self,
        calls: &mut Calls,
        read: &mut impl FnMut(&[u8]) -> R,
    ) -> Option<(T, Result<R, CallError>)> {
        if let Some((tag, error)) = self.refused.pop() {
            self.len -= 1;
            return Some((tag, Err(error)));
        }
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

    /// No lane had an answer: waits a little, and sees to the rest.
    fn await_any(&mut self) {
        let due: Option<Instant> = self.due;
        self.make_room();
        self.idle(None, due);
    }
}
