//! How a caller waits, and what it sees to meanwhile: control streams, deadlines, renewals, queued calls, new leases.
//!
//! A sleep begins on the lanes' own words, where all have one: being woken there costs least, and the end of their lease wakes it too. One
//! that lasts goes on in poll(2) over lanes and control streams.

use std::time::{Duration, Instant};

use gleaner_fabric::{
    Link, LinkError,
    futex::{WORDS_MAX, Words},
};
use gleaner_proto::v1::from_agent::Message;
use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::{
    calls::{Calls, Place},
    lane::Lane,
    request::{KeepAlive, Waiting},
    spin::Next,
    tune::{DOZE, SLEEP_MAX, VERDICT_BOUND},
};

/// Room for what one sleep looks at: empty between two.
pub(crate) type Wakers = Vec<PollFd<'static>>;

impl Calls {
    /// Nothing was there: spins or sleeps a little, for one place or for all of them, and sees to the rest when due.
    pub(crate) fn idle(&mut self, place: Option<Place>, due: Option<Instant>) {
        match self.spin.next() {
            Next::Look => return,
            Next::Service if self.live() > 0 => return self.service(Instant::now()),
            Next::Service | Next::Sleep => {}
        }
        if !self.queue.is_empty() {
            self.service(Instant::now());
            if self.queue.is_empty() {
                return;
            }
        }
        if self.sleep(place, due) || self.spin.overdue() {
            self.service(Instant::now());
        }
    }

    /// Sees to the rest about once a millisecond.
    #[inline]
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
        if let Some(closing) = closing
            && closing.0.elapsed() >= VERDICT_BOUND
        {
            self.evict(session, None, &closing.1);
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

    /// Sleeps until a lane or a control stream has something, a deadline is over, or a short while. False if only lanes have.
    fn sleep(&mut self, place: Option<Place>, due: Option<Instant>) -> bool {
        match self.may_doze(place) {
            true => self.doze(place, due),
            false => self.sleep_long(place, due),
        }
    }

    /// Whether answers alone are waited for, are likely to come soon, and come by words.
    fn may_doze(&self, place: Option<Place>) -> bool {
        let has_word = |lane: &Lane| lane.link_ref().wait_word().is_some();
        self.spin.dozes() && self.is_settled() && self.all_intact(place) && {
            let lanes = self.lanes_at(place).count();
            (1..=WORDS_MAX).contains(&lanes) && self.lanes_at(place).all(has_word)
        }
    }

    /// No lane's lease has ended: such a lane wakes nobody any more, and its verdicts come over the control stream.
    fn all_intact(&self, place: Option<Place>) -> bool {
        self.lanes_at(place).all(|lane| lane.link_ref().intact())
    }

    fn doze(&mut self, place: Option<Place>, due: Option<Instant>) -> bool {
        // Looked at again after arming: whoever takes a lane's memory back says so first, and then wakes who has armed.
        if self.arm_by(place, |link| link.arm_word()) || !self.all_intact(place) {
            return false;
        }
        let mut words = Words::new();
        for word in self.lanes_at(place).filter_map(|lane| lane.link_ref().wait_word()) {
            words.push(word);
        }
        // A kernel that refuses several is too old: poll(2) is there for it.
        let woken = words.wait(at_most(DOZE, due)).unwrap_or(false);
        if !woken {
            self.spin.dozed();
        }
        !woken
    }

    fn sleep_long(&mut self, place: Option<Place>, due: Option<Instant>) -> bool {
        if self.arm(place) {
            return false;
        }
        let mut wakers = emptied(std::mem::take(&mut self.wakers));
        let open = self.sessions.iter().flatten();
        wakers.extend(open.map(|open| PollFd::new(open.control.fd(), PollFlags::POLLIN)));
        let controls = wakers.len();
        wakers.extend(self.lanes_at(place).filter_map(|lane| {
            let flags = match lane.link_ref().unsent() {
                true => PollFlags::POLLIN | PollFlags::POLLOUT,
                false => PollFlags::POLLIN,
            };
            Some(PollFd::new(lane.link_ref().wait_fd()?, flags))
        }));
        let most = if self.is_settled() { SLEEP_MAX } else { Duration::from_millis(5) };
        let millis = at_most(most, due).as_millis() as u16 + 1;
        // A signal or an error ends the sleep early; the caller looks at everything again either way.
        let woken = nix::poll::poll(&mut wakers, PollTimeout::from(millis)).unwrap_or(0);
        let by_lanes = wakers[controls..].iter().filter(|waker| waker.any() == Some(true)).count();
        self.wakers = emptied(wakers);
        woken == 0 || by_lanes < woken as usize
    }

    /// No call waits for a slot, and no session for its verdicts.
    fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.sessions.iter().flatten().all(|open| open.closing.is_none())
    }

    /// The live lanes that can have something for who waits: one lane, or all.
    fn lanes_at(&self, place: Option<Place>) -> impl Iterator<Item = &Lane> {
        let live = self.sessions.iter().enumerate().filter_map(|(at, open)| {
            open.as_ref().filter(|open| open.closing.is_none()).map(|open| (at, open))
        });
        live.flat_map(move |(session, open)| {
            open.lanes.iter().enumerate().filter_map(move |(lane, found)| {
                place.is_none_or(|at| (at.session(), at.lane()) == (session, lane)).then_some(found)
            })
        })
    }

    /// Asks lanes for wake-ups by their descriptors; true if one has something already.
    pub(crate) fn arm(&mut self, place: Option<Place>) -> bool {
        self.arm_by(place, |link| link.arm())
    }

    fn arm_by(
        &mut self,
        place: Option<Place>,
        arm: impl Fn(&mut dyn Link) -> Result<bool, LinkError>,
    ) -> bool {
        let mut ready = false;
        for (session, open) in self.sessions.iter_mut().enumerate() {
            let Some(open) = open.as_mut().filter(|open| open.closing.is_none()) else {
                continue;
            };
            for (lane, found) in open.lanes.iter_mut().enumerate() {
                if place.is_none_or(|at| (at.session(), at.lane()) == (session, lane)) {
                    // An error shows at the next poll of the lane.
                    ready |= arm(found.link()).unwrap_or(true);
                }
            }
        }
        ready
    }

    /// Whether a look at this place's lane would find nothing, and a sleep is what follows.
    pub(crate) fn is_emptied(&self, place: Place) -> bool {
        self.spin.is_warm() && self.lanes_at(Some(place)).all(|lane| lane.link_ref().emptied())
    }
}

/// What is left until `due`, and no more than `most`.
fn at_most(most: Duration, due: Option<Instant>) -> Duration {
    due.map_or(most, |due| due.saturating_duration_since(Instant::now()).min(most))
}

/// The same room without what was in it: collecting a vector's own elements allocates nothing.
fn emptied<'b>(mut wakers: Vec<PollFd<'_>>) -> Vec<PollFd<'b>> {
    wakers.clear();
    wakers.into_iter().map_while(|_| None).collect()
}
