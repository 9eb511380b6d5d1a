//! How a caller waits, and what it sees to meanwhile: control streams, deadlines, renewals, queued calls, new leases.

use std::{
    os::fd::BorrowedFd,
    time::{Duration, Instant},
};

use gleaner_proto::v1::from_agent::Message;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::{
    calls::{Calls, Place},
    request::{KeepAlive, Waiting},
    spin::Next,
    tune::{SLEEP_MAX, VERDICT_BOUND},
};

impl Calls {
    /// Nothing was there: spins or sleeps a little, for one place or for all of them, and sees to the rest when due.
    pub(crate) fn idle(&mut self, place: Option<Place>, due: Option<Instant>) {
        match self.spin.next() {
            Next::Look => return,
            Next::Service if self.live() > 0 => return self.service(Instant::now()),
            Next::Service | Next::Sleep => {}
        }
        if self.queue.is_empty() {
            self.sleep(place, due);
            self.service(Instant::now());
            return;
        }
        self.service(Instant::now());
        if !self.queue.is_empty() {
            self.sleep(place, due);
        }
    }

    /// Sees to the rest about once a millisecond.
    pub(crate) fn look_around(&mut self) {
        if self.spin.due() {
            self.service(Instant::now());
        }
    }

    /// Waits in another way, and tells the executors.
    pub(crate) fn set_waiting(&mut self, waiting: Waiting) {
        self.request.waiting = waiting;
        self.spin.set(waiting.hot_for());
        for open in self.sessions.iter_mut().flatten() {
            if let Err(error) = open.set_waiting(waiting) {
                open.close(error.to_string());
            }
        }
    }

    /// Everything that is not an answer.
    pub(crate) fn service(&mut self, now: Instant) {
        self.spin.serviced();
        for session in 0..self.sessions.len() {
            self.listen(session);
            self.keep_alive(session, now);
        }
        self.expire(now);
        self.relocate(now);
        self.dispatch();
        self.run_locally();
    }

    /// Takes what a session's control stream says; ends the session when it is over.
    fn listen(&mut self, session: usize) {
        while let Some(open) = self.sessions[session].as_mut() {
            match open.control.look() {
                Ok(Some(Message::Renewed(renewed))) => open.renewed(renewed.safe_for_ms),
                Ok(Some(Message::WaitingSet(_))) => {}
                Ok(Some(Message::Evicted(evicted))) => {
                    self.evict(session, Some(evicted), "");
                    return;
                }
                Ok(Some(Message::Error(error))) => open.close(error.message),
                Ok(Some(_)) => open.close("the executor answered what nobody asked".into()),
                Ok(None) => break,
                Err(error) => {
                    self.evict(session, None, &error.to_string());
                    return;
                }
            }
        }
        let closing = self.sessions[session].as_ref().and_then(|open| open.closing.clone());
        if let Some((since, why)) = closing
            && since.elapsed() >= VERDICT_BOUND
        {
            self.evict(session, None, &why);
        }
    }

    /// Renews on the way when less than half of the time is left.
    fn keep_alive(&mut self, session: usize, now: Instant) {
        let ttl = self.request.ttl;
        let manual = self.request.keep_alive == KeepAlive::Manual;
        let Some(open) = self.sessions[session].as_mut().filter(|_| !manual) else {
            return;
        };
        let left = open.safe_until.saturating_duration_since(now);
        let asked_lately = open.renewing.is_some_and(|asked| now - asked < ttl / 4);
        if left < ttl / 2 && !asked_lately && open.last_asked.is_none_or(|at| now - at > ttl / 8) {
            open.last_asked = Some(now);
            if let Err(error) = open.ask_renewal(ttl) {
                open.close(error.to_string());
            }
        }
    }

    /// Sleeps until a lane or a control stream has something, a deadline is over, or a short while.
    fn sleep(&mut self, place: Option<Place>, due: Option<Instant>) {
        if self.arm(place) {
            return;
        }
        let mut wakers = Vec::new();
        for (index, open) in self.sessions.iter().enumerate() {
            let Some(open) = open else { continue };
            wakers.push(PollFd::new(open.control.fd(), PollFlags::POLLIN));
            let focused = place.is_none_or(|place| place.session == index);
            if focused && open.closing.is_none() {
                wakers.extend(open.lanes.iter().filter_map(|lane| {
                    let flags = match lane.link_ref().unsent() {
                        true => PollFlags::POLLIN | PollFlags::POLLOUT,
                        false => PollFlags::POLLIN,
                    };
                    let fd: BorrowedFd<'_> = lane.link_ref().wait_fd()?;
                    Some(PollFd::new(fd, flags))
                }));
            }
        }
        let left = due.map_or(SLEEP_MAX, |due| due.saturating_duration_since(Instant::now()));
        let waits =
            self.queue.is_empty() && self.sessions.iter().flatten().all(|s| s.closing.is_none());
        let most = if waits { SLEEP_MAX } else { Duration::from_millis(5) };
        let millis = left.min(most).as_millis() as u16 + 1;
        // A signal or an error ends the sleep early; the caller looks at everything again either way.
        let _ = nix::poll::poll(&mut wakers, PollTimeout::from(millis));
    }

    /// Asks lanes for wake-ups; true if one has something already.
    pub(crate) fn arm(&mut self, place: Option<Place>) -> bool {
        let mut ready = false;
        for (index, open) in self.sessions.iter_mut().enumerate() {
            let Some(open) = open.as_mut().filter(|open| open.closing.is_none()) else {
                continue;
            };
            if place.is_some_and(|place| place.session != index) {
                continue;
            }
            for lane in &mut open.lanes {
                // An error shows at the next poll of the lane.
                ready |= lane.link().arm().unwrap_or(true);
            }
        }
        ready
    }
}
