//! Calls whose caller waits on the spot: sent and looked for without a record, for as long as the answer comes while this looks.
//!
//! The hot path of [`Function::invoke`](crate::Function::invoke) and its like; [`Lane::round_trip`] is the rest of it. A call that takes
//! longer, ends otherwise or loses its lane is adopted: it gets its record then, while there is nothing better to do, and goes on as
//! any other ([`crate::calls`]).
//!
//! ```text
//!  invoke ──▶ round trip ──▶ reply read
//!                 └─ adopt ──▶ Sent ──▶ ...
//! ```

use gleaner_fabric::{Expected, Link, LinkError};

use crate::{
    calls::{Calls, Fill, Place, Read, State},
    ended::Listener,
    error::CallError,
    function::Settings,
    lane::{self, Errand, Trip},
    tune::LOOKS_PER_TRIP,
};

#[cfg(doc)]
use crate::lane::Lane;

/// What gives a call its input, and reads its reply in place.
pub(crate) trait Exchange {
    /// Sends the call over its link.
    fn send<L: Link + ?Sized>(
        &mut self,
        link: &mut L,
        call: &Expected,
    ) -> Result<(), Box<LinkError>>;
    /// Writes the input of a call that was not sent so.
    fn fill(&mut self, input: &mut [u8]);
    /// Writes the input of one that was, and whose input is not in its block.
    fn keep(&mut self, input: &mut [u8]);
    fn read(&mut self, reply: &[u8]);
}

/// From one buffer, to the front of another.
pub(crate) struct Copying<'a> {
    pub(crate) input: &'a [u8],
    pub(crate) output: &'a mut [u8],
    /// The reply's length. What does not fit is not copied.
    pub(crate) len: usize,
}

/// By two closures.
pub(crate) struct Closures<'a> {
    pub(crate) fill: Fill<'a>,
    pub(crate) read: Read<'a>,
}

impl Exchange for Copying<'_> {
    #[inline(always)]
    fn send<L: Link + ?Sized>(
        &mut self,
        link: &mut L,
        call: &Expected,
    ) -> Result<(), Box<LinkError>> {
        link.ask_with(call, self.input, 0)
    }

    fn fill(&mut self, input: &mut [u8]) {
        input.copy_from_slice(self.input);
    }

    fn keep(&mut self, input: &mut [u8]) {
        self.fill(input);
    }

    #[inline(always)]
    fn read(&mut self, reply: &[u8]) {
        self.len = reply.len();
        if let Some(front) = self.output.get_mut(..reply.len()) {
            front.copy_from_slice(reply);
        }
    }
}

impl Exchange for Closures<'_> {
    #[inline(always)]
    fn send<L: Link + ?Sized>(
        &mut self,
        link: &mut L,
        call: &Expected,
    ) -> Result<(), Box<LinkError>> {
        self.fill(lane::input(link, call));
        link.ask(call, 0)
    }

    #[inline(always)]
    fn fill(&mut self, input: &mut [u8]) {
        (self.fill)(input);
    }

    fn keep(&mut self, _: &mut [u8]) {
        // It was written into its block.
    }

    #[inline(always)]
    fn read(&mut self, reply: &[u8]) {
        (self.read)(reply);
    }
}

impl Calls {
    /// Calls, waits for the call's end, and hands its reply over.
    #[inline(always)]
    pub(crate) fn invoke(
        &mut self,
        function: u32,
        settings: &Settings,
        len: usize,
        exchange: &mut impl Exchange,
    ) -> Result<(), Box<CallError>> {
        self.look_around();
        match self.at_once(function, settings, len, exchange) {
            Some(Trip::Read) => Ok(()),
            trip => self.invoke_slowly(trip, function, settings, len, exchange),
        }
    }

    /// Makes a call on the lane whose turn it is, if it is an ordinary one.
    #[inline(always)]
    fn at_once(
        &mut self,
        function: u32,
        settings: &Settings,
        len: usize,
        exchange: &mut impl Exchange,
    ) -> Option<Trip> {
        let (session, lane) = self.turn();
        if !self.spin.is_warm()
            && settings.deadline.is_none()
            && let Some(open) = self.sessions.get_mut(session).and_then(Option::as_mut)
            && open.closing.is_none()
            && let Some(at) = open.lanes.get_mut(lane)
            && let Some(&function) = open.functions.get(function as usize)
        {
            self.last = (session, lane);
            self.last_number += 1;
            let errand = Errand { number: self.last_number, function, looks: LOOKS_PER_TRIP };
            let trip = at.round_trip(len, settings.reply_capacity, errand, exchange);
            let Some(trip) = trip else {
                self.not_begun();
                return None;
            };
            if trip == Trip::Read {
                self.spin.answered();
                self.stats.ok += 1;
            }
            return Some(trip);
        }
        None
    }

    /// The call was not begun: its number is free, and it is still that lane's turn.
    #[cold]
    #[inline(never)]
    fn not_begun(&mut self) {
        self.last_number -= 1;
        self.last = self.before(self.last);
    }

    /// Goes on with a call that remains, or makes one that does not fit.
    #[cold]
    #[inline(never)]
    fn invoke_slowly(
        &mut self,
        trip: Option<Trip>,
        function: u32,
        settings: &Settings,
        len: usize,
        exchange: &mut impl Exchange,
    ) -> Result<(), Box<CallError>> {
        let index = match trip {
            Some(_) => self.adopt(function, settings, &mut |input| exchange.keep(input)),
            None => {
                let fill = &mut |input: &mut [u8]| exchange.fill(input);
                self.submit_with(function, settings, None, len, fill)?
            }
        };
        self.collect(self.key(index), &mut |reply| exchange.read(reply))
    }

    /// The same for any two closures, compiled as one for all of them.
    #[inline(never)]
    pub(crate) fn invoke_with(
        &mut self,
        function: u32,
        settings: &Settings,
        len: usize,
        fill: Fill<'_>,
        read: Read<'_>,
    ) -> Result<(), Box<CallError>> {
        self.invoke(function, settings, len, &mut Closures { fill, read })
    }

    /// Gives the call that remains of a trip its record, and sees to what was found instead of its reply.
    fn adopt(&mut self, function: u32, settings: &Settings, keep: Fill<'_>) -> u32 {
        self.spin.looked_often();
        let (session, lane) = self.last;
        let index = self.record(function, settings, None, Listener::Nobody);
        let Some(open) = self.sessions[session].as_mut() else { return index };
        let (slot, found) = open.lanes[lane].adopt(index, keep);
        self.calls[index as usize].state = State::Sent(Place::new(session, lane, slot));
        match found {
            Ok(None) => {}
            Ok(Some(answer)) => self.answered(session, lane, answer),
            Err(error) => open.close(error.to_string()),
        }
        index
    }
}
