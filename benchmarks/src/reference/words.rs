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
    memory: Box<[AtomicU64]>,
    /// The first word: at the start of two cache lines, which processors fetch together.
    first: usize,
    /// Words of payload.
    words: usize,
}

const PAIR_BYTES: usize = 128;
const PAIR_WORDS: usize = PAIR_BYTES / size_of::<u64>();

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
        let room = (1 + words).next_multiple_of(PAIR_WORDS) + PAIR_WORDS;
        let memory: Box<[_]> = (0..room).map(|_| AtomicU64::new(0)).collect();
        let first = memory.as_ptr().align_offset(PAIR_BYTES);
        Self { memory, first, words }
    }

    fn turn(&self) -> &AtomicU64 {
        &self.memory[self.first]
    }

    fn payload(&self) -> &[AtomicU64] {
        &self.memory[self.first + 1..][..self.words]
    }

    fn give(&self, turn: u64, value: u64, wake: Option<&Thread>) {
        self.payload().iter().for_each(|word| word.store(value, Ordering::Relaxed));
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
        self.payload().iter().fold(u64::MAX, |all, word| all & word.load(Ordering::Relaxed))
    }
}
