//! A second loop over shared memory, by other means than the baseline's: this process's own memory, a turn instead of a flag a
//! message, and the standard library's own parking.
// UNSAFETY: two threads share plain memory, by a word that says whose turn it is.
#![allow(unsafe_code)]

use std::{
    cell::UnsafeCell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, Thread},
    time::Instant,
};

use anyhow::{Result, ensure};

use crate::{
    latencies::Latencies,
    stage::{Cpus, pin},
};

/// Round trips, spinning and parking; a tenth more go before.
const SPINS: u64 = 20_000;
const PARKS: u64 = 2_000;

/// A message: whose turn it is, and the payload behind it. What processors fetch together holds nothing else.
#[repr(C, align(128))]
struct Mailbox {
    turn: AtomicU64,
    payload: UnsafeCell<[u8; PAYLOAD_MAX]>,
}

/// The largest payload that it is asked for.
const PAYLOAD_MAX: usize = 4096;

// SAFETY: the payload belongs to whose turn it is.
unsafe impl Sync for Mailbox {}

/// Both ends spin.
pub(super) fn spinning(payload: usize, cpus: Cpus) -> Result<Option<u64>> {
    measure(payload, cpus, SPINS, false).map(Some)
}

/// Both ends park their thread, which is a futex of the standard library's own.
pub(super) fn parking(payload: usize, cpus: Cpus) -> Result<Option<u64>> {
    measure(payload, cpus, PARKS, true).map(Some)
}

fn measure(payload: usize, cpus: Cpus, trips: u64, parks: bool) -> Result<u64> {
    ensure!(payload <= PAYLOAD_MAX, "the second loop has no room for {payload} bytes");
    let mailboxes = Arc::new([Mailbox::new(), Mailbox::new()]);
    let (theirs, caller) = (mailboxes.clone(), thread::current());
    let trips_and_warm_up = trips + trips / 10;
    let peer = thread::spawn(move || -> Result<()> {
        pin(cpus.worker)?;
        let [requests, replies] = &*theirs;
        for turn in 1..=trips_and_warm_up {
            replies.give(requests.take(turn, payload, parks), turn, parks.then_some(&caller));
        }
        Ok(())
    });
    let [requests, replies] = &*mailboxes;
    let (mut input, mut output) = (vec![0; payload], vec![0; payload]);
    let mut latencies = Latencies::new()?;
    for turn in 1..=trips_and_warm_up {
        input[0] = turn as u8;
        let began = Instant::now();
        requests.give(&input, turn, parks.then(|| peer.thread()));
        output.copy_from_slice(replies.take(turn, payload, parks));
        if turn > trips / 10 {
            latencies.record(began.elapsed());
        }
        ensure!(input == output, "the second loop's reply is not what was sent");
    }
    peer.join().map_err(|_| anyhow::anyhow!("the second loop's peer panicked"))??;
    Ok(latencies.p50())
}

impl Mailbox {
    fn new() -> Self {
        Self { turn: AtomicU64::new(0), payload: UnsafeCell::new([0; PAYLOAD_MAX]) }
    }

    /// By who has the turn: who gave or took last.
    fn give(&self, bytes: &[u8], turn: u64, wake: Option<&Thread>) {
        // SAFETY: the other end has taken what was given before, and looks at nothing until the turn says so.
        let payload = unsafe { &mut *self.payload.get() };
        payload[..bytes.len()].copy_from_slice(bytes);
        self.turn.store(turn, Ordering::Release);
        if let Some(thread) = wake {
            thread.unpark();
        }
    }

    /// Waits for the turn; the payload is as it was given until the answer is.
    fn take(&self, turn: u64, len: usize, parks: bool) -> &[u8] {
        while self.turn.load(Ordering::Acquire) != turn {
            if parks {
                thread::park();
            }
        }
        // SAFETY: the other end waits for its answer, and writes nothing until then.
        let payload = unsafe { &*self.payload.get() };
        &payload[..len]
    }
}
