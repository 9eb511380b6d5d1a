//! The `shm` backend: a link between two processes of one node, over a sealed memory file and a Unix socket.
//!
//! Set-up is the caller's: it hands over the mapped [`Segment`] and one end of a connected stream socket. A message is its
//! payload, in place in the region, and its header in the next line of the direction's ring, whose last word says that it is
//! there; a payload of a few bytes travels in that line too. Each end keeps its own counters and believes none of the peer's. Who polls looks at one line and calls nothing; who
//! sleeps says so in its bell, and is woken by the futex there or by a byte in the socket. The socket's end is the peer's.
//!
//! ```text
//! post: payload in place ──▶ ring line (Release) ──▶ bell: sleeps? futex or a byte
//! poll: ring line (Acquire) ──▶ snapshot ──▶ checked ──▶ arrival
//! ```
#![deny(unsafe_code)]

mod barrier;
mod bell;
mod inbound;
mod kept;
mod layout;
mod line;
mod segment;
#[cfg(test)]
mod tests;

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use bell::Sleep;
use gleaner_proto::header::{BLOCK_ALIGN, BadHeader, Header, Words as HeaderWords};
use inbound::Inbound;
use kept::{Kept, Reply};
pub use layout::{Direction, Half, Layout};
use line::{
    CARRIED_MAX, CarriedWords, bytes, carried_words, may_carry, may_carry_input, pack, slot_of,
};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use segment::Spot;
pub use segment::{Segment, SegmentError};

use crate::{
    call::{Done, Expected, Found, Runs},
    check::Side,
    futex::{self, Words},
    link::{Arrival, Block, Geometry, Link, LinkError, Payload, failed},
    tune::{DRAIN_ROUNDS, FUTEX_SLICE, LINES_AHEAD},
};

/// One end of a link over shared memory.
#[derive(Debug)]
pub struct ShmLink {
    segment: Segment,
    socket: OwnedFd,
    inbound: Inbound,
    /// The last message of each slot.
    kept: Kept,
    outbound: Half,
    /// The number of the last message posted, and of the last that there is room for as far as is known.
    posted: u32,
    last: u32,
    /// Blocks from one slot to the next.
    slot_blocks: u32,
    /// Several posts follow, and one look at the peer's bell is enough for all; one is due.
    holds: bool,
    unrung: bool,
    /// The peer is gone: what it posted before still counts.
    closed: bool,
}

impl ShmLink {
    /// Makes a link of a mapped segment and one end of a connected Unix stream socket, which then belongs to it.
    pub fn new(segment: Segment, socket: OwnedFd, side: Side) -> Self {
        if side == Side::Worker {
            segment.begin();
        }
        Self {
            inbound: Inbound::new(&segment, side),
            kept: Kept::new(&segment, side),
            slot_blocks: segment.geometry().slot_bytes / BLOCK_ALIGN as u32,
            posted: 0,
            last: segment.layout().lines,
            outbound: *segment.layout().half(Direction::sent_by(side)),
            segment,
            socket,
            holds: false,
            unrung: false,
            closed: false,
        }
    }

    /// Client: the slot of the next answer, if one is here. A hint, which the worker may change until the answer is taken.
    #[inline(always)]
    pub fn upcoming(&self) -> Option<u16> {
        let line = self.inbound.next(&self.segment);
        self.inbound.is_in(line).then(|| slot_of(line.first()))
    }

    /// Client: takes what is [upcoming](Self::upcoming) if it is this call's good answer, and leaves anything else to
    /// [`poll`](Link::poll). Ask whether the link is [`intact`](Link::intact) after reading.
    #[inline(always)]
    pub fn reply_to(&mut self, call: &Expected) -> Option<&[u8]> {
        let line = self.inbound.next(&self.segment);
        if !self.inbound.is_in(line) {
            return None;
        }
        let reply = self.kept.answer(line, &self.segment, call)?;
        Some(self.took_reply(call.slot(), reply))
    }

    /// The next message is here.
    #[inline(always)]
    fn is_ready(&self) -> bool {
        self.inbound.is_in(self.inbound.next(&self.segment))
    }

    /// The same of what is seldom.
    #[cold]
    #[inline(never)]
    fn publish_otherwise(&mut self, header: &Header) {
        self.publish(header.words());
    }

    /// No message was here at the first of so many looks; true if one is here by now.
    #[inline(never)]
    fn look_again(&mut self, looks: u32) -> Result<bool, Box<LinkError>> {
        for _ in 1..looks {
            self.found_none()?;
            if self.is_ready() {
                return Ok(true);
            }
        }
        self.found_none()?;
        Ok(false)
    }

    /// No message is here.
    #[inline(always)]
    fn found_none(&mut self) -> Result<(), Box<LinkError>> {
        if self.inbound.found_none(&self.segment) || self.closed {
            self.ask_if_closed().map_err(failed)?;
        }
        Ok(())
    }

    /// After many empty polls, or when the peer is known to be gone: asks the socket.
    #[cold]
    fn ask_if_closed(&mut self) -> Result<(), LinkError> {
        self.look_at_socket()?;
        if self.inbound.is_marred(self.inbound.next(&self.segment)) {
            return Err(BadHeader::Reserved.into());
        }
        // What it posted before it went was there before its socket ended.
        match self.closed && !self.is_ready() {
            true => Err(LinkError::Closed),
            false => Ok(()),
        }
    }

    /// Takes old wake-ups off the socket and finds out whether the peer has gone.
    fn look_at_socket(&mut self) -> Result<(), LinkError> {
        self.inbound.looked_at_socket();
        let mut wake_ups = [0; 64];
        for _ in 0..DRAIN_ROUNDS {
            match recv(self.socket.as_raw_fd(), &mut wake_ups, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(nix::Error::ECONNRESET) => {
                    self.close();
                    break;
                }
                Ok(taken) if taken == wake_ups.len() => {}
                Ok(_) | Err(nix::Error::EAGAIN | nix::Error::EINTR) => break,
                Err(error) => return Err(system("receive wake-ups", error)),
            }
        }
        Ok(())
    }

    /// The next message was a good answer, and is taken: its payload.
    #[inline(always)]
    fn took_reply(&mut self, slot: u16, reply: Reply) -> &[u8] {
        match reply {
            Reply::Placed(spot) => {
                self.inbound.took(&self.segment, slot, spot);
                self.segment.incoming(spot)
            }
            Reply::Carried(len) => {
                self.inbound.took(&self.segment, slot, Spot::NOTHING);
                self.kept.carried_answer(len)
            }
        }
    }

    /// The ring is full as far as is known.
    #[inline(always)]
    fn is_full(&self) -> bool {
        self.posted == self.last
    }

    /// There is room for a message, or an error.
    #[inline(always)]
    fn make_room(&mut self) -> Result<(), Box<LinkError>> {
        match self.is_full() {
            true => self.confirm(),
            false => Ok(()),
        }
    }

    /// The ring is full: looks at what the peer has taken by now.
    #[cold]
    #[inline(never)]
    fn confirm(&mut self) -> Result<(), Box<LinkError>> {
        let lines = self.segment.layout().lines;
        let room = self.segment.taken(&self.outbound).load(Ordering::Acquire).wrapping_add(lines);
        let more = room.wrapping_sub(self.last);
        // More than was posted is a lie, and worth nothing; any other only hurts who tells it.
        if (1..=lines).contains(&more) && !self.closed {
            self.last = room;
            return Ok(());
        }
        self.look_at_socket()?;
        match self.closed {
            true => Err(failed(LinkError::Closed)),
            false => Err(failed(LinkError::Window { window: self.segment.geometry().window })),
        }
    }

    /// The peer is gone: nothing more is posted.
    fn close(&mut self) {
        self.closed = true;
        self.last = self.posted;
    }

    /// Sends a message with this payload, which travels in its line if it may.
    #[inline(always)]
    fn post_words(&mut self, payload: Block, words: HeaderWords) {
        if !may_carry(&words, self.slot_blocks) {
            return self.publish(words);
        }
        let room = self.segment.outgoing(self.segment.room(&self.outbound, payload));
        let carried = carried_words(&room[..payload.capacity as usize]);
        self.publish(pack(words, carried));
    }

    /// Sends a request whose input travels in its line.
    #[inline(always)]
    fn ask_carrying(
        &mut self,
        call: &Expected,
        input: CarriedWords,
        time_ns: u64,
    ) -> Result<(), Box<LinkError>> {
        self.make_room()?;
        self.publish(pack(call.request_words(time_ns), input));
        Ok(())
    }

    /// Puts an input into its block, and sends its request.
    #[inline(always)]
    fn ask_placing(
        &mut self,
        call: &Expected,
        input: &[u8],
        time_ns: u64,
    ) -> Result<(), Box<LinkError>> {
        self.segment.put(&self.outbound, call.input().payload_offset(), input);
        self.make_room()?;
        self.publish(call.request_words(time_ns));
        Ok(())
    }

    /// Stores a message in the next line, for which there is room, and wakes the peer if it sleeps.
    #[inline(always)]
    fn publish(&mut self, words: HeaderWords) {
        self.posted = self.posted.wrapping_add(1);
        self.segment.line(&self.outbound, self.posted).publish(self.posted, words);
        // With one message at a time the peer already looks at the next line, and would lose it for nothing.
        if self.inbound.is_pipelined() {
            self.segment.own_line(&self.outbound, self.posted.wrapping_add(LINES_AHEAD));
        }
        if self.holds {
            self.unrung = true;
        } else {
            self.ring();
        }
    }

    /// Wakes the peer, if it sleeps.
    #[inline(always)]
    fn ring(&mut self) {
        if let Some(how) = bell::ring(self.segment.sleeping(&self.outbound)) {
            self.wake(how);
        }
    }

    #[cold]
    #[inline(never)]
    fn wake(&mut self, how: Sleep) {
        match how {
            Sleep::Futex => futex::wake(self.segment.sleeping(&self.outbound)),
            Sleep::Socket => self.send_wake_up(),
        }
    }

    /// Does so for the posts that were held.
    #[inline(always)]
    fn ring_if_due(&mut self) {
        if self.unrung {
            self.ring_now();
        }
    }

    #[cold]
    #[inline(never)]
    fn ring_now(&mut self) {
        self.unrung = false;
        self.ring();
    }

    /// A peer that is gone is found out by the next poll.
    fn send_wake_up(&mut self) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.socket.as_raw_fd(), &[1], flags) {
            // A socket without room is readable as it is.
            Ok(_) | Err(nix::Error::EAGAIN) => {}
            Err(_) => self.close(),
        }
    }
}

impl Link for ShmLink {
    #[inline]
    fn geometry(&self) -> Geometry {
        self.segment.geometry()
    }

    #[inline(always)]
    fn outgoing(&mut self, block: Block) -> &mut [u8] {
        self.segment.outgoing(self.segment.room(&self.outbound, block))
    }

    #[inline(always)]
    fn post(&mut self, block: Block, header: &Header) -> Result<(), Box<LinkError>> {
        debug_assert_eq!(header.block, block.index(), "the header names another block");
        debug_assert!(header.payload_len <= block.capacity, "the payload exceeds its block");
        self.make_room()?;
        self.post_words(Block { capacity: header.payload_len, ..block }, header.words());
        Ok(())
    }

    #[inline(always)]
    fn ask(&mut self, call: &Expected, time_ns: u64) -> Result<(), Box<LinkError>> {
        self.make_room()?;
        self.post_words(call.input(), call.request_words(time_ns));
        Ok(())
    }

    #[inline(always)]
    fn ask_with(
        &mut self,
        call: &Expected,
        input: &[u8],
        time_ns: u64,
    ) -> Result<(), Box<LinkError>> {
        debug_assert_eq!(call.input().capacity as usize, input.len(), "another input's length");
        if input.len() <= CARRIED_MAX && may_carry_input(call, self.slot_blocks) {
            return self.ask_carrying(call, carried_words(input), time_ns);
        }
        self.ask_placing(call, input, time_ns)
    }

    #[inline(always)]
    fn ask_keeping(
        &mut self,
        call: &Expected,
        input: &[u8],
        time_ns: u64,
    ) -> Result<(), Box<LinkError>> {
        debug_assert_eq!(call.input().capacity as usize, input.len(), "another input's length");
        if input.len() <= CARRIED_MAX && may_carry_input(call, self.slot_blocks) {
            let carried = carried_words(input);
            // As a whole, whatever its length: every block has room for it.
            self.segment.put(&self.outbound, call.input().payload_offset(), &bytes(carried));
            return self.ask_carrying(call, carried, time_ns);
        }
        self.ask_placing(call, input, time_ns)
    }

    #[inline(always)]
    fn carries(&self, call: &Expected) -> bool {
        call.input().capacity as usize <= CARRIED_MAX && may_carry_input(call, self.slot_blocks)
    }

    fn hold(&mut self) {
        self.holds = true;
    }

    fn release(&mut self) -> Result<(), LinkError> {
        self.holds = false;
        self.ring_if_due();
        Ok(())
    }

    #[inline(always)]
    fn poll(&mut self) -> Result<Option<Arrival>, Box<LinkError>> {
        self.ring_if_due();
        let line = self.inbound.next(&self.segment);
        if !self.inbound.is_in(line) {
            self.found_none()?;
            return Ok(None);
        }
        let taken = self.kept.take(line, &self.segment)?;
        self.inbound.took(&self.segment, taken.slot(), taken.spot());
        Ok(Some(taken.arrival()))
    }

    fn incoming(&self, payload: Payload) -> &[u8] {
        self.kept.payload(&self.segment, payload)
    }

    #[inline(always)]
    fn intact(&self) -> bool {
        self.segment.is_whole()
    }

    fn exchange(&mut self, payload: Payload, reply: Block) -> (&mut [u8], &mut [u8]) {
        self.kept.exchange(&mut self.segment, payload, reply)
    }

    #[inline(always)]
    fn answer(&mut self, expected: &Expected, looks: u32) -> Result<Found<'_>, Box<LinkError>> {
        self.ring_if_due();
        let mut line = self.inbound.next(&self.segment);
        if !self.inbound.is_in(line) {
            if !self.look_again(looks)? {
                return Ok(Found::None);
            }
            line = self.inbound.next(&self.segment);
        }
        if let Some(reply) = self.kept.answer(line, &self.segment, expected) {
            return Ok(Found::Reply(self.took_reply(expected.slot(), reply)));
        }
        let taken = self.kept.take(line, &self.segment)?;
        self.inbound.took(&self.segment, taken.slot(), taken.spot());
        Ok(Found::other(taken.arrival()))
    }

    fn serve(&mut self, runs: &mut dyn Runs) -> Result<bool, Box<LinkError>> {
        self.serve_with(runs)
    }

    #[inline(always)]
    fn serve_with<R: Runs + ?Sized>(&mut self, runs: &mut R) -> Result<bool, Box<LinkError>> {
        self.ring_if_due();
        let mut line = self.inbound.next(&self.segment);
        if !self.inbound.is_in(line) {
            self.found_none()?;
            return Ok(false);
        }
        if self.is_full() {
            self.confirm()?;
            line = self.inbound.next(&self.segment);
        }
        let mut taken = self.kept.take(line, &self.segment)?;
        self.inbound.took(&self.segment, taken.slot(), taken.spot());
        let asked = taken.asked();
        let (input, output) = taken.exchange(&mut self.segment);
        let done = runs.run(asked, input, output);
        if done.failure.is_some() {
            let header = taken.response_otherwise(done);
            self.publish_otherwise(&header);
            return Ok(true);
        }
        let Done { len, time_ns, .. } = done;
        let small = (len <= CARRIED_MAX).then(|| carried_words(&output[..len]));
        let reply = taken.response(len as u32, time_ns);
        let reply = match small {
            Some(carried) if taken.carries_reply() => pack(reply, carried),
            _ => reply,
        };
        self.publish(reply);
        Ok(true)
    }

    fn unsent(&self) -> bool {
        false
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), LinkError> {
        self.ring_if_due();
        let end = Instant::now().checked_add(timeout);
        while !self.is_ready() && !self.inbound.ask(&self.segment, Sleep::Futex) {
            // After asking: a peer that leaves from here on rings.
            self.look_at_socket()?;
            let left = end.map_or(Duration::MAX, |end| end.duration_since(Instant::now()));
            if self.closed || left.is_zero() {
                break;
            }
            // In slices: a peer that is killed does not ring, and a hostile one may have moved our sleep elsewhere.
            let mut sleep = Words::new();
            sleep.push((self.inbound.bell(&self.segment), Sleep::Futex as u32));
            sleep
                .wait(left.min(FUTEX_SLICE))
                .map_err(|source| LinkError::Io { step: "sleep on the futex", source })?;
        }
        self.inbound.woke(&self.segment);
        Ok(())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn arm(&mut self) -> Result<bool, LinkError> {
        self.ring_if_due();
        // Before asking: the byte of a message that comes after it must stay.
        self.look_at_socket()?;
        Ok(self.closed || self.inbound.ask(&self.segment, Sleep::Socket))
    }

    fn wait_word(&self) -> Option<(&AtomicU32, u32)> {
        Some((self.inbound.bell(&self.segment), Sleep::Futex as u32))
    }

    fn arm_word(&mut self) -> Result<bool, LinkError> {
        self.ring_if_due();
        // A look first: while messages wait, the peer's line of our bell is left alone.
        Ok(self.closed || self.is_ready() || self.inbound.ask(&self.segment, Sleep::Futex))
    }
}

impl Drop for ShmLink {
    fn drop(&mut self) {
        // First the end that the peer shall see, then the wake-up to look at it. A peer that went first needs neither.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        self.ring();
    }
}

fn system(step: &'static str, error: nix::Error) -> LinkError {
    LinkError::Io { step, source: error.into() }
}
