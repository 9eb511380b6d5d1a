//! Buries the children that have ended, on a thread of its own in the ordinary class.
//!
//! Reaping removes the child's part of `/proc`, and the kernel spins until nobody else removes something there. That may
//! be a thread in the idle class that this keeper has just interrupted: a reaper in a real-time class would keep it from
//! ever getting on, and with it a whole core from the node's jobs.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    thread,
};

use super::log::say;
use crate::sys::{self, DescriptorReceiver, DescriptorSender};

/// Little: its memory is locked.
const STACK_BYTES: usize = 64 << 10;

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Reaper {
    dead: DescriptorSender,
}

impl Reaper {
    /// Starts the thread: it does not inherit a real-time class, see [`sys::become_realtime`], but does inherit that the
    /// keeper's signals are blocked.
    pub(super) fn start() -> io::Result<Self> {
        let (dead, receiver) = sys::descriptor_pipe()?;
        let thread = thread::Builder::new().name("reaper".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || reap_all(&receiver))?;
        Ok(Self { dead })
    }

    /// Has a child reaped that has ended.
    pub(super) fn bury(&self, pidfd: OwnedFd) {
        if let Err(error) = self.dead.send(pidfd) {
            say(format_args!("an ended process stays a zombie until the keeper ends: {error}"));
        }
    }
}

fn reap_all(dead: &DescriptorReceiver) {
    while let Some(pidfd) = dead.receive() {
        sys::reap(pidfd.as_fd());
    }
}
