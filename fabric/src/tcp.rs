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

use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use gleaner_proto::header::{HEADER_LEN, Header};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, recv, send, setsockopt, sockopt},
};

use crate::{
    check::{self, Side},
    link::{Arrival, Block, Geometry, Link, LinkError, Payload, failed},
    region::Region,
    tune::{RECEIVE_ROUNDS, STAGING_BYTES},
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
struct Staging {
    bytes: Box<[u8; STAGING_BYTES]>,
    start: usize,
    end: usize,
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
        let bytes = Box::new([0; STAGING_BYTES]);
        Ok(Self {
            socket,
            side,
            geometry,
            outgoing: region(geometry)?,
            incoming: region(geometry)?,
            staging: Staging { bytes, start: 0, end: 0 },
            expected: None,
            brought: 0,
            partial: None,
            unsent: VecDeque::with_capacity(usize::from(geometry.window)),
            emptied: false,
        })
    }

    /// Sends what the socket takes of what it did not take before.
    fn flush(&mut self) -> Result<(), LinkError> {
        while let Some(message) = self.unsent.front_mut() {
            let bytes = &self.outgoing.bytes()[message.start..message.end];
            message.start += send_some(&self.socket, bytes)?;
            if message.start < message.end {
                return Ok(());
            }
            self.unsent.pop_front();
        }
        Ok(())
    }

    /// Takes one message off the staging buffer, as far as it is there. `None`: more bytes are needed.
    fn next_staged(&mut self) -> Result<Option<Arrival>, LinkError> {
        let Some(snapshot) = self.staging.filled().first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let arrival = check::arrival(self.geometry, self.side, snapshot)?;
        self.brought += 1;
        self.staging.start += HEADER_LEN;
        let wanted = payload_mut(&mut self.incoming, &arrival);
        let filled = self.staging.take(wanted);
        if filled == wanted.len() {
            return Ok(Some(arrival));
        }
        self.partial = Some(Partial { arrival, filled });
        Ok(None)
    }

    /// Receives once: into the block of a payload that is arriving, or that is probably next, else into the staging buffer. 0: nothing
    /// was there.
    fn receive(&mut self) -> Result<usize, LinkError> {
        match (&mut self.partial, self.expected) {
            (Some(Partial { arrival, filled }), _) => {
                let rest = &mut payload_mut(&mut self.incoming, arrival)[*filled..];
                let received = receive_some(&self.socket, rest)?;
                self.emptied = received < rest.len();
                *filled += received;
                Ok(received)
            }
            (None, Some(slot)) if self.staging.is_empty() && self.brought <= 1 => {
                self.receive_in_place(slot)
            }
            (None, _) => {
                self.brought = 0;
                let room = self.staging.room();
                let received = receive_some(&self.socket, room)?;
                self.emptied = received < room.len();
                self.staging.end += received;
                Ok(received)
            }
        }
    }

    /// Receives into a slot's block. What turns out to belong elsewhere goes by way of the staging buffer.
    fn receive_in_place(&mut self, slot: u16) -> Result<usize, LinkError> {
        let own = self.geometry.slot(slot);
        let room = STAGING_BYTES.min(HEADER_LEN + own.capacity as usize);
        let room = &mut self.incoming.bytes_mut()[own.offset as usize..][..room];
        let received = receive_some(&self.socket, room)?;
        self.emptied = received < room.len();
        let bytes = &room[..received];
        let Some((snapshot, rest)) = bytes.split_first_chunk::<HEADER_LEN>() else {
            self.staging.put(bytes);
            return Ok(received);
        };
        let arrival = check::arrival(self.geometry, self.side, snapshot)?;
        if arrival.block.offset != own.offset {
            self.brought = 0;
            self.staging.put(bytes);
            return Ok(received);
        }
        let filled = rest.len().min(arrival.header.payload_len as usize);
        self.staging.put(&rest[filled..]);
        self.brought = 1;
        self.partial = Some(Partial { arrival, filled });
        Ok(received)
    }

    /// The message whose payload is complete now, if it is.
    fn completed(&mut self) -> Option<Arrival> {
        let complete =
            |partial: &mut Partial| partial.filled == partial.arrival.header.payload_len as usize;
        self.partial.take_if(complete).map(|partial| partial.arrival)
    }
}

impl Link for TcpLink {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn outgoing(&mut self, block: Block) -> &mut [u8] {
        block.payload_and_guard(self.outgoing.bytes_mut())
    }

    fn post(&mut self, block: Block, header: &Header) -> Result<(), Box<LinkError>> {
        debug_assert_eq!(header.block, block.index(), "the header names another block");
        debug_assert!(header.payload_len <= block.capacity, "the payload exceeds its block");
        self.expected = (header.slot < self.geometry.window).then_some(header.slot);
        let start = block.offset as usize;
        let end = start + HEADER_LEN + header.payload_len as usize;
        let bytes = &mut self.outgoing.bytes_mut()[start..end];
        bytes[..HEADER_LEN].copy_from_slice(&header.encode());
        if !self.unsent.is_empty() {
            self.flush()?;
        }
        let sent = match self.unsent.is_empty() {
            true => send_some(&self.socket, &self.outgoing.bytes()[start..end])?,
            false => 0,
        };
        if start + sent == end {
            return Ok(());
        }
        if self.unsent.len() == usize::from(self.geometry.window) {
            return Err(failed(LinkError::Window { window: self.geometry.window }));
        }
        self.unsent.push_back(Unsent { start: start + sent, end });
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<Arrival>, Box<LinkError>> {
        if !self.unsent.is_empty() {
            self.flush()?;
        }
        for _ in 0..RECEIVE_ROUNDS {
            if self.partial.is_none()
                && let Some(arrival) = self.next_staged()?
            {
                self.expected = None;
                return Ok(Some(arrival));
            }
            if self.receive()? == 0 {
                return Ok(None);
            }
            if let Some(arrival) = self.completed() {
                self.expected = None;
                return Ok(Some(arrival));
            }
        }
        Ok(None)
    }

    fn incoming(&self, payload: Payload) -> &[u8] {
        &self.incoming.bytes()[payload.range()]
    }

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

impl Staging {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Keeps these bytes, where nothing was.
    fn put(&mut self, bytes: &[u8]) {
        (self.start, self.end) = (0, bytes.len());
        self.bytes[..bytes.len()].copy_from_slice(bytes);
    }

    fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Moves bytes to `wanted`, as many as there are.
    fn take(&mut self, wanted: &mut [u8]) -> usize {
        let taken = wanted.len().min(self.end - self.start);
        wanted[..taken].copy_from_slice(&self.bytes[self.start..self.start + taken]);
        self.start += taken;
        taken
    }

    /// Room to receive into, after what is left of a header.
    fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }
}

fn region(geometry: Geometry) -> Result<Region, LinkError> {
    let mut region = Region::anonymous(geometry.region_bytes() as usize)
        .map_err(|source| LinkError::Io { step: "map the link's region", source })?;
    region.advise_huge(geometry.arena_offset() as usize);
    Ok(region)
}

fn payload_mut<'a>(incoming: &'a mut Region, arrival: &Arrival) -> &'a mut [u8] {
    &mut incoming.bytes_mut()[arrival.payload().range()]
}

/// Bytes that the socket took; 0 if it has no room.
fn send_some(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, LinkError> {
    match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
        Ok(sent) => Ok(sent),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(0),
        Err(error) => Err(system("send", error)),
    }
}

/// Bytes that the socket gave; 0 if it has none. Its end is an error: a link has no half that goes on.
fn receive_some(socket: &OwnedFd, room: &mut [u8]) -> Result<usize, LinkError> {
    match recv(socket.as_raw_fd(), room, MsgFlags::empty()) {
        Ok(0) => Err(LinkError::Closed),
        Ok(received) => Ok(received),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(0),
        Err(error) => Err(system("receive", error)),
    }
}

fn system(step: &'static str, error: nix::Error) -> LinkError {
    match error {
        nix::Error::EPIPE | nix::Error::ECONNRESET => LinkError::Closed,
        other => LinkError::Io { step, source: io::Error::from(other) },
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        net::{TcpListener, TcpStream},
        os::unix::net::UnixStream,
    };

    use super::*;
    use crate::{
        call::{Expected, response},
        conformance::{HostilePair, Pair},
    };

    fn sockets() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn pair(geometry: Geometry) -> Pair {
        let (client, worker) = sockets();
        link_pair(client, worker, geometry)
    }

    fn link_pair(
        client: impl Into<OwnedFd>,
        worker: impl Into<OwnedFd>,
        geometry: Geometry,
    ) -> Pair {
        let client = TcpLink::new(client, Side::Client, geometry).unwrap();
        let worker = TcpLink::new(worker, Side::Worker, geometry).unwrap();
        (Box::new(client), Box::new(worker))
    }

    fn hostile(geometry: Geometry) -> HostilePair {
        let (mut client, worker) = sockets();
        let worker = TcpLink::new(worker, Side::Worker, geometry).unwrap();
        (Box::new(worker), Box::new(move |bytes| client.write_all(bytes).unwrap()))
    }

    crate::conformance_suite!(pair, hostile);

    #[test]
    fn a_unix_stream_is_a_link_as_well() {
        crate::conformance::order(|geometry| {
            let (client, worker) = UnixStream::pair().unwrap();
            link_pair(client, worker, geometry)
        });
    }

    /// A good answer's bytes.
    fn answer(expected: &Expected, reply: &[u8]) -> Vec<u8> {
        let header = response(&expected.request(0), reply.len() as u32, 0);
        [&header.encode()[..], reply].concat()
    }

    /// The one that was asked for last is received in place if it comes first.
    #[test]
    fn two_answers_that_are_cut_anywhere_come_whole() {
        let (first, last) = ((0, &b"of slot 0"[..]), (1, &b"slot 1's own"[..]));
        for replies in [[last, first], [first, last]] {
            come_whole(replies);
        }
    }

    fn come_whole(replies: [(u16, &[u8]); 2]) {
        let geometry = Geometry { window: 2, slot_bytes: 256, arena_bytes: 0 };
        let expected = |slot| {
            let mut expected = Expected::new(slot, 1, geometry.slot(slot));
            expected.begin(u64::from(slot), 0);
            expected
        };
        let stream = replies.map(|(slot, reply)| answer(&expected(slot), reply)).concat();
        for cut in 1..stream.len() {
            let (client, mut worker) = sockets();
            let mut client = TcpLink::new(client, Side::Client, geometry).unwrap();
            for slot in [0, 1] {
                client.ask(&expected(slot), 0).unwrap();
            }
            let mut arrivals = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                worker.write_all(part).unwrap();
                client.wait(Duration::from_secs(10)).unwrap();
                while let Some(arrival) = client.poll().unwrap() {
                    arrivals.push(arrival);
                }
            }
            let come = arrivals.iter().map(|one| (one.header.slot, client.incoming(one.payload())));
            assert_eq!(come.collect::<Vec<_>>(), replies, "cut at {cut}");
        }
    }

    #[test]
    fn one_byte_at_a_time_is_a_message() {
        let geometry = Geometry { window: 1, slot_bytes: 256, arena_bytes: 0 };
        let (mut client, worker) = sockets();
        client.set_nodelay(true).unwrap();
        let mut worker = TcpLink::new(worker, Side::Worker, geometry).unwrap();
        let mut message = [0; HEADER_LEN + 5];
        message[0] = 1;
        message[6] = 1;
        message[32] = 5;
        message[HEADER_LEN..].copy_from_slice(b"hello");
        for byte in &message[..message.len() - 1] {
            client.write_all(&[*byte]).unwrap();
            assert!(worker.poll().unwrap().is_none());
        }
        client.write_all(b"o").unwrap();
        worker.wait(Duration::from_secs(10)).unwrap();
        let arrival = worker.poll().unwrap().unwrap();
        assert_eq!(worker.incoming(arrival.payload()), b"hello");
    }
}
