//! The `tcp` backend: a link over a connected stream socket, TCP or a Unix stream on the same node.
//!
//! Set-up is the caller's: it hands over a socket on which the greeting is done. From then on the socket carries messages
//! alone, 64 bytes of header and then the payload. A message is sent by one call from its block, where header and payload lie
//! side by side. With one call at a time the next message belongs to the slot that was posted last, and is received right into its
//! block. Others are received many at a time through a staging buffer; of a large one only the first part is, the rest goes straight into
//! its block. Hot waiters call `poll`, warm ones sleep in poll(2).
//!
//! ```text
//! receive:  socket ──recv──▶ staging ──▶ header checked ──▶ payload into its block ──▶ arrival
//!              │     └─────────── rest of a large payload ──────▲                        ▲
//!              └──recv──▶ the block that is probably next ──▶ header checked: it is ─────┘
//! ```
#![forbid(unsafe_code)]

mod inbound;
mod outbound;
mod socket;
mod staging;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use gleaner_proto::header::{HEADER_LEN, Header};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use socket::system;
use staging::Staging;

use crate::{
    call::{Expected, Found, Runs},
    check::Side,
    link::{Arrival, Block, Geometry, Link, LinkError, Payload, found},
    region::Region,
};

/// One end of a link over a socket.
#[derive(Debug)]
pub struct TcpLink {
    socket: OwnedFd,
    side: Side,
    geometry: Geometry,
    outgoing: Region,
    incoming: Region,
    staging: Staging,
    /// The slot that was posted last, while nothing has come since: nobody reads its incoming block.
    expected: Option<u16>,
    /// Messages that the last receive brought.
    brought: u32,
    /// The message whose payload is still arriving.
    partial: Option<Partial>,
    /// Messages that the socket did not take yet, oldest first; room for a window of them.
    unsent: VecDeque<Unsent>,
    /// The last receive left nothing in the socket, and no sleep was asked for since.
    emptied: bool,
}

#[derive(Debug)]
struct Partial {
    arrival: Arrival,
    filled: usize,
}

/// A range of the outgoing region.
#[derive(Debug)]
struct Unsent {
    start: usize,
    end: usize,
}

impl TcpLink {
    /// Makes a link of a connected stream socket. Both ends must have agreed on the geometry.
    pub fn new(
        socket: impl Into<OwnedFd>,
        side: Side,
        geometry: Geometry,
    ) -> Result<Self, LinkError> {
        let socket = socket.into();
        let flags = fcntl(&socket, FcntlArg::F_GETFL).map_err(|e| system("read the flags", e))?;
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        fcntl(&socket, FcntlArg::F_SETFL(flags)).map_err(|e| system("set non-blocking", e))?;
        match setsockopt(&socket, sockopt::TcpNoDelay, &true) {
            // A Unix stream delays nothing.
            Ok(()) | Err(nix::Error::EOPNOTSUPP | nix::Error::ENOPROTOOPT) => {}
            Err(error) => return Err(system("set TCP_NODELAY", error)),
        }
        Ok(Self {
            socket,
            side,
            geometry,
            outgoing: region(geometry)?,
            incoming: region(geometry)?,
            staging: Staging::new(),
            expected: None,
            brought: 0,
            partial: None,
            unsent: VecDeque::with_capacity(usize::from(geometry.window)),
            emptied: false,
        })
    }
}

impl Link for TcpLink {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    #[inline]
    fn outgoing(&mut self, block: Block) -> &mut [u8] {
        block.payload_and_guard(self.outgoing.bytes_mut())
    }

    #[inline(always)]
    fn post(&mut self, block: Block, header: &Header) -> Result<(), Box<LinkError>> {
        debug_assert_eq!(header.block, block.index(), "the header names another block");
        debug_assert!(header.payload_len <= block.capacity, "the payload exceeds its block");
        self.expected = (header.slot < self.geometry.window).then_some(header.slot);
        self.send(block, header.payload_len, header.words())
    }

    #[inline(always)]
    fn ask(&mut self, call: &Expected, time_ns: u64) -> Result<(), Box<LinkError>> {
        self.expected = Some(call.slot());
        self.send(call.input(), call.input().capacity, call.request_words(time_ns))
    }

    #[inline(always)]
    fn poll(&mut self) -> Result<Option<Arrival>, Box<LinkError>> {
        if !self.unsent.is_empty() {
            self.flush()?;
        }
        let Some(slot) = self.awaited() else { return self.next() };
        match self.receive_in_place(slot)? {
            0 => Ok(None),
            received => match self.sort(slot, received)? {
                None => self.next(),
                arrival => Ok(arrival),
            },
        }
    }

    #[inline(always)]
    fn answer(&mut self, call: &Expected, looks: u32) -> Result<Found<'_>, Box<LinkError>> {
        let mut looks = 1..looks.max(1);
        loop {
            if !self.unsent.is_empty() {
                self.flush()?;
            }
            let arrival = match self.awaited() {
                Some(slot) if slot == call.slot() => match self.receive_in_place(slot)? {
                    0 => None,
                    received => {
                        if let Some(len) = self.good_answer(call, received) {
                            (self.brought, self.expected) = (1, None);
                            let offset = call.block().payload_offset();
                            return Ok(Found::Reply(self.incoming(Payload { slot, offset, len })));
                        }
                        match self.sort(slot, received)? {
                            None => self.next()?,
                            arrival => arrival,
                        }
                    }
                },
                _ => self.next()?,
            };
            match arrival {
                Some(arrival) => return Ok(found(self, call, arrival)),
                None if looks.next().is_none() => return Ok(Found::None),
                None => {}
            }
        }
    }

    fn serve(&mut self, runs: &mut dyn Runs) -> Result<bool, Box<LinkError>> {
        self.serve_with(runs)
    }

    #[inline]
    fn incoming(&self, payload: Payload) -> &[u8] {
        &self.incoming.bytes()[payload.range()]
    }

    #[inline]
    fn exchange(&mut self, payload: Payload, reply: Block) -> (&mut [u8], &mut [u8]) {
        let output = reply.payload_and_guard(self.outgoing.bytes_mut());
        (&mut self.incoming.bytes_mut()[payload.range()], output)
    }

    fn unsent(&self) -> bool {
        !self.unsent.is_empty()
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), LinkError> {
        let end = Instant::now().checked_add(timeout);
        loop {
            if !self.unsent.is_empty() {
                self.flush()?;
            }
            if self.arm()? {
                return Ok(());
            }
            let write = if self.unsent() { PollFlags::POLLOUT } else { PollFlags::empty() };
            let mut sleep = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN | write)];
            let left = end.map_or(Duration::MAX, |end| end.duration_since(Instant::now()));
            let bound =
                PollTimeout::try_from(left.saturating_add(ROUND_UP)).unwrap_or(PollTimeout::MAX);
            match poll(&mut sleep, bound) {
                Ok(0) | Err(nix::Error::EINTR) if end.is_some_and(|end| Instant::now() >= end) => {
                    return Ok(());
                }
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) if sleep[0].revents() == Some(PollFlags::POLLOUT) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(system("poll the socket", error)),
            }
        }
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn arm(&mut self) -> Result<bool, LinkError> {
        self.emptied = false;
        // poll(2) looks at the socket's state and not at its edges, so only what was received already needs a look.
        Ok(self.partial.is_none() && self.staging.filled().len() >= HEADER_LEN)
    }

    fn emptied(&self) -> bool {
        self.emptied && self.staging.filled().len() < HEADER_LEN
    }
}

/// poll(2) counts whole milliseconds: rounding down would spin through the last one.
const ROUND_UP: Duration = Duration::from_micros(999);

fn region(geometry: Geometry) -> Result<Region, LinkError> {
    let mut region = Region::anonymous(geometry.region_bytes() as usize)
        .map_err(|source| LinkError::Io { step: "map the link's region", source })?;
    region.advise_huge(geometry.arena_offset() as usize);
    Ok(region)
}
