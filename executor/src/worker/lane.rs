//! A lane: one pinned thread of the worker, which serves its links in turn. The loop below is the worker's hot path.
//!
//! ```text
//! mail? ─▶ each link: poll ─▶ wanted? ─▶ board: started ─▶ function ─▶ board: finished ─▶ reply
//!   ▲            nothing anywhere: spin (hot) or sleep (warm) ─────────────────────────────┘
//! ```
//!
//! A sleep begins on the links' own words, where all have one: being woken there costs least. One that lasts goes on in poll(2),
//! which sees killed peers too and wakes up for nothing else.
#![forbid(unsafe_code)]

use std::time::Duration;

use gleaner_fabric::{
    AnyLink, Link, LinkError,
    futex::{WORDS_MAX, Words},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    Shared,
    call::{Runner, Serving},
    fault,
    ipc::{self, FromWorker},
    mailbox::{Mail, Receiver},
    meter::Meter,
    tune::{DOZE, EAGER_LOOKS, LOOKS_PER_CLOCK},
};
use crate::board::{SESSIONS_MAX, Slots};

struct Lane {
    number: u16,
    shared: &'static Shared,
    mail: Receiver,
    links: Vec<Served>,
    runner: Runner,
    meter: Meter,
    /// The longest of its links' `hot`.
    hot: u64,
    /// Looks at all links since a call was found.
    empty_looks: u32,
    /// All links and the mailbox can be slept for by their words, and the kernel knows how.
    has_words: bool,
    /// It has slept by words since the last call, for as long as is worth it.
    dozed: bool,
}

struct Served {
    session: u16,
    /// Ticks to look for its calls after the last one; 0: sleep at once.
    hot: u64,
    slots: Slots<'static>,
    link: AnyLink,
}

/// Waits for the first mail, then serves until it is told to finish.
pub(super) fn run(number: u16, mail: Receiver) {
    let Some(Mail::Start(shared)) = mail.wait() else { return };
    let Some(counters) = shared.board.counters(number) else { return };
    let mut lane = Lane {
        number,
        shared,
        mail,
        links: Vec::with_capacity(usize::from(SESSIONS_MAX)),
        runner: Runner::new(shared, number),
        meter: Meter::new(counters, shared.clock),
        hot: 0,
        empty_looks: 0,
        has_words: false,
        dozed: false,
    };
    lane.serve();
    lane.runner.finish();
}

impl Lane {
    fn serve(&mut self) {
        loop {
            if self.mail.rung() {
                if self.take_mail().is_break() {
                    return;
                }
                self.settle();
            }
            let mut found = false;
            let mut index = 0;
            while index < self.links.len() {
                match self.serve_link(index) {
                    Ok(call) => {
                        found |= call;
                        index += 1;
                    }
                    Err(error) => self.close(index, &error.to_string()),
                }
            }
            if found {
                self.empty_looks = 0;
                self.dozed = false;
                if self.looks_again() {
                    continue;
                }
            }
            if !self.spins() {
                self.sleep();
            }
        }
    }

    /// Serves one call of one link, if there is one; or all that are there, if no other link waits.
    #[inline]
    fn serve_link(&mut self, index: usize) -> Result<bool, Box<LinkError>> {
        let alone = (self.links.len() == 1).then_some(&self.mail);
        let Served { session, slots, link, .. } = &mut self.links[index];
        let (runner, meter, slots) = (&mut self.runner, &mut self.meter, *slots);
        fault::serve(*session, self.number);
        match link {
            AnyLink::Shm(link) => serve_calls(&mut **link, runner, slots, meter, alone),
            AnyLink::Rdma(link) => serve_calls(&mut **link, runner, slots, meter, alone),
            AnyLink::Tcp(link) => serve_calls(&mut **link, runner, slots, meter, alone),
        }
    }

    /// Its links have changed.
    fn settle(&mut self) {
        self.hot = self.links.iter().map(|served| served.hot).max().unwrap_or(0);
        let with_words = self.links.iter().filter(|served| served.link.wait_word().is_some());
        self.has_words = with_words.count() == self.links.len() && self.links.len() < WORDS_MAX;
    }

    /// A call was found: are there others, as far as is known?
    fn looks_again(&self) -> bool {
        self.hot > 0 || !self.links.iter().all(|served| served.link.emptied())
    }

    /// Nothing was found: look again at once?
    fn spins(&mut self) -> bool {
        self.empty_looks = self.empty_looks.wrapping_add(1);
        if self.hot == 0 {
            return false;
        }
        if self.empty_looks > EAGER_LOOKS {
            std::hint::spin_loop();
        }
        !self.empty_looks.is_multiple_of(LOOKS_PER_CLOCK) || self.meter.idle() < self.hot
    }

    /// Sleeps until a link or the mailbox has something.
    fn sleep(&mut self) {
        let dozes = self.has_words && !self.dozed;
        for served in &mut self.links {
            let armed = if dozes { served.link.arm_word() } else { served.link.arm() };
            match armed {
                Ok(false) => {}
                // The next look finds the call, or the error again.
                Ok(true) | Err(_) => return,
            }
        }
        if self.mail.rung() {
            return;
        }
        self.meter.pause();
        if dozes {
            self.doze();
        } else {
            self.sleep_long();
        }
        self.meter.resume();
    }

    fn doze(&mut self) {
        let mut words = Words::new();
        words.push(self.mail.wake_word());
        for word in self.links.iter().filter_map(|served| served.link.wait_word()) {
            words.push(word);
        }
        // A kernel that refuses is too old: poll(2) is there for it.
        self.dozed = !words.wait(DOZE).unwrap_or(false);
    }

    fn sleep_long(&self) {
        let mail = self.mail.wake_fd();
        let mut sleep =
            [(); SESSIONS_MAX as usize + 1].map(|()| PollFd::new(mail, PollFlags::POLLIN));
        let mut count = 1;
        for served in &self.links {
            let Some(fd) = served.link.wait_fd() else { continue };
            let write = if served.link.unsent() { PollFlags::POLLOUT } else { PollFlags::empty() };
            sleep[count] = PollFd::new(fd, PollFlags::POLLIN | write);
            count += 1;
        }
        // Interrupted or refused: the next look decides, and the next sleep tries again.
        let _ = poll(&mut sleep[..count], PollTimeout::NONE);
    }

    fn take_mail(&mut self) -> std::ops::ControlFlow<()> {
        while let Some(mail) = self.mail.next() {
            match mail {
                Mail::Add { session, .. } if self.links.len() == usize::from(SESSIONS_MAX) => {
                    self.tell_closed(session, "the lane serves as many links as it may");
                }
                Mail::Add { session, hot, link } => {
                    match self.shared.board.slots(session, self.number) {
                        Some(slots) => self.links.push(Served { session, hot, slots, link }),
                        None => self.tell_closed(session, "the board has no such session"),
                    }
                }
                Mail::SetHot { session, hot } => {
                    let own = self.links.iter_mut().filter(|served| served.session == session);
                    own.for_each(|served| served.hot = hot);
                }
                Mail::Drop { session } => {
                    while let Some(index) =
                        self.links.iter().position(|served| served.session == session)
                    {
                        self.close(index, "its session has ended");
                    }
                }
                Mail::Start(_) => {}
                Mail::Finish => return std::ops::ControlFlow::Break(()),
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    fn close(&mut self, index: usize, why: &str) {
        let served = self.links.swap_remove(index);
        self.settle();
        self.tell_closed(served.session, why);
    }

    fn tell_closed(&self, session: u16, why: &str) {
        let message = why.to_owned();
        let record = FromWorker::LinkClosed { session, lane: self.number, message };
        // An agent that is gone is the main thread's to notice.
        let _ = ipc::send_patiently(&self.shared.agent, &record, Duration::from_secs(1));
    }
}

/// The hot path, compiled as one for each kind of link. Serves one call; those of a link that is alone one after the other, until there
/// is none, or mail.
#[inline(never)]
fn serve_calls(
    link: &mut impl Link,
    runner: &mut Runner,
    slots: Slots<'static>,
    meter: &mut Meter,
    alone: Option<&Receiver>,
) -> Result<bool, Box<LinkError>> {
    let mut found = false;
    loop {
        let mut serving = Serving::new(runner, slots);
        let served = link.serve_with(&mut serving);
        serving.note(meter);
        if !served? {
            return Ok(found);
        }
        found = true;
        if alone.is_none_or(Receiver::rung) {
            return Ok(true);
        }
    }
}
