//! A pool inside somebody else's event loop: one descriptor to sleep on, one call that does what is due and never sleeps.
//!
//! Why it is so: `docs/src/adr/0014-async-without-a-thread.md`.

use std::{
    convert::Infallible,
    io,
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use tokio::io::{Interest, unix::AsyncFd};

use crate::{
    calls::Calls,
    pool::Pool,
    reactor::Reactor,
    request::KeepAlive,
    session::Session,
    tune::{PROGRESS_ROUNDS, SERVICE_PERIOD, SLEEP_MAX, VERDICT_BOUND},
};

/// A renewal is asked for strictly after its time: a due time that is exact would be met twice.
const STRICTLY_AFTER: Duration = Duration::from_millis(1);

impl Pool {
    /// What becomes readable when [`process`](Self::process) has something to do: for the event loop of an executor, or of a
    /// program's own. It is made when it is first asked for, belongs to the pool, and must not be read from.
    pub fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        if self.reactor.get().is_none() {
            let made = Reactor::new()?;
            let reactor = self.reactor.get_or_init(|| made);
            // Nothing is watched yet: the first look changes that.
            reactor.ring();
        }
        match self.reactor.get() {
            Some(reactor) => Ok(reactor.fd()),
            None => unreachable!("it was just made"),
        }
    }

    /// Does what is due and wakes the tasks whose calls have ended. It does not wait for calls; after an eviction it asks the
    /// harvester for another lease, and that takes as long as it takes. Call it again when the
    /// [`descriptor`](Self::descriptor) is readable, and at the returned time at the latest; `None`: only then.
    ///
    /// Inside tokio, [`drive`](Self::drive) does both.
    pub fn process(&self) -> Option<Instant> {
        let mut woken = self.woken.take();
        let due = self.progress(&mut woken);
        // Nobody is inside the pool now: what a waker runs may come back in.
        for task in woken.drain(..) {
            task.wake();
        }
        self.woken.set(woken);
        due
    }

    fn progress(&self, woken: &mut Vec<std::task::Waker>) -> Option<Instant> {
        let mut calls = self.calls.borrow_mut();
        let reactor = self.reactor.get();
        reactor.inspect(|reactor| reactor.quiet());
        let more = calls.progress();
        woken.append(&mut calls.ended.tasks);
        let now = Instant::now();
        let due = calls.next_due(now);
        let Some(reactor) = reactor else { return due };
        let watched = reactor.watch(&calls.sessions);
        // An event loop that looks at edges has seen this one: it gets another.
        if more || reactor.is_ready() {
            reactor.ring();
        }
        match watched {
            true => due,
            false => earlier(due, Some(now + SERVICE_PERIOD)),
        }
    }
}

impl Pool {
    /// Moves the pool on inside tokio, until the system refuses something. Run it beside what awaits the pool's calls:
    ///
    /// ```no_run
    /// # async fn example(pool: &gleaner::Pool, work: gleaner::Function<'_>) -> Result<(), Box<dyn std::error::Error>> {
    /// let reply = tokio::select! {
    ///     reply = work.call(b"input") => reply?,
    ///     error = pool.drive() => return Err(error.into()),
    /// };
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    /// Outside a tokio runtime, or in one without its I/O and time drivers.
    pub async fn drive(&self) -> io::Error {
        match self.drive_on().await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    async fn drive_on(&self) -> io::Result<Infallible> {
        // Its new form is unsafe since it takes any number; a borrowed descriptor is open for as long as it is borrowed.
        #[allow(deprecated)]
        let descriptor = AsyncFd::with_interest(self.descriptor()?, Interest::READABLE)?;
        loop {
            let due = self.process();
            let bound = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = descriptor.readable() => ready?.clear_ready(),
                () = bound => {}
            }
        }
    }
}

impl Calls {
    /// Takes every answer, sees to everything else, and asks every lane for a wake-up. True: it has not come to an end.
    fn progress(&mut self) -> bool {
        for _ in 0..PROGRESS_ROUNDS {
            // Bounded: what is answered stays in its slot, and nobody sends meanwhile.
            while self.pump() {}
            self.service(Instant::now());
            let leaves = self.ended.tasks.is_empty();
            if leaves {
                self.make_room();
            }
            if !self.arm(None) {
                // Tasks that are woken now take their replies, or leave them to the next look.
                return !leaves && !self.queue.is_empty();
            }
        }
        true
    }

    /// When something is due that no descriptor announces.
    fn next_due(&self, now: Instant) -> Option<Instant> {
        let sessions = self.sessions.iter().flatten();
        let of_sessions = sessions.filter_map(|open| self.due_of(open)).min();
        // A worker that is its own enemy may have been asked for a wake-up in vain.
        let look = (self.calls.len() > self.idle_places()).then(|| now + SLEEP_MAX);
        let due = earlier(of_sessions, look);
        earlier(earlier(due, self.due), self.relocation.due())
    }

    /// When a session's lease must be renewed, or its verdicts are no longer awaited.
    fn due_of(&self, open: &Session) -> Option<Instant> {
        if let Some(closing) = &open.closing {
            return Some(closing.0 + VERDICT_BOUND);
        }
        if self.request.keep_alive == KeepAlive::Manual {
            return None;
        }
        let ttl = self.request.ttl;
        let half = open.safe_until.checked_sub(ttl / 2);
        let unanswered = open.renewing.map(|asked| asked + ttl / 4);
        let again = open.last_asked.map(|asked| asked + ttl / 8);
        let due = half.into_iter().chain(unanswered).chain(again).max();
        due.map(|due| due + STRICTLY_AFTER)
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}
