//! How the main thread reaches a lane: a bounded queue, a word that a spinning lane looks at for nothing, and two ways to wake a
//! sleeping one: the word itself, and an eventfd.
#![forbid(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
        mpsc,
    },
};

use gleaner_fabric::{AnyLink, futex};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Shared, tune::MAIL_MAX};

/// What a lane is told.
pub(super) enum Mail {
    /// First: what all lanes share.
    Start(&'static Shared),
    /// Serve this link.
    Add { session: u16, hot: u64, link: AnyLink },
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
    word: AtomicU32,
    wake: EventFd,
}

/// The bell's word: nothing to be told, or something.
const QUIET: u32 = 0;
const RUNG: u32 = 1;

/// The lane has not looked for [`MAIL_MAX`] records, or is gone.
#[derive(Debug, thiserror::Error)]
#[error("the lane does not take its mail: its function does not return")]
pub struct Full;

pub(super) fn mailbox() -> io::Result<(Sender, Receiver)> {
    let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let bell = Arc::new(Bell { word: AtomicU32::new(QUIET), wake });
    let (sender, receiver) = mpsc::sync_channel(MAIL_MAX);
    Ok((Sender { queue: sender, bell: Arc::clone(&bell) }, Receiver { queue: receiver, bell }))
}

impl Sender {
    /// Never blocks.
    pub(super) fn send(&self, mail: Mail) -> Result<(), Full> {
        self.queue.try_send(mail).map_err(|_| Full)?;
        self.bell.word.store(RUNG, Ordering::Release);
        futex::wake(&self.bell.word);
        // An eventfd that is full is readable already.
        let _ = self.bell.wake.write(1);
        Ok(())
    }
}

impl Receiver {
    /// True if there may be mail. One load.
    #[inline]
    pub(super) fn rung(&self) -> bool {
        self.bell.word.load(Ordering::Relaxed) != QUIET
    }

    /// The next record. `None` means that the bell is quiet and the queue was empty after that.
    pub(super) fn next(&self) -> Option<Mail> {
        if let Ok(mail) = self.queue.try_recv() {
            return Some(mail);
        }
        let _ = self.bell.wake.read();
        self.bell.word.swap(QUIET, Ordering::AcqRel);
        self.queue.try_recv().ok()
    }

    /// Sleeps until there is a record; `None` if none can come any more.
    pub(super) fn wait(&self) -> Option<Mail> {
        self.queue.recv().ok()
    }

    /// What to sleep on for a short while, and what it holds while there is no mail.
    pub(super) fn wake_word(&self) -> (&AtomicU32, u32) {
        (&self.bell.word, QUIET)
    }

    /// What to sleep on for longer.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.bell.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use gleaner_fabric::futex::Words;

    use super::*;

    #[test]
    fn mail_wakes_who_sleeps_on_the_word() {
        const RECORDS: u64 = 10_000;
        let (sender, receiver) = mailbox().unwrap();
        let lane = thread::spawn(move || {
            for expected in 0..RECORDS {
                let mail = loop {
                    if let Some(mail) = receiver.next() {
                        break mail;
                    }
                    let mut sleep = Words::new();
                    sleep.push(receiver.wake_word());
                    assert!(sleep.wait(Duration::from_secs(60)).unwrap(), "slept over its mail");
                };
                assert!(matches!(mail, Mail::SetHot { hot, .. } if hot == expected));
            }
        });
        for hot in 0..RECORDS {
            while sender.send(Mail::SetHot { session: 0, hot }).is_err() {
                thread::yield_now();
            }
        }
        lane.join().unwrap();
    }
}
