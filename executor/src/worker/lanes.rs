//! The lanes' threads: started and pinned before the sandbox closes, told of links afterwards.
#![forbid(unsafe_code)]

use std::{io, process, sync::mpsc, thread};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use super::{
    fault, lane,
    mailbox::{Full, Mail, Receiver, Sender, mailbox},
    tune::STACK_BYTES,
};
use crate::sys;

/// All lanes, by number.
pub(super) struct Lanes {
    lanes: Vec<(Sender, thread::JoinHandle<()>)>,
}

impl Lanes {
    /// Starts one thread a core and pins it; returns when all are pinned.
    pub(super) fn start(cores: &[u16]) -> io::Result<Self> {
        let lanes = (0u16..).zip(cores).map(|(number, core)| start(number, *core));
        Ok(Self { lanes: lanes.collect::<io::Result<_>>()? })
    }

    pub(super) fn count(&self) -> u16 {
        self.lanes.len() as u16
    }

    /// Tells one lane; there is one of that number.
    pub(super) fn tell(&self, lane: u16, mail: Mail) -> Result<(), Full> {
        self.lanes[usize::from(lane)].0.send(mail)
    }

    pub(super) fn tell_all(&self, mail: impl Fn() -> Mail) -> Result<(), Full> {
        self.lanes.iter().try_for_each(|(sender, _)| sender.send(mail()))
    }

    /// Ends all lanes and waits for them. A function that does not return keeps this from returning: the keeper's deadline
    /// ends it.
    pub(super) fn finish(self) {
        for (sender, _) in &self.lanes {
            // A lane whose mailbox is full hangs, and the wait for it ends with the lease.
            let _ = sender.send(Mail::Finish);
        }
        for (_, thread) in self.lanes {
            // A lane that panicked has ended the process.
            let _ = thread.join();
        }
    }
}

fn start(number: u16, core: u16) -> io::Result<(Sender, thread::JoinHandle<()>)> {
    let (sender, receiver) = mailbox()?;
    let (tell, told) = mpsc::sync_channel(1);
    let body = move || {
        let ready = pin(core).and_then(|()| fault::use_own_stack());
        let serves = ready.is_ok();
        // Idle only now: on a busy node the start would otherwise wait for a moment that nobody else wants.
        if tell.send(ready).is_ok() && serves && sys::become_idle().is_ok() {
            serve(number, receiver);
        }
    };
    let thread = thread::Builder::new()
        .name(format!("lane-{number}"))
        .stack_size(STACK_BYTES)
        .spawn(body)?;
    told.recv().map_err(io::Error::other)??;
    Ok((sender, thread))
}

/// A lane that ends by a panic takes the process with it: its calls must not wait for ever.
fn serve(number: u16, receiver: Receiver) {
    struct AbortOnPanic;
    impl Drop for AbortOnPanic {
        fn drop(&mut self) {
            if thread::panicking() {
                process::abort();
            }
        }
    }
    let _abort = AbortOnPanic;
    lane::run(number, receiver);
}

fn pin(core: u16) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(usize::from(core))?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
