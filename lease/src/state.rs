//! The life cycle that grants and leases share: one enum, one table, one snapshot.
//!
//! ```text
//!              Confirm            End               Gone, Lapse
//!   Reserved ──────────▶ Live ──────────▶ Ending ──────────────▶ Ended
//!      │                 │ ▲ Renew                                 ▲
//!      └── Abandon, End ─┼─┘─────────── Gone, Lapse ───────────────┘
//! ```
//!
//! [`crate::issuer`] runs its grants and leases through it, [`crate::holder`] its own. A new state or arrow is a new
//! row of the table and of its snapshot, never an `if` elsewhere.

use std::fmt;

/// Where a grant or a lease stands. Everything but [`State::Ended`] occupies its cores and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Set aside; its holder has not been told.
    Reserved,
    /// Its holder may use it.
    Live,
    /// Its holder may not begin anything, but something of it may still run.
    Ending,
    /// Nothing of it runs, and nothing ever will.
    Ended,
}

/// What happens to a grant or a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Event {
    /// It may be used from now on: the lease is on disk, the grant has a duration, the client is admitted.
    Confirm,
    /// It could not be confirmed, and nobody was told of it.
    Abandon,
    /// It lasts longer.
    Renew,
    /// It shall end: released, revoked, vacated, or its time is over.
    End,
    /// The word of whoever runs it: nothing of it is left.
    Gone,
    /// The end that its holder enforces by itself has surely passed.
    Lapse,
}

/// Every state, in order.
pub const STATES: [State; 4] = [State::Reserved, State::Live, State::Ending, State::Ended];

/// Every event, in order.
pub const EVENTS: [Event; 6] =
    [Event::Confirm, Event::Abandon, Event::Renew, Event::End, Event::Gone, Event::Lapse];

/// An event that makes no sense in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{event} is no step from {from}")]
pub struct Refused {
    /// Where it stood, and stands.
    pub from: State,
    /// What was refused.
    pub event: Event,
}

/// The table: `event: from => to`. What is not here is refused.
const TABLE: &[(Event, &[State], State)] = {
    use self::{Event::*, State::*};
    &[
        (Confirm, &[Reserved], Live),
        (Abandon, &[Reserved], Ended),
        (Renew, &[Live], Live),
        (End, &[Reserved], Ended),
        (End, &[Live, Ending], Ending),
        (End, &[Ended], Ended),
        (Gone, &[Reserved, Live, Ending, Ended], Ended),
        (Lapse, &[Reserved, Live, Ending, Ended], Ended),
    ]
};

impl State {
    /// The state after `event`, or a refusal that leaves everything as it was.
    pub fn after(self, event: Event) -> Result<Self, Refused> {
        TABLE
            .iter()
            .find(|(on, from, _)| *on == event && from.contains(&self))
            .map(|(_, _, to)| *to)
            .ok_or(Refused { from: self, event })
    }

    /// Takes the step in place; true if it was one.
    pub fn step(&mut self, event: Event) -> Result<Self, Refused> {
        *self = self.after(event)?;
        Ok(*self)
    }

    /// Whether it still occupies what it was given.
    pub fn occupies(self) -> bool {
        self != Self::Ended
    }

    /// One word, as stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Live => "live",
            Self::Ending => "ending",
            Self::Ended => "ended",
        }
    }

    /// Reads the word back.
    pub fn parse(word: &str) -> Option<Self> {
        STATES.into_iter().find(|state| state.as_str() == word)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a grant or a lease ended. The same names and numbers as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EndReason {
    /// The client gave it back.
    Released = 1,
    /// Its time was over.
    Expired = 2,
    /// Slurm wants the node.
    BatchJob = 3,
    /// An admin's drain.
    Drained = 4,
    /// The kill switch.
    SwitchedOff = 5,
    /// The harvester was not heard from in time.
    GrantEnded = 6,
    /// The worker crashed, exited, overran a deadline or its memory.
    WorkerFailed = 7,
    /// The executor restarted, or could not be reached until its grant had surely ended.
    ExecutorLost = 8,
    /// The configuration no longer allows it.
    Policy = 9,
}

impl EndReason {
    /// The reason with that number on the wire.
    pub fn from_number(number: i32) -> Option<Self> {
        use EndReason::*;
        [
            Released,
            Expired,
            BatchJob,
            Drained,
            SwitchedOff,
            GrantEnded,
            WorkerFailed,
            ExecutorLost,
            Policy,
        ]
        .into_iter()
        .find(|reason| *reason as i32 == number)
    }
}
