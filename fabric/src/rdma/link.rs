//! A [`Link`] over a reliable connected queue pair.
//!
//! Each end registers two regions in a protection domain of its own: what it sends from, which nobody else may touch, and what its
//! peer writes to. A message is one write of header and payload from the one into the other, at the same offset, with the block
//! and the generation as its immediate; or of the payload alone, where the immediate says it all ([`super::brief`]). It takes one of the
//! receives that the peer keeps posted. Beside it stands the socket on
//! which the lane was attached: its end is the peer's.
//!
//! ```text
//! post: header beside payload, if need be ──▶ one write with immediate ──▶ completion at the peer
//! poll: completion ──▶ immediate ──▶ header: made, or its snapshot ──▶ checked ──▶ arrival         sleep: channel, device, socket in one epoll
//! ```
#![forbid(unsafe_code)]

mod inbound;
mod outbound;

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use gleaner_proto::header::{GUARD_LEN, Header, Immediate, brief_time};
use inbound::elsewhere;
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        epoll::Epoll,
        socket::{MsgFlags, Shutdown, recv, shutdown},
    },
};

use super::{
    brief::Record,
    completions::Completion,
    error::{RdmaError, WorkStatus},
    pair::{QueuePair, ReadyToSend, Target, Write},
    setup::Parts,
};
use crate::{
    call::{Done, Expected, Found, Runs},
    check::Side,
    link::{Arrival, Block, Geometry, Link, LinkError, Payload, found, serve_arrival},
    tune::{COMPLETIONS_BATCH, DRAIN_ROUNDS, LIVENESS_POLLS, PARTING, POSTS_BATCH},
};

/// One end of a link over verbs.
#[derive(Debug)]
pub struct RdmaLink {
    /// First: it stops before its memory goes.
    pub(super) pair: QueuePair<ReadyToSend>,
    pub(super) parts: Parts,
    pub(super) target: Target,
    side: Side,
    record: Record,
    socket: OwnedFd,
    sleep: Epoll,
    /// The number of the last write posted, and of the last that is known to have ended.
    posted: u64,
    confirmed: u64,
    /// The number of the next write that asks for a completion.
    signalled: u64,
    /// Up to this number, writes find room and ask for no completion.
    silent: u64,
    /// Writes that wait for others to go out with, while `holds`.
    held: Vec<Write>,
    holds: bool,
    /// Receives that were used since they were last posted.
    used: u32,
    /// Completions that were polled and not looked at yet: `ready[next..count]`.
    ready: [Completion; COMPLETIONS_BATCH],
    next: usize,
    count: usize,
    idle_polls: u32,
    /// An event was asked for and has not come.
    asked: bool,
    /// The last sleep has found nothing yet.
    slept: bool,
    closed: bool,
}

impl RdmaLink {
    /// A connected one: with the socket on which the two have met, and what wakes it.
    pub(super) fn new(
        pair: QueuePair<ReadyToSend>,
        parts: Parts,
        target: Target,
        side: Side,
        (socket, sleep): (OwnedFd, Epoll),
    ) -> Self {
        Self {
            pair,
            record: Record::new(parts.geometry),
            parts,
            target,
            side,
            socket,
            sleep,
            posted: 0,
            confirmed: 0,
            signalled: 1,
            silent: 0,
            held: Vec::with_capacity(POSTS_BATCH),
            holds: false,
            used: 0,
            ready: [Completion::default(); COMPLETIONS_BATCH],
            next: 0,
            count: 0,
            idle_polls: 0,
            asked: false,
            slept: false,
            closed: false,
        }
    }

    /// Writes nothing to the peer and waits for its device to say that it came: whether it is reached at all.
    pub fn probe(&mut self, patience: Duration) -> Result<(), RdmaError> {
        match self.flush(patience)? {
            true => Ok(()),
            false => Err(self.unreachable(WorkStatus::RETRY_EXCEEDED)),
        }
    }

    /// Why the queue pair has failed: a flushed request only says that it has.
    #[cold]
    fn broken(&mut self, status: WorkStatus) -> LinkError {
        let first = match status {
            WorkStatus::FLUSHED => match self.confirm() {
                Ok(Err(first)) => first,
                _ => status,
            },
            other => other,
        };
        let error = match self.look() {
            Err(error) => error,
            Ok(()) => LinkError::QueuePair(first),
        };
        self.tell_peer();
        error
    }

    /// Whatever broke here, the peer shall not wait for.
    fn tell_peer(&self) {
        let _ = shutdown(self.socket.as_raw_fd(), Shutdown::Both);
    }

    /// Asks the device and the socket whether this link is of any use. Not on the hot path.
    #[cold]
    fn look(&mut self) -> Result<(), LinkError> {
        self.idle_polls = 0;
        if let Some(fault) = self.parts.device.fault(self.parts.port.number) {
            self.tell_peer();
            return Err(LinkError::Device(fault));
        }
        let mut unwanted = [0; 64];
        for _ in 0..DRAIN_ROUNDS {
            match recv(self.socket.as_raw_fd(), &mut unwanted, MsgFlags::MSG_DONTWAIT) {
                Ok(0) | Err(nix::Error::ECONNRESET) => {
                    self.closed = true;
                    self.silent = 0;
                    break;
                }
                Ok(taken) if taken == unwanted.len() => {}
                Ok(_) | Err(nix::Error::EAGAIN | nix::Error::EINTR) => break,
                Err(error) => {
                    return Err(LinkError::Io { step: "look at the peer", source: error.into() });
                }
            }
        }
        // What it wrote before it went was there before its socket ended.
        match self.closed && !self.has_ready()? {
            true => Err(LinkError::Closed),
            false => Ok(()),
        }
    }
}

impl Link for RdmaLink {
    fn geometry(&self) -> Geometry {
        self.parts.geometry
    }

    #[inline(always)]
    fn outgoing(&mut self, block: Block) -> &mut [u8] {
        block.payload_and_guard(self.parts.outgoing.bytes_mut())
    }

    #[inline(always)]
    fn post(&mut self, block: Block, header: &Header) -> Result<(), Box<LinkError>> {
        let signals = self.room()?;
        self.post_header(block, header, signals)
    }

    #[inline(always)]
    fn ask(&mut self, call: &Expected, time_ns: u64) -> Result<(), Box<LinkError>> {
        let signals = self.room()?;
        let input = call.input();
        match self.record.ask(call, time_ns) {
            Some(brief) => {
                self.write(input.payload_offset(), input.capacity as usize, brief, signals)
            }
            None => self.post_header(input, &call.request(time_ns), signals),
        }
    }

    fn hold(&mut self) {
        self.holds = true;
    }

    fn release(&mut self) -> Result<(), LinkError> {
        self.holds = false;
        self.send_held()
    }

    #[inline(always)]
    fn poll(&mut self) -> Result<Option<Arrival>, Box<LinkError>> {
        if !self.has_come()? {
            return Ok(None);
        }
        let (immediate, len) = self.take()?;
        self.arrival(immediate, len).map(Some)
    }

    #[inline(always)]
    fn answer(&mut self, call: &Expected, looks: u32) -> Result<Found<'_>, Box<LinkError>> {
        let mut looks = 1..looks.max(1);
        while !self.has_come()? {
            if looks.next().is_none() {
                return Ok(Found::None);
            }
        }
        let (immediate, len) = self.take()?;
        if let Immediate::Brief { slot, .. } = Immediate::decode(immediate)
            && self.record.answers(call, slot, len)
        {
            let offset = call.block().payload_offset();
            return Ok(Found::Reply(self.incoming(Payload { slot: slot.into(), offset, len })));
        }
        let arrival = self.arrival(immediate, len)?;
        Ok(found(self, call, arrival))
    }

    fn serve(&mut self, runs: &mut dyn Runs) -> Result<bool, Box<LinkError>> {
        self.serve_with(runs)
    }

    #[inline(always)]
    fn serve_with<R: Runs + ?Sized>(&mut self, runs: &mut R) -> Result<bool, Box<LinkError>> {
        if !self.has_come()? {
            return Ok(false);
        }
        let (immediate, len) = self.take()?;
        let Immediate::Brief { slot, detail } = Immediate::decode(immediate) else {
            let arrival = self.arrival(immediate, len)?;
            return serve_arrival(self, arrival, runs).map(|()| true);
        };
        let asked = self.record.asked(slot, detail, len).ok_or_else(|| elsewhere(slot, len))?;
        let own = self.parts.geometry.slot(asked.slot);
        let payload = Payload { slot: asked.slot, offset: own.payload_offset(), len };
        let (input, output) = self.exchange(payload, own);
        let done = runs.run(asked, input, output);
        let signals = self.room()?;
        if let Done { len, time_ns, failure: None } = done
            && let Some(detail) = brief_time(time_ns)
        {
            let brief = Immediate::Brief { slot, detail };
            self.write(own.payload_offset(), len, brief, signals)?;
            return Ok(true);
        }
        let header = done.response(&self.record.request(asked.slot, 0));
        self.post_header(own, &header, signals)?;
        Ok(true)
    }

    #[inline(always)]
    fn incoming(&self, payload: Payload) -> &[u8] {
        &self.parts.incoming.bytes()[payload.range()]
    }

    #[inline(always)]
    fn exchange(&mut self, payload: Payload, reply: Block) -> (&mut [u8], &mut [u8]) {
        let input = &mut self.parts.incoming.bytes_mut()[payload.range()];
        debug_assert!(reply.capacity as usize + GUARD_LEN <= self.parts.outgoing.len());
        (input, reply.payload_and_guard(self.parts.outgoing.bytes_mut()))
    }

    fn unsent(&self) -> bool {
        false
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), LinkError> {
        let end = Instant::now().checked_add(timeout);
        while !self.arm()? {
            let left = end.map_or(Duration::MAX, |end| end.duration_since(Instant::now()));
            // poll(2) counts whole milliseconds: rounding down would spin through the last one.
            let bound = left.saturating_add(Duration::from_micros(999));
            let bound = PollTimeout::try_from(bound).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.sleep.0.as_fd(), PollFlags::POLLIN)], bound) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => {
                    return Err(LinkError::Io { step: "sleep on a link", source: error.into() });
                }
            }
            if end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
        }
        Ok(())
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.sleep.0.as_fd())
    }

    fn arm(&mut self) -> Result<bool, LinkError> {
        if self.holds {
            self.send_held()?;
        }
        if self.has_ready()? {
            return Ok(true);
        }
        if self.slept {
            // Something else woke it, or nothing did. The next poll tells what.
            if self.look().is_err() {
                self.idle_polls = LIVENESS_POLLS;
                return Ok(true);
            }
        }
        if self.asked && self.parts.receives.take_event() {
            self.asked = false;
        }
        if !self.asked {
            self.parts.receives.request_event()?;
            self.asked = true;
        }
        self.slept = true;
        // What came before the request rings nobody.
        self.has_ready()
    }
}

impl Drop for RdmaLink {
    fn drop(&mut self) {
        let sent = self.send_held();
        if sent.is_ok() && !self.closed && self.confirmed < self.posted {
            // What was posted last shall arrive, if the peer is there; if it is not, nobody misses it.
            let _ = self.flush(PARTING);
        }
        self.pair.fail();
        self.tell_peer();
    }
}
