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

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use gleaner_proto::header::{BLOCK_ALIGN, GUARD_LEN, HEADER_LEN, Header, Immediate, Kind};
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
    check::{self, Side},
    link::{Arrival, Block, Geometry, Link, LinkError, Payload, failed},
    tune::{
        COMPLETIONS_BATCH, DRAIN_ROUNDS, LIVENESS_POLLS, PARTING, POSTS_BATCH, SIGNALS_PER_ROUND,
    },
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

    /// Waits until the peer's device has everything that was posted; false if that takes too long.
    fn flush(&mut self, patience: Duration) -> Result<bool, RdmaError> {
        let until = Instant::now() + patience;
        self.posted += 1;
        let write = Write { bytes: 0..0, offset: 0, immediate: None, signal: Some(self.posted) };
        self.pair.write(&self.parts.outgoing, self.target, &[write])?;
        while self.confirmed < self.posted {
            self.confirm()?.map_err(|status| self.unreachable(status))?;
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::yield_now();
        }
        Ok(true)
    }

    fn unreachable(&self, status: WorkStatus) -> RdmaError {
        RdmaError::Unreachable { device: self.parts.device.name().to_owned(), status }
    }

    /// Takes note of writes that have ended.
    fn confirm(&mut self) -> Result<Result<(), WorkStatus>, RdmaError> {
        let mut ended = [Completion::default(); COMPLETIONS_BATCH];
        loop {
            let count = self.parts.sends.poll(&mut ended)?;
            for completion in &ended[..count] {
                if let Err(status) = completion.result() {
                    return Ok(Err(status));
                }
                self.confirmed = completion.id();
            }
            if count < ended.len() {
                return Ok(Ok(()));
            }
        }
    }

    /// Makes sure of room for the next write; true if it is to be signalled. The queue of those that have ended is looked at
    /// here, and seldom anywhere else.
    #[cold]
    fn make_room(&mut self) -> Result<bool, LinkError> {
        let sends = u64::from(self.parts.depth.sends);
        if self.posted - self.confirmed + 1 >= sends {
            self.send_held()?;
        }
        self.ended()?;
        let room = (self.confirmed + sends).saturating_sub(self.posted + 1);
        if room == 0 {
            self.look()?;
            return Err(LinkError::Window { window: self.parts.geometry.window });
        }
        let signals = self.posted + 1 >= self.signalled;
        if signals {
            self.signalled += (sends / u64::from(SIGNALS_PER_ROUND)).max(1);
        }
        self.silent = (self.posted + room).min(self.signalled - 1);
        Ok(signals)
    }

    /// Hands held writes over to the device, by one post.
    fn send_held(&mut self) -> Result<(), LinkError> {
        if !self.held.is_empty() {
            let sent = self.pair.write(&self.parts.outgoing, self.target, &self.held);
            self.held.clear();
            sent?;
        }
        Ok(())
    }

    fn ended(&mut self) -> Result<(), LinkError> {
        match self.confirm()? {
            Ok(()) => Ok(()),
            Err(status) => Err(self.broken(status)),
        }
    }

    /// Looks for completions, if those that were polled are used up.
    #[inline(always)]
    fn has_ready(&mut self) -> Result<bool, LinkError> {
        if self.next == self.count {
            self.next = 0;
            self.count = self.parts.receives.poll(&mut self.ready)?;
        }
        Ok(self.next < self.count)
    }

    /// Takes the next completion, which is there.
    #[inline(always)]
    fn take(&mut self) -> Result<Option<Arrival>, Box<LinkError>> {
        let completion = &self.ready[self.next];
        let (result, immediate) = (completion.result(), completion.immediate());
        let written = completion.written();
        self.next += 1;
        self.slept = false;
        self.idle_polls = 0;
        if let Err(status) = result {
            return Err(failed(self.broken(status)));
        }
        self.used += 1;
        if self.used == self.parts.chain.count() {
            self.refill().map_err(failed)?;
        }
        let Some(raw) = immediate else {
            return Err(failed(LinkError::NoImmediate));
        };
        let arrival = match Immediate::decode(raw) {
            Immediate::Brief { slot, detail } => self.brief(slot, detail, written),
            Immediate::Headed { block, generation } => self.headed(block, generation),
        };
        let arrival = arrival.map_err(failed)?;
        if arrival.header.kind == Kind::Request {
            self.record.note(&arrival.header);
        }
        Ok(Some(arrival))
    }

    /// What has arrived without a header.
    #[inline(always)]
    fn brief(&self, slot: u8, detail: u16, len: u32) -> Result<Arrival, LinkError> {
        let arrival = self.record.arrival(self.side.takes(), slot, detail, len);
        arrival.ok_or(LinkError::Range { slot: slot.into(), block: 0, len })
    }

    /// What has arrived with its header before it.
    #[inline]
    fn headed(&self, block: u32, generation: u8) -> Result<Arrival, LinkError> {
        // Where a header may lie at all; that this one lies in its slot or the arena, its check finds.
        let offset = block as usize * BLOCK_ALIGN;
        if offset + HEADER_LEN > self.parts.incoming.len() {
            return Err(LinkError::Range { slot: 0, block, len: 0 });
        }
        let snapshot = self.parts.incoming.snapshot(offset);
        let arrival = check::arrival(self.parts.geometry, self.side, &snapshot)?;
        let header = &arrival.header;
        if header.block != block || header.generation as u8 != generation {
            let immediate = Immediate::Headed { block, generation }.encode();
            return Err(LinkError::Immediate { immediate, block: header.block });
        }
        Ok(arrival)
    }

    /// Posts receives again, all that one batch has used up.
    #[cold]
    fn refill(&mut self) -> Result<(), RdmaError> {
        self.used = 0;
        self.parts.chain.post(&mut self.pair)
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
        debug_assert_eq!(header.block, block.index(), "the header names another block");
        debug_assert!(header.payload_len <= block.capacity, "the payload exceeds its block");
        if self.closed {
            return Err(failed(LinkError::Closed));
        }
        let signals = self.posted >= self.silent && self.make_room()?;
        let mut start = block.offset as usize;
        let payload = start + HEADER_LEN;
        let end = payload + header.payload_len as usize;
        let immediate = match self.record.immediate(header) {
            Some(brief) => {
                start = payload;
                brief
            }
            None => {
                self.parts.outgoing.bytes_mut()[start..payload].copy_from_slice(&header.encode());
                Immediate::Headed { block: header.block, generation: header.generation as u8 }
            }
        };
        if header.kind == Kind::Request {
            self.record.note(header);
        }
        self.posted += 1;
        let write = Write {
            bytes: start..end,
            offset: start as u64,
            immediate: Some(immediate.encode()),
            signal: signals.then_some(self.posted),
        };
        if !self.holds {
            return self.pair.write(&self.parts.outgoing, self.target, &[write]).map_err(failed);
        }
        self.held.push(write);
        match self.held.len() < POSTS_BATCH {
            true => Ok(()),
            false => self.send_held().map_err(failed),
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
        if self.holds {
            self.send_held().map_err(failed)?;
        }
        if self.has_ready().map_err(failed)? {
            return self.take();
        }
        self.idle_polls += 1;
        if self.idle_polls < LIVENESS_POLLS && !self.closed {
            return Ok(None);
        }
        self.look().map_err(failed)?;
        Ok(None)
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
