//! The board: memory that the agent owns and the worker writes, so that a killed worker takes nothing with it.
//!
//! It holds the state of every slot of every session (each call's verdict after an eviction), the cancel words, what each
//! lane has used, the live epoch and the record of a fault. The agent creates it, hands its descriptor to the worker,
//! and reads it at any time, also when the worker is dead. All of it is 64-bit atomics: a worker that writes nonsense
//! gives nonsense, never a crash of the agent. Nothing here blocks or allocates after `create` and `open`.
//!
//! ```text
//! words: | head 8 | fault 8 | lane 0: 8 | lane 1: 8 | ... | per (session, lane, slot): state, cancel | ... |
//! ```
#![forbid(unsafe_code)]

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release},
};

use gleaner_fabric::{clock::Clock, link::WINDOW_MAX, region::Words};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};

/// Most sessions of one lease at a time.
pub const SESSIONS_MAX: u16 = 64;
/// Most lanes (worker threads, leased cores) of one lease.
pub const LANES_MAX: u16 = 1024;

const MAGIC: u64 = u64::from_le_bytes(*b"GLBOARD2");
const NAME: &CStr = c"gleaner-board";

// Words of the head.
const HEAD_MAGIC: usize = 0;
const HEAD_SHAPE: usize = 1;
const HEAD_EPOCH: usize = 2;
const FAULT: usize = 8;
const LANES: usize = 16;
const LANE_WORDS: usize = 8;
const SLOT_WORDS: usize = 2;

// Words of a lane. Times are in ticks, whose scale stands beside them.
const CALLS: usize = 0;
const EXECUTING: usize = 1;
const POLLING: usize = 2;
const SCALE: usize = 3;

const NO_CALL: u64 = u64::MAX;

/// How many of each the board has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Sessions, at most [`SESSIONS_MAX`].
    pub sessions: u16,
    /// Lanes, at most [`LANES_MAX`].
    pub lanes: u16,
    /// Slots of each lane of each session, at most [`WINDOW_MAX`].
    pub window: u16,
}

/// One slot of one lane of one session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The session's index on the board.
    pub session: u16,
    /// The lane.
    pub lane: u16,
    /// The slot.
    pub slot: u16,
}

/// How far a slot's last call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Never used in this session.
    Idle = 0,
    /// The function has been entered and has not come back.
    Started = 1,
    /// It ended, whatever its outcome; its reply may still be under way.
    Finished = 2,
    /// Its worker died in it.
    Faulted = 3,
}

/// A slot's word: which call, and how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotState {
    /// The client's number of the call; the low 62 bits.
    pub invocation: u64,
    /// How far it has come.
    pub phase: Phase,
}

/// What one lane has used. Nanoseconds are the worker's own claim: clamp them to its CPU time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Functions that were run.
    pub calls: u64,
    /// Time inside functions.
    pub executing_ns: u64,
    /// Time spent looking for calls without sleeping.
    pub polling_ns: u64,
}

/// Why a worker died by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultCause {
    /// A signal of its own making: the number.
    Signal(i32),
    /// The function ended the process, with this status.
    Exit(i32),
    /// The function wrote past its output.
    Overflow,
}

/// The first fault of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What happened.
    pub cause: FaultCause,
    /// The call that was running, if one was.
    pub call: Option<(Place, u64)>,
}

/// Why a descriptor is no board.
#[derive(Debug, thiserror::Error)]
pub enum BoardError {
    /// More than the board is made for.
    #[error(
        "a board for {} sessions of {} lanes of {} slots: at most {SESSIONS_MAX}, {LANES_MAX} and {WINDOW_MAX}, at least 1 of each",
        .0.sessions, .0.lanes, .0.window
    )]
    Shape(Shape),
    /// The descriptor is something else, or may still shrink.
    #[error("the descriptor is no board: {0}")]
    NotABoard(&'static str),
    /// The system refused.
    #[error("{step} the board: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// The board, mapped.
#[derive(Debug)]
pub struct Board {
    words: Words,
    shape: Shape,
}

impl Board {
    /// Makes a board for a new lease, all slots idle, and the descriptor that is handed to its worker.
    pub fn create(shape: Shape, epoch: u64) -> Result<(Self, OwnedFd), BoardError> {
        let words = shape.words().ok_or(BoardError::Shape(shape))?;
        let fd = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)
            .map_err(|error| io_error("create", error))?;
        nix::unistd::ftruncate(&fd, (words * 8) as i64).map_err(|error| io_error("size", error))?;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(size_seals() | SealFlag::F_SEAL_SEAL))
            .map_err(|error| io_error("seal", error))?;
        let words = Words::map(fd.as_fd(), words)
            .map_err(|source| BoardError::Io { step: "map", source })?;
        let board = Self { words, shape };
        board.words.word(HEAD_SHAPE).store(shape.encode(), Relaxed);
        board.words.word(HEAD_EPOCH).store(epoch, Relaxed);
        board.words.word(HEAD_MAGIC).store(MAGIC, Release);
        Ok((board, fd))
    }

    /// Maps a board that another process made.
    pub fn open(fd: BorrowedFd<'_>) -> Result<Self, BoardError> {
        let seals = fcntl(fd, FcntlArg::F_GET_SEALS).map_err(|error| io_error("look at", error))?;
        if !SealFlag::from_bits_retain(seals).contains(size_seals()) {
            return Err(BoardError::NotABoard("its size is not sealed"));
        }
        let bytes = nix::sys::stat::fstat(fd).map_err(|error| io_error("measure", error))?.st_size;
        let words = bytes as usize / 8;
        if words < LANES {
            return Err(BoardError::NotABoard("it is too small"));
        }
        let words =
            Words::map(fd, words).map_err(|source| BoardError::Io { step: "map", source })?;
        if words.word(HEAD_MAGIC).load(Acquire) != MAGIC {
            return Err(BoardError::NotABoard("its magic is another one"));
        }
        let shape = Shape::decode(words.word(HEAD_SHAPE).load(Relaxed));
        if shape.words().is_none_or(|needed| needed > words.len()) {
            return Err(BoardError::NotABoard("its shape does not fit its size"));
        }
        Ok(Self { words, shape })
    }

    /// How many of each it has room for.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The epoch that calls must carry.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.words.word(HEAD_EPOCH).load(Acquire)
    }

    /// Worker: tells which calls may start.
    pub fn gate(&self) -> Gate<'_> {
        Gate(self.words.word(HEAD_EPOCH))
    }

    /// Agent: from now on no call that has not started may start.
    pub fn fence(&self) {
        self.words.word(HEAD_EPOCH).store(FENCED, Release);
    }

    /// The slots of a lane of a session, if the board has them.
    pub fn slots(&self, session: u16, lane: u16) -> Option<Slots<'_>> {
        let Shape { sessions, lanes, window } = self.shape;
        (session < sessions && lane < lanes).then(|| {
            let number = usize::from(session) * usize::from(lanes) + usize::from(lane);
            let words = usize::from(window) * SLOT_WORDS;
            let first = self.shape.first_slot_word() + number * words;
            Slots(self.words.all()[first..first + words].as_chunks().0)
        })
    }

    /// A slot's words, if the board has that slot.
    pub fn slot(&self, place: Place) -> Option<Slot<'_>> {
        self.slots(place.session, place.lane)?.get(place.slot)
    }

    /// Agent: makes a session's slots idle, before another client gets its index.
    pub fn clear_session(&self, session: u16) {
        for lane in 0..self.shape.lanes {
            for slot in 0..self.shape.window {
                if let Some(slot) = self.slot(Place { session, lane, slot }) {
                    slot.clear();
                }
            }
        }
    }

    /// Agent: the slots of a session that are not idle, for its verdicts.
    pub fn session_states(&self, session: u16) -> impl Iterator<Item = (Place, SlotState)> + '_ {
        let places = (0..self.shape.lanes).flat_map(move |lane| {
            (0..self.shape.window).map(move |slot| Place { session, lane, slot })
        });
        places.filter_map(|place| {
            let state = self.slot(place)?.state();
            (state.phase != Phase::Idle).then_some((place, state))
        })
    }

    /// What a lane has used; zeros for a lane that the board does not have.
    pub fn usage(&self, lane: u16) -> Usage {
        self.counters(lane).map(Counters::usage).unwrap_or_default()
    }

    /// What all lanes have used.
    pub fn usage_total(&self) -> Usage {
        (0..self.shape.lanes).map(|lane| self.usage(lane)).fold(Usage::default(), |sum, one| {
            Usage {
                calls: sum.calls.wrapping_add(one.calls),
                executing_ns: sum.executing_ns.wrapping_add(one.executing_ns),
                polling_ns: sum.polling_ns.wrapping_add(one.polling_ns),
            }
        })
    }

    /// A lane's counters, if the board has that lane.
    pub fn counters(&self, lane: u16) -> Option<Counters<'_>> {
        let (lanes, _) = self.words.all()[LANES..].as_chunks();
        (lane < self.shape.lanes).then(|| Counters(&lanes[usize::from(lane)]))
    }

    /// Worker, also from a signal handler: records a fault, the first one only, and marks its call.
    pub fn record_fault(&self, fault: Fault) {
        let cause = fault.cause.encode();
        let first = self.words.word(FAULT);
        if first.compare_exchange(0, CLAIMED, Relaxed, Relaxed).is_err() {
            return;
        }
        let (place, invocation) = match fault.call {
            Some((place, invocation)) => (place.encode(), invocation),
            None => (NO_CALL, 0),
        };
        self.words.word(FAULT + 1).store(place, Relaxed);
        self.words.word(FAULT + 2).store(invocation, Relaxed);
        first.store(cause, Release);
        if let Some((place, invocation)) = fault.call
            && let Some(slot) = self.slot(place)
        {
            slot.set(invocation, Phase::Faulted);
        }
    }

    /// Agent: the worker's first fault, if it recorded one.
    pub fn fault(&self) -> Option<Fault> {
        let cause = FaultCause::decode(self.words.word(FAULT).load(Acquire))?;
        let place = self.words.word(FAULT + 1).load(Relaxed);
        let invocation = self.words.word(FAULT + 2).load(Relaxed);
        let call = (place != NO_CALL).then(|| (Place::decode(place), invocation));
        Some(Fault { cause, call })
    }
}

/// Which calls may start.
#[derive(Debug, Clone, Copy)]
pub struct Gate<'a>(&'a AtomicU64);

impl Gate<'_> {
    /// Whether a call that carries this epoch may start.
    #[inline]
    pub fn admits(self, epoch: u64) -> bool {
        epoch == self.0.load(Acquire) && epoch != FENCED
    }
}

/// What one lane has used, as its one thread counts it.
#[derive(Debug, Clone, Copy)]
pub struct Counters<'a>(&'a [AtomicU64; LANE_WORDS]);

impl Counters<'_> {
    /// Worker: counts in this clock's ticks from now on.
    pub fn begin(self, clock: Clock) {
        self.0[SCALE].store(clock.scale(), Relaxed);
    }

    /// Worker: so many calls more, and ticks of each.
    #[inline]
    pub fn add(self, calls: u64, executing: u64, polling: u64) {
        self.add_to(CALLS, calls);
        self.add_to(EXECUTING, executing);
        self.add_to(POLLING, polling);
    }

    /// Nobody else writes here.
    #[inline]
    fn add_to(self, field: usize, more: u64) {
        let sum = self.0[field].load(Relaxed).wrapping_add(more);
        self.0[field].store(sum, Relaxed);
    }

    fn usage(self) -> Usage {
        let read = |field: usize| self.0[field].load(Relaxed);
        let clock = Clock::with_scale(read(SCALE));
        let ns = |field| clock.ns(read(field));
        Usage { calls: read(CALLS), executing_ns: ns(EXECUTING), polling_ns: ns(POLLING) }
    }
}

/// The slots of one lane of one session.
#[derive(Debug, Clone, Copy)]
pub struct Slots<'a>(&'a [[AtomicU64; SLOT_WORDS]]);

impl<'a> Slots<'a> {
    /// A slot's words, if there is that slot.
    #[inline]
    pub fn get(self, slot: u16) -> Option<Slot<'a>> {
        self.0.get(usize::from(slot)).map(Slot)
    }
}

/// One slot's words: its state, and its cancel word.
#[derive(Debug, Clone, Copy)]
pub struct Slot<'a>(&'a [AtomicU64; SLOT_WORDS]);

impl<'a> Slot<'a> {
    #[inline]
    fn state_word(self) -> &'a AtomicU64 {
        &self.0[0]
    }

    #[inline]
    fn cancel_word(self) -> &'a AtomicU64 {
        &self.0[1]
    }

    /// Which call, and how far.
    pub fn state(self) -> SlotState {
        let word = self.state_word().load(Acquire);
        let phase = match word & 3 {
            0 => Phase::Idle,
            1 => Phase::Started,
            2 => Phase::Finished,
            _ => Phase::Faulted,
        };
        SlotState { invocation: word >> 2, phase }
    }

    /// Worker: the call has come this far.
    #[inline]
    pub fn set(self, invocation: u64, phase: Phase) {
        self.state_word().store(invocation << 2 | phase as u64, Release);
    }

    /// Agent: the caller gave up on this call.
    pub fn cancel(self, invocation: u64) {
        self.cancel_word().store(cancelled(invocation), Release);
    }

    /// Worker: has the caller given up on this call?
    #[inline]
    pub fn cancelled(self, invocation: u64) -> bool {
        self.cancel_word().load(Relaxed) == cancelled(invocation)
    }

    fn clear(self) {
        self.state_word().store(0, Release);
        self.cancel_word().store(0, Release);
    }
}

impl Shape {
    fn words(self) -> Option<usize> {
        let fits = (1..=SESSIONS_MAX).contains(&self.sessions)
            && (1..=LANES_MAX).contains(&self.lanes)
            && (1..=WINDOW_MAX).contains(&self.window);
        let slots = usize::from(self.sessions) * usize::from(self.lanes) * usize::from(self.window);
        fits.then(|| self.first_slot_word() + slots * SLOT_WORDS)
    }

    fn first_slot_word(self) -> usize {
        LANES + usize::from(self.lanes) * LANE_WORDS
    }

    fn encode(self) -> u64 {
        pack(self.sessions, self.lanes, self.window)
    }

    fn decode(word: u64) -> Self {
        let (sessions, lanes, window) = unpack(word);
        Self { sessions, lanes, window }
    }
}

impl Place {
    fn encode(self) -> u64 {
        pack(self.session, self.lane, self.slot)
    }

    fn decode(word: u64) -> Self {
        let (session, lane, slot) = unpack(word);
        Self { session, lane, slot }
    }
}

const CLAIMED: u64 = u64::MAX;
/// No grant's epoch.
const FENCED: u64 = 0;

impl FaultCause {
    fn encode(self) -> u64 {
        match self {
            Self::Signal(number) => 1 << 32 | u64::from(number as u32),
            Self::Exit(status) => 2 << 32 | u64::from(status as u32),
            Self::Overflow => 3 << 32,
        }
    }

    fn decode(word: u64) -> Option<Self> {
        match word >> 32 {
            1 => Some(Self::Signal(word as u32 as i32)),
            2 => Some(Self::Exit(word as u32 as i32)),
            3 => Some(Self::Overflow),
            _ => None,
        }
    }
}

impl std::fmt::Display for FaultCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(number) {
                Ok(signal) => write!(f, "the function crashed with {signal}"),
                Err(_) => write!(f, "the function crashed with signal {number}"),
            },
            Self::Exit(status) => write!(f, "the function called exit({status})"),
            Self::Overflow => f.write_str("the function wrote past its output"),
        }
    }
}

fn pack(a: u16, b: u16, c: u16) -> u64 {
    u64::from(a) << 32 | u64::from(b) << 16 | u64::from(c)
}

fn unpack(word: u64) -> (u16, u16, u16) {
    ((word >> 32) as u16, (word >> 16) as u16, word as u16)
}

/// What a cancel word holds once this call is cancelled.
fn cancelled(invocation: u64) -> u64 {
    invocation << 1 | 1
}

fn size_seals() -> SealFlag {
    SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW
}

fn io_error(step: &'static str, error: nix::Error) -> BoardError {
    BoardError::Io { step, source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape { sessions: 2, lanes: 3, window: 4 };

    #[test]
    fn both_sides_see_the_same_slots() {
        let (agent, fd) = Board::create(SHAPE, 7).unwrap();
        let worker = Board::open(fd.as_fd()).unwrap();
        assert_eq!((worker.shape(), worker.epoch()), (SHAPE, 7));
        let place = Place { session: 1, lane: 2, slot: 3 };
        worker.slot(place).unwrap().set(99, Phase::Started);
        let state = SlotState { invocation: 99, phase: Phase::Started };
        assert_eq!(agent.session_states(1).collect::<Vec<_>>(), [(place, state)]);
        assert_eq!(agent.session_states(0).count(), 0);
        agent.slot(place).unwrap().cancel(99);
        assert!(worker.slot(place).unwrap().cancelled(99));
        assert!(!worker.slot(place).unwrap().cancelled(100));
        agent.clear_session(1);
        assert_eq!(agent.session_states(1).count(), 0);
        agent.fence();
        assert_eq!(worker.epoch(), 0);
    }

    #[test]
    fn the_first_fault_is_kept() {
        let (board, _fd) = Board::create(SHAPE, 7).unwrap();
        assert_eq!(board.fault(), None);
        let place = Place { session: 0, lane: 1, slot: 2 };
        let fault = Fault { cause: FaultCause::Signal(11), call: Some((place, 5)) };
        board.record_fault(fault);
        board.record_fault(Fault { cause: FaultCause::Exit(3), call: None });
        assert_eq!(board.fault(), Some(fault));
        assert_eq!(board.slot(place).unwrap().state().phase, Phase::Faulted);
    }

    #[test]
    fn what_is_outside_is_refused() {
        let (board, _fd) = Board::create(SHAPE, 7).unwrap();
        for place in [(2, 0, 0), (0, 3, 0), (0, 0, 4)] {
            let (session, lane, slot) = place;
            assert!(board.slot(Place { session, lane, slot }).is_none());
        }
        let too_many = Shape { sessions: SESSIONS_MAX + 1, ..SHAPE };
        assert!(matches!(Board::create(too_many, 7), Err(BoardError::Shape(_))));
    }

    #[test]
    fn a_descriptor_that_may_shrink_is_no_board() {
        let fd = memfd_create(c"x", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        nix::unistd::ftruncate(&fd, 1 << 16).unwrap();
        assert!(matches!(Board::open(fd.as_fd()), Err(BoardError::NotABoard(_))));
        fcntl(&fd, FcntlArg::F_ADD_SEALS(size_seals())).unwrap();
        assert!(matches!(Board::open(fd.as_fd()), Err(BoardError::NotABoard(_))));
    }
}
