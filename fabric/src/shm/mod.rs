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
use gleaner_proto::header::{BLOCK_ALIGN, Header};
use kept::Kept;
pub use layout::{Direction, Half, Layout};
use line::{carried_words, may_carry};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
pub use segment::{Segment, SegmentError};

use crate::{
    check::Side,
    futex::{self, Words},
    link::{Arrival, Block, Geometry, Link, LinkError, Payload, failed},
    tune::{DRAIN_ROUNDS, FUTEX_SLICE, LINES_AHEAD, LIVENESS_POLLS},
};

/// One end of a link over shared memory.
#[derive(Debug)]
pub struct ShmLink {
    segment: Segment,
    socket: OwnedFd,
    side: Side,
    outbound: Half,
    inbound: Half,
    /// The number of the last message posted, and of the last that the peer is known to have taken.
    posted: u32,
    confirmed: u32,
    /// The number of the last message polled.
    polled: u32,
    /// The last message of each slot.
    kept: Kept,
    /// Blocks from one slot to the next.
    slot_blocks: u32,
    /// Where the payload of the last message lay, if it was small: with one call at a time the next one's lies there too.
    expected: Option<usize>,
    /// Empty polls since a message came or the socket was looked at.
    idle_polls: u32,
    /// The last message's slot.
    last_slot: u16,
    /// A poll was empty since the last message.
    waited: bool,
    /// The last message was here before it was looked for: there are several at a time.
    pipelined: bool,
    /// Several posts follow, and one look at the peer's bell is enough for all; one is due.
    holds: bool,
    unrung: bool,
    /// Our bell may say that we sleep.
    asked: bool,
    /// The peer is gone: what it posted before still counts.
    closed: bool,
}

impl ShmLink {
    /// Makes a link of a mapped segment and one end of a connected Unix stream socket, which then belongs to it.
    pub fn new(segment: Segment, socket: OwnedFd, side: Side) -> Self {
        let outbound = Direction::sent_by(side);
        let half = |direction| *segment.layout().half(direction);
        let (outbound, inbound) = (half(outbound), half(outbound.opposite()));
        if side == Side::Worker {
            segment.begin();
        }
        let geometry = segment.geometry();
        Self {
            kept: Kept::new(geometry, side),
            slot_blocks: geometry.slot_bytes / BLOCK_ALIGN as u32,
            segment,
            socket,
            side,
            outbound,
            inbound,
            posted: 0,
            confirmed: 0,
            polled: 0,
            expected: None,
            idle_polls: 0,
            last_slot: 0,
            waited: true,
            pipelined: false,
            holds: false,
            unrung: false,
            asked: false,
            closed: false,
        }
    }

    /// The next message is here.
    #[inline(always)]
    fn ready(&self) -> bool {
        let next = self.polled.wrapping_add(1);
        self.segment.line(&self.inbound, next).holds(next)
    }

    /// No message is here.
    #[inline(always)]
    fn found_none(&mut self) -> Result<Option<Arrival>, Box<LinkError>> {
        self.waited = true;
        // The payload is written before the line: so it is on its way while we still wait for the line.
        if let Some(at) = self.expected {
            self.segment.prefetch(&self.inbound, at);
        }
        self.idle_polls += 1;
        if self.idle_polls >= LIVENESS_POLLS || self.closed {
            self.ask_if_closed().map_err(failed)?;
        }
        Ok(None)
    }

    /// After many empty polls, or when the peer is known to be gone: asks the socket.
    #[cold]
    fn ask_if_closed(&mut self) -> Result<(), LinkError> {
        self.look_at_socket()?;
        // What it posted before it went was there before its socket ended.
        match self.closed && !self.ready() {
            true => Err(LinkError::Closed),
            false => Ok(()),
        }
    }

    /// Takes old wake-ups off the socket and finds out whether the peer has gone.
    fn look_at_socket(&mut self) -> Result<(), LinkError> {
        self.idle_polls = 0;
        let mut wake_ups = [0; 64];
        for _ in 0..DRAIN_ROUNDS {
            match recv(self.socket.as_raw_fd(), &mut wake_ups, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(nix::Error::ECONNRESET) => {
                    self.closed = true;
                    break;
                }
                Ok(taken) if taken == wake_ups.len() => {}
                Ok(_) | Err(nix::Error::EAGAIN | nix::Error::EINTR) => break,
                Err(error) => return Err(system("receive wake-ups", error)),
            }
        }
        Ok(())
    }

    /// The ring is full as far as is known: looks at what the peer has taken by now.
    #[cold]
    fn confirm(&mut self) -> Result<(), LinkError> {
        let taken = self.segment.taken(&self.outbound).load(Ordering::Acquire);
        let newly = taken.wrapping_sub(self.confirmed);
        // More than was posted is a lie, and worth nothing; any other only hurts who tells it.
        if (1..=self.segment.layout().lines).contains(&newly) {
            self.confirmed = taken;
            return Ok(());
        }
        self.look_at_socket()?;
        match self.closed {
            true => Err(LinkError::Closed),
            false => Err(LinkError::Window { window: self.segment.geometry().window }),
        }
    }

    /// Wakes the peer, if it sleeps.
    #[inline(always)]
    fn ring(&mut self) -> Result<(), LinkError> {
        self.unrung = false;
        match bell::ring(self.segment.sleeping(&self.outbound)) {
            None => Ok(()),
            Some(how) => self.wake(how),
        }
    }

    #[cold]
    fn wake(&mut self, how: Sleep) -> Result<(), LinkError> {
        match how {
            Sleep::Futex => {
                futex::wake(self.segment.sleeping(&self.outbound));
                Ok(())
            }
            Sleep::Socket => self.send_wake_up(),
        }
    }

    /// Does so for the posts that were held.
    #[inline]
    fn ring_if_due(&mut self) -> Result<(), LinkError> {
        if self.unrung { self.ring() } else { Ok(()) }
    }

    fn send_wake_up(&mut self) -> Result<(), LinkError> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(self.socket.as_raw_fd(), &[1], flags) {
            // A socket without room is readable as it is.
            Ok(_) | Err(nix::Error::EAGAIN) => Ok(()),
            Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => {
                self.closed = true;
                Err(LinkError::Closed)
            }
            Err(error) => Err(system("send a wake-up", error)),
        }
    }

    /// Tells the peer that we are about to sleep. True if a message is here.
    fn ask(&mut self, how: Sleep) -> bool {
        let ready = bell::ask(self.segment.sleeping(&self.inbound), how, || self.ready());
        self.asked = !ready;
        ready
    }
}

impl Link for ShmLink {
    #[inline]
    fn geometry(&self) -> Geometry {
        self.segment.geometry()
    }

    #[inline(always)]
    fn outgoing(&mut self, block: Block) -> &mut [u8] {
        self.segment.room(&self.outbound, block)
    }

    #[inline(always)]
    fn post(&mut self, block: Block, header: &Header) -> Result<(), LinkError> {
        debug_assert_eq!(header.block, block.index(), "the header names another block");
        debug_assert!(header.payload_len <= block.capacity, "the payload exceeds its block");
        if self.closed {
            return Err(LinkError::Closed);
        }
        if self.posted.wrapping_sub(self.confirmed) == self.segment.layout().lines {
            self.confirm()?;
        }
        self.posted = self.posted.wrapping_add(1);
        if may_carry(header, self.slot_blocks) {
            let payload = self.segment.room(&self.outbound, block);
            let carried = carried_words(&payload[..header.payload_len as usize]);
            let line = self.segment.line(&self.outbound, self.posted);
            line.publish(self.posted, header, Some(carried));
        } else {
            self.segment.line(&self.outbound, self.posted).publish(self.posted, header, None);
        }
        // With one message at a time the peer already looks at the next line, and would lose it for nothing.
        if self.pipelined {
            self.segment.own_line(&self.outbound, self.posted.wrapping_add(LINES_AHEAD));
        }
        self.unrung = true;
        if self.holds { Ok(()) } else { self.ring() }
    }

    fn hold(&mut self) {
        self.holds = true;
    }

    fn release(&mut self) -> Result<(), LinkError> {
        self.holds = false;
        self.ring_if_due()
    }

    #[inline(always)]
    fn poll(&mut self) -> Result<Option<Arrival>, Box<LinkError>> {
        self.ring_if_due().map_err(failed)?;
        let next = self.polled.wrapping_add(1);
        let line = self.segment.line(&self.inbound, next);
        if !line.holds(next) {
            return self.found_none();
        }
        let taken = self.kept.take(line)?;
        (self.polled, self.idle_polls) = (next, 0);
        self.segment.taken(&self.inbound).store(next, Ordering::Release);
        if self.asked {
            self.asked = false;
            withdraw(&self.segment, &self.inbound);
        }
        // One at a time always finds the same slot free.
        let other = std::mem::replace(&mut self.last_slot, taken.slot()) != taken.slot();
        self.pipelined = other & !std::mem::take(&mut self.waited);
        if self.pipelined {
            self.segment.prefetch_payload_of(&self.inbound, next.wrapping_add(1));
        }
        self.expected = taken.line();
        // Last: what is read before a store has to be kept somewhere.
        Ok(Some(taken.arrival(self.side)))
    }

    #[inline(always)]
    fn incoming(&self, payload: Payload) -> &[u8] {
        self.kept.carried(payload).unwrap_or_else(|| self.segment.payload(&self.inbound, payload))
    }

    #[inline]
    fn intact(&self) -> bool {
        self.segment.is_whole()
    }

    #[inline(always)]
    fn exchange(&mut self, payload: Payload, reply: Block) -> (&mut [u8], &mut [u8]) {
        match self.kept.carried_mut(payload) {
            Some(input) => (input, self.segment.room(&self.outbound, reply)),
            None => self.segment.exchange(&self.inbound, payload, &self.outbound, reply),
        }
    }

    fn unsent(&self) -> bool {
        false
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), LinkError> {
        self.ring_if_due()?;
        let end = Instant::now().checked_add(timeout);
        while !self.ready() && !self.ask(Sleep::Futex) {
            // After asking: a peer that leaves from here on rings.
            self.look_at_socket()?;
            let left = end.map_or(Duration::MAX, |end| end.duration_since(Instant::now()));
            if self.closed || left.is_zero() {
                break;
            }
            // In slices: a peer that is killed does not ring, and a hostile one may have moved our sleep elsewhere.
            let mut sleep = Words::new();
            sleep.push((self.segment.sleeping(&self.inbound), Sleep::Futex as u32));
            sleep
                .wait(left.min(FUTEX_SLICE))
                .map_err(|source| LinkError::Io { step: "sleep on the futex", source })?;
        }
        withdraw(&self.segment, &self.inbound);
        self.asked = false;
        Ok(())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn arm(&mut self) -> Result<bool, LinkError> {
        self.ring_if_due()?;
        // Before asking: the byte of a message that comes after it must stay.
        self.look_at_socket()?;
        Ok(self.closed || self.ask(Sleep::Socket))
    }

    fn wait_word(&self) -> Option<(&AtomicU32, u32)> {
        Some((self.segment.sleeping(&self.inbound), Sleep::Futex as u32))
    }

    fn arm_word(&mut self) -> Result<bool, LinkError> {
        self.ring_if_due()?;
        // A look first: while messages wait, the peer's line of our bell is left alone.
        Ok(self.closed || self.ready() || self.ask(Sleep::Futex))
    }
}

impl Drop for ShmLink {
    fn drop(&mut self) {
        // First the end that the peer shall see, then the wake-up to look at it. A peer that went first needs neither.
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
        let _ = self.ring();
    }
}

/// Tells the peer that we look by ourselves again.
#[cold]
fn withdraw(segment: &Segment, inbound: &Half) {
    bell::withdraw(segment.sleeping(inbound));
}

fn system(step: &'static str, error: nix::Error) -> LinkError {
    LinkError::Io { step, source: error.into() }
}
