//! Raw baselines: the transport alone, without slots, leases or anybody's checks. One file a transport.
//!
//! A baseline has two ends: this thread, and a peer on the worker's CPU that does to the payload what the worker's function
//! does. Both touch every byte: the payload is copied into the transport and out of it on either side.

pub mod copy;
pub mod crowd;
mod futex;
mod shm;
mod tcp_blocking;
mod tcp_busy;
pub(crate) mod verbs;

use anyhow::{Result, ensure};

pub(crate) use self::shm::stride;
use crate::{
    caller::{PIPELINED_BYTES, check, pipeline},
    moment::Moment,
    rounds::Sample,
    stage::Trips,
};

/// A baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raw {
    /// Cache lines in a shared mapping; both ends spin.
    Shm,
    /// The same mapping; both ends sleep on a futex.
    Futex,
    /// A loopback socket that both ends poll without pause.
    TcpBusy,
    /// A loopback socket on which both ends sleep.
    TcpBlocking,
    /// Writes with an immediate between two queue pairs; both ends poll.
    Verbs,
    /// The same; both ends sleep on a completion channel.
    VerbsEvents,
}

/// What the peer does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Sends it back.
    Echo,
    /// Sends back the wrapping sum of its little-endian u64s.
    Sum,
    /// Sends back that of a word here and there, its first and its last among them; and who sends writes no others. As little
    /// as what others measure by touches, and enough to know that the payload has come.
    Sample,
}

/// The messages of one baseline.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Bytes of a request.
    pub request: usize,
    /// What the peer does.
    pub work: Work,
    /// Requests under way at a time.
    pub depth: usize,
    /// The peer's CPU.
    pub cpu: usize,
}

/// This thread's end. Messages come back in the order in which they were sent.
pub(crate) trait Transport {
    fn send(&mut self, request: &[u8]) -> Result<()>;
    fn receive(&mut self, reply: &mut [u8]) -> Result<()>;
}

impl Raw {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shm => "shared memory, spinning",
            Self::Futex => "shared memory, futex",
            Self::TcpBusy => "busy-polled socket",
            Self::TcpBlocking => "blocking socket",
            Self::Verbs => "verbs, polled",
            Self::VerbsEvents => "verbs, events",
        }
    }

    /// One round: a new peer, and as many round trips.
    pub fn round(self, load: Load, trips: Trips, sample: &mut Sample) -> Result<()> {
        match self {
            Self::Shm => run(&mut shm::start::<shm::Spin>(load)?, load, trips, sample),
            Self::Futex => run(&mut shm::start::<futex::Sleep>(load)?, load, trips, sample),
            Self::TcpBusy => run(&mut tcp_busy::start(load)?, load, trips, sample),
            Self::TcpBlocking => run(&mut tcp_blocking::start(load)?, load, trips, sample),
            Self::Verbs => run(&mut verbs::start::<verbs::Polled>(load)?, load, trips, sample),
            Self::VerbsEvents => run(&mut verbs::start::<verbs::Slept>(load)?, load, trips, sample),
        }
    }
}

/// The caller's end of [`Raw::Shm`], for who runs it in another way than by rounds.
pub(crate) fn spinning(load: Load) -> Result<impl Transport> {
    shm::start::<shm::Spin>(load)
}

/// The caller's end of [`Raw::TcpBusy`].
pub(crate) fn busy(load: Load) -> Result<impl Transport> {
    tcp_busy::start(load)
}

/// The caller's end of [`Raw::Verbs`].
pub(crate) fn polled(load: Load) -> Result<impl Transport> {
    verbs::start::<verbs::Polled>(load)
}

impl Load {
    /// An echo, one at a time.
    pub fn echo(payload: usize, cpu: usize) -> Self {
        Self { request: payload, work: Work::Echo, depth: 1, cpu }
    }

    /// Bytes of a reply.
    pub(crate) fn reply(&self) -> usize {
        self.work.reply_len(self.request)
    }
}

impl Work {
    /// Bytes of the reply.
    pub fn reply_len(self, request: usize) -> usize {
        match self {
            Self::Echo => request,
            Self::Sum | Self::Sample => WORD,
        }
    }

    /// Does it.
    pub fn run(self, request: &[u8], reply: &mut [u8]) {
        match self {
            Self::Echo => reply.copy_from_slice(request),
            Self::Sum => reply.copy_from_slice(&sum(request).to_le_bytes()),
            Self::Sample => {
                let words = sampled(request.len());
                let total = words.fold(0u64, |total, at| total.wrapping_add(word(request, at)));
                reply.copy_from_slice(&total.to_le_bytes());
            }
        }
    }

    /// Puts a request into its slot, as far as the peer looks at it.
    pub fn fill(self, slot: &mut [u8], request: &[u8]) {
        match self {
            Self::Echo | Self::Sum => slot[..request.len()].copy_from_slice(request),
            Self::Sample => sampled(request.len())
                .for_each(|at| slot[at..at + WORD].copy_from_slice(&request[at..at + WORD])),
        }
    }
}

const WORD: usize = size_of::<u64>();
/// Bytes from one word that is looked at to the next.
const SAMPLE_STRIDE: usize = 64 << 10;

/// Where the words lie that are looked at.
fn sampled(len: usize) -> impl Iterator<Item = usize> {
    let last = len - WORD;
    (0..last).step_by(SAMPLE_STRIDE).chain([last])
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + WORD].try_into().map_or(0, u64::from_le_bytes)
}

/// The wrapping sum of the bytes' little-endian u64s.
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().fold(0, |sum, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

pub(crate) fn run(
    end: &mut impl Transport,
    load: Load,
    trips: Trips,
    sample: &mut Sample,
) -> Result<()> {
    if load.depth > 1 {
        return pipelined(end, load, trips, sample);
    }
    let mut request = vec![7; load.request];
    let (mut reply, mut expected) = (vec![0; load.reply()], vec![0; load.reply()]);
    for trip in 0..trips.all() {
        request[0] = trip as u8;
        let began = Moment::now();
        end.send(&request)?;
        end.receive(&mut reply)?;
        let took = began.elapsed();
        load.work.run(&request, &mut expected);
        ensure!(reply == expected, "the baseline's reply is not what was asked for");
        if trip >= trips.warm_up {
            sample.record(took);
        }
    }
    Ok(())
}

/// Keeps `depth` requests under way. One latency is from a request's sending to its reply.
fn pipelined(
    end: &mut impl Transport,
    load: Load,
    trips: Trips,
    sample: &mut Sample,
) -> Result<()> {
    pipeline(
        load.depth,
        trips,
        sample,
        end,
        |end, number| end.send(&number.to_le_bytes()),
        |end, number| {
            let mut reply = [0; PIPELINED_BYTES];
            end.receive(&mut reply)?;
            check(&reply, number)
        },
    )
}
