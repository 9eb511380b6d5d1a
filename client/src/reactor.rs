//! One descriptor for all that a pool waits for: an epoll over its lanes' and control streams' descriptors, and a bell of its own.
//!
//! Used by [`crate::progress`]. It tells that there is something, never what: who is woken looks at everything. All is watched
//! by level, so that whether something is left can be asked at any time.

use std::{
    cell::{Cell, RefCell},
    io,
    os::fd::{AsFd, BorrowedFd},
};

use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::{EfdFlags, EventFd},
};

use crate::{lane::Lane, session::Session};

/// The descriptor, and what it watches.
pub(crate) struct Reactor {
    epoll: Epoll,
    bell: EventFd,
    rung: Cell<bool>,
    watched: RefCell<Vec<Option<Watched>>>,
}

/// What is watched of one session.
struct Watched {
    lease_id: u64,
    control: bool,
    lanes: Vec<Option<EpollFlags>>,
}

impl Reactor {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        epoll.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let (rung, watched) = (Cell::new(false), RefCell::default());
        Ok(Self { epoll, bell, rung, watched })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }

    /// Makes the descriptor readable until it is quieted.
    pub(crate) fn ring(&self) {
        if !self.rung.replace(true) {
            // Adding one to a counter that was just read to nothing cannot fail.
            let _ = self.bell.write(1);
        }
    }

    /// Ends the ringing.
    pub(crate) fn quiet(&self) {
        if self.rung.replace(false) {
            let _ = self.bell.read();
        }
    }

    /// Whether something waits to be read.
    pub(crate) fn is_ready(&self) -> bool {
        let mut event = [EpollEvent::empty()];
        self.epoll.wait(&mut event, EpollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Watches what these sessions wait for; false if something of it cannot be watched. What a session that is gone had has
    /// left by itself: the kernel forgets a descriptor that is closed.
    pub(crate) fn watch(&self, sessions: &[Option<Session>]) -> bool {
        let mut watched = self.watched.borrow_mut();
        watched.resize_with(sessions.len(), || None);
        let mut all = true;
        for (place, session) in watched.iter_mut().zip(sessions) {
            let Some(open) = session else {
                *place = None;
                continue;
            };
            if place.as_ref().is_some_and(|known| known.lease_id != open.lease.lease_id) {
                *place = None;
            }
            let known = place.get_or_insert_with(|| Watched {
                lease_id: open.lease.lease_id,
                control: false,
                lanes: vec![None; open.lanes.len()],
            });
            all &= self.watch_session(known, open);
        }
        all
    }

    fn watch_session(&self, known: &mut Watched, open: &Session) -> bool {
        if !known.control {
            known.control = self.change(open.control.fd(), None, Some(EpollFlags::EPOLLIN));
        }
        let mut all = known.control;
        for (flags, lane) in known.lanes.iter_mut().zip(&open.lanes) {
            // A dead lane stays readable for ever, and has nothing more to say.
            let wanted = open.closing.is_none().then(|| wanted(lane));
            if *flags == wanted {
                continue;
            }
            match lane.link_ref().wait_fd() {
                Some(fd) if self.change(fd, *flags, wanted) => *flags = wanted,
                _ => all = false,
            }
        }
        all
    }

    /// Changes what one descriptor is watched for; false if the system refused.
    fn change(
        &self,
        fd: BorrowedFd<'_>,
        now: Option<EpollFlags>,
        then: Option<EpollFlags>,
    ) -> bool {
        let done = match (now, then) {
            (None, None) => Ok(()),
            (None, Some(flags)) => self.epoll.add(fd, EpollEvent::new(flags, 0)),
            (Some(_), Some(flags)) => self.epoll.modify(fd, &mut EpollEvent::new(flags, 0)),
            (Some(_), None) => self.epoll.delete(fd),
        };
        done.is_ok()
    }
}

/// What a live lane waits for.
fn wanted(lane: &Lane) -> EpollFlags {
    match lane.link_ref().unsent() {
        true => EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT,
        false => EpollFlags::EPOLLIN,
    }
}
