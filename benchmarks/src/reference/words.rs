//! A second loop over shared memory, by other means than the baseline's: words of this process's own memory, read and written
//! one atomic at a time, and the standard library's own parking.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, Thread},
    time::Instant,
};

use anyhow::{Result, ensure};

use super::Reference;
use crate::{
    latencies::Latencies,
    stage::{Cpus, pin},
};

/// Round trips, spinning and parking; a tenth more go before.
const SPINS: u64 = 100_000;
const PARKS: u64 = 5_000;

/// A message: its first word says whose turn it is, the payload's words follow.
struct Mailbox {
    lines: Box<[Line]>,
    words: usize,
}

const LINE_WORDS: usize = 8;

/// A cache line, away from its neighbours: processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Line([AtomicU64; LINE_WORDS]);

/// Both ends spin.
pub(super) fn spinning(payload: usize, cpus: Cpus) -> Result<Reference> {
    let p50 = measure(payload, cpus, SPINS, false)?;
    Ok(Reference::measured("second loop, atomic words", p50))
}

/// Both ends park their thread, which is a futex of the standard library's own.
pub(super) fn parking(payload: usize, cpus: Cpus) -> Result<Reference> {
    let p50 = measure(payload, cpus, PARKS, true)?;
    Ok(Reference::measured("second loop, thread::park", p50))
}

fn measure(payload: usize, cpus: Cpus, trips: u64, parks: bool) -> Result<u64> {
    let mailboxes = Arc::new([Mailbox::new(payload), Mailbox::new(payload)]);
    let (theirs, caller) = (mailboxes.clone(), thread::current());
    let warm_up = trips / 10;
    let peer = thread::spawn(move || -> Result<()> {
        pin(cpus.worker)?;
        for turn in 1..=trips + warm_up {
            let value = theirs[0].take(turn, parks);
            theirs[1].give(turn, value, parks.then_some(&caller));
        }
        Ok(())
    });
    let mut latencies = Latencies::new()?;
    for turn in 1..=trips + warm_up {
        let began = Instant::now();
        mailboxes[0].give(turn, turn, parks.then(|| peer.thread()));
        let value = mailboxes[1].take(turn, parks);
        if turn > warm_up {
            latencies.record(began.elapsed());
        }
        ensure!(value == turn, "the second loop's reply is not what was sent");
    }
    peer.join().map_err(|_| anyhow::anyhow!("the second loop's peer panicked"))??;
    Ok(latencies.p50())
}

impl Mailbox {
    fn new(payload: usize) -> Self {
        let words = payload.div_ceil(size_of::<u64>());
        let lines = (1 + words).div_ceil(LINE_WORDS);
        Self { lines: (0..lines).map(|_| Line::default()).collect(), words }
    }

    fn turn(&self) -> &AtomicU64 {
        &self.lines[0].0[0]
    }

    fn payload(&self) -> impl Iterator<Item = &AtomicU64> {
        self.lines.iter().flat_map(|line| &line.0).skip(1).take(self.words)
    }

    fn give(&self, turn: u64, value: u64, wake: Option<&Thread>) {
        self.payload().for_each(|word| word.store(value, Ordering::Relaxed));
        self.turn().store(turn, Ordering::Release);
        if let Some(thread) = wake {
            thread.unpark();
        }
    }

    /// Waits for the turn; returns the value that every word has.
    fn take(&self, turn: u64, parks: bool) -> u64 {
        while self.turn().load(Ordering::Acquire) != turn {
            if parks {
                thread::park();
            }
        }
        self.payload().fold(u64::MAX, |all, word| all & word.load(Ordering::Relaxed))
    }
}
