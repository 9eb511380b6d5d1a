//! How the main thread reaches a lane: a bounded queue, a flag that a spinning lane looks at for nothing, and an eventfd that
//! wakes a sleeping one.
#![forbid(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use gleaner_fabric::Link;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Shared, tune::MAIL_MAX};

/// What a lane is told.
pub(super) enum Mail {
    /// First: what all lanes share.
    Start(&'static Shared),
    /// Serve this link.
    Add { session: u16, hot: u64, link: Box<dyn Link> },
    /// Look for calls of this session for so many ticks after each one, before sleeping.
    SetHot { session: u16, hot: u64 },
    /// Close the links of this session.
    Drop { session: u16 },
    /// End.
    Finish,
}

pub(super) struct Sender {
    queue: mpsc::SyncSender<Mail>,
    bell: Arc<Bell>,
}

pub(super) struct Receiver {
    queue: mpsc::Receiver<Mail>,
    bell: Arc<Bell>,
}

struct Bell {
    rung: AtomicBool,
    wake: EventFd,
}

/// The lane has not looked for [`MAIL_MAX`] records, or is gone.
#[derive(Debug, thiserror::Error)]
#[error("the lane does not take its mail: its function does not return")]
pub struct Full;

pub(super) fn mailbox() -> io::Result<(Sender, Receiver)> {
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let bell = Arc::new(Bell { rung: AtomicBool::new(false), wake });
    let (sender, receiver) = mpsc::sync_channel(MAIL_MAX);
    Ok((Sender { queue: sender, bell: Arc::clone(&bell) }, Receiver { queue: receiver, bell }))
}

impl Sender {
    /// Never blocks.
    pub(super) fn send(&self, mail: Mail) -> Result<(), Full> {
        self.queue.try_send(mail).map_err(|_| Full)?;
        self.bell.rung.store(true, Ordering::Release);
        // An eventfd that is full is readable already.
        let _ = self.bell.wake.write(1);
        Ok(())
    }
}

impl Receiver {
    /// True if there may be mail. One load.
    pub(super) fn rung(&self) -> bool {
        self.bell.rung.load(Ordering::Relaxed)
    }

    /// The next record. `None` means that the flag is lowered and the queue was empty after that.
    pub(super) fn next(&self) -> Option<Mail> {
        if let Ok(mail) = self.queue.try_recv() {
            return Some(mail);
        }
        let _ = self.bell.wake.read();
        self.bell.rung.swap(false, Ordering::AcqRel);
        self.queue.try_recv().ok()
    }

    /// Sleeps until there is a record; `None` if none can come any more.
    pub(super) fn wait(&self) -> Option<Mail> {
        self.queue.recv().ok()
    }

    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.bell.wake.as_fd()
    }
}
