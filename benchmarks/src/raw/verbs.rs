//! Verbs alone: writes with an immediate between two queue pairs of one device, into slots that are taken by turns. Polled, or
//! slept for on a completion channel.

use std::{
    marker::PhantomData,
    os::{fd::BorrowedFd, unix::net::UnixStream},
};

use anyhow::{Context, Result, bail, ensure};
use gleaner_fabric::{
    rdma::{
        Access, Completion, CompletionQueue, Depth, Device, Gid, Init, Port, ProtectionDomain,
        QueuePair, ReadyToSend, Receives, Registered, Target, Timers, Write,
    },
    region::Region,
};
use gleaner_proto::endpoint::Endpoint;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Load, Transport, Work};
use crate::peer::{self, Peer, Role};

/// Of so many writes one asks for a completion: as seldom as the queue allows.
const SIGNAL_EVERY: u32 = 32;
/// Receives that are posted at a time.
const RECEIVES_BATCH: u32 = 16;
const INLINE_WANTED: u32 = 256;
const SLOT_ALIGN: usize = 64;
/// The immediate of a caller that goes.
const GONE: u32 = u32::MAX;
const FIRST_PACKET: u32 = 1;

/// How an end waits for a completion.
pub(crate) trait Wait {
    /// What a peer is started as that waits so.
    const ROLE: Role;
    /// Returns when there may be one.
    fn wait(queue: &mut CompletionQueue) -> Result<()>;
}

/// Polls again at once.
pub(crate) struct Polled;

impl Wait for Polled {
    const ROLE: Role = Role::Polled;

    fn wait(_: &mut CompletionQueue) -> Result<()> {
        Ok(())
    }
}

/// Polls again at once, while the peer sleeps.
pub(crate) struct PolledHere;

impl Wait for PolledHere {
    const ROLE: Role = Role::Slept;

    fn wait(_: &mut CompletionQueue) -> Result<()> {
        Ok(())
    }
}

/// Sleeps on the channel.
pub(crate) struct Slept;

impl Wait for Slept {
    const ROLE: Role = Role::Slept;

    fn wait(queue: &mut CompletionQueue) -> Result<()> {
        let channel: BorrowedFd<'_> = queue.channel_fd().context("a queue without a channel")?;
        poll(&mut [PollFd::new(channel, PollFlags::POLLIN)], PollTimeout::NONE)?;
        while queue.take_event() {}
        Ok(queue.request_event()?)
    }
}

/// The caller's end.
pub(crate) struct End<W: Wait> {
    /// First: it ends when it has heard that we go, through the half that is still there.
    _peer: Peer,
    half: Half<W>,
    work: Work,
    sent: u32,
    received: u32,
}

/// What either end has.
pub(crate) struct Half<W> {
    pair: QueuePair<ReadyToSend>,
    parts: Parts,
    target: Target,
    depth: u32,
    served: u32,
    posted: u32,
    used: u32,
    wait: PhantomData<W>,
}

struct Parts {
    sends: CompletionQueue,
    receives: CompletionQueue,
    chain: Receives,
    outgoing: Registered,
    incoming: Registered,
    stride: usize,
}

/// Starts the peer, in a process of its own; it goes when it is told that the caller's end has gone.
pub(crate) fn start<W: Wait>(load: Load) -> Result<End<W>> {
    let mut peer = Peer::start(W::ROLE, load)?;
    let mine = Ready::new(load)?;
    let theirs = peer.meet(&mine.endpoint())?;
    let half = mine.connect(&theirs, load)?;
    Ok(End { half, work: load.work, sent: 0, received: 0, _peer: peer })
}

/// The peer's process: serves until the caller has gone.
pub(crate) fn serve<W: Wait>(caller: UnixStream, load: Load) -> Result<()> {
    let mine = Ready::new(load)?;
    let theirs = peer::exchange(&caller, &mine.endpoint())?;
    let mut half: Half<W> = mine.connect(&theirs, load)?;
    peer::ready(&caller)?;
    while half.serve_one(load)? {}
    Ok(())
}

/// Both ends in one program, connected: the caller's and the peer's.
pub(crate) fn pair<W>(load: Load) -> Result<(Half<W>, Half<W>)> {
    let (ours, theirs) = (Ready::new(load)?, Ready::new(load)?);
    let (at_us, at_them) = (ours.endpoint(), theirs.endpoint());
    let theirs = theirs.connect(&at_us, load)?;
    Ok((ours.connect(&at_them, load)?, theirs))
}

/// An end that waits to hear where its peer is.
struct Ready {
    port: Port,
    gid: Gid,
    pair: QueuePair<Init>,
    parts: Parts,
}

impl Ready {
    fn new(load: Load) -> Result<Self> {
        let (device, port) = Device::open_active()?;
        let gid = *port.gids.first().context("the port has no address")?;
        let (pair, parts) = prepare(&device, &port, load)?;
        Ok(Self { port, gid, pair, parts })
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint {
            address: self.gid.address,
            mtu: self.port.mtu,
            queue_pair: self.pair.number(),
            first_packet: FIRST_PACKET,
            region: self.parts.incoming.address(),
            region_bytes: self.parts.incoming.len() as u64,
            key: self.parts.incoming.remote_key(),
        }
    }

    fn connect<W>(self, peer: &Endpoint, load: Load) -> Result<Half<W>> {
        let Self { port, gid, pair, parts } = self;
        let pair = pair.ready_to_receive(&port, gid, peer, Timers::default())?;
        let pair = pair.ready_to_send(FIRST_PACKET, Timers::default())?;
        let (target, depth) = (peer.into(), load.depth as u32);
        Ok(Half { pair, parts, target, depth, served: 0, posted: 0, used: 0, wait: PhantomData })
    }
}

fn prepare(device: &Device, port: &Port, load: Load) -> Result<(QueuePair<Init>, Parts)> {
    let stride = load.request.max(load.reply()).next_multiple_of(SLOT_ALIGN);
    let receives = (load.depth as u32).next_multiple_of(RECEIVES_BATCH) + RECEIVES_BATCH;
    let depth = Depth { sends: 2 * SIGNAL_EVERY + receives, receives, inline: INLINE_WANTED };
    let domain = ProtectionDomain::new(device)?;
    let sends = CompletionQueue::new(device, depth.sends, false)?;
    let mut queue = CompletionQueue::new(device, receives, true)?;
    queue.request_event()?;
    let mut pair = QueuePair::new(&domain, &sends, &queue, depth)?.init(port)?;
    let mut chain = Receives::new(RECEIVES_BATCH);
    for _ in 0..receives / RECEIVES_BATCH {
        chain.post(&mut pair)?;
    }
    let register = |access| -> Result<Registered> {
        let region = Region::anonymous(stride * load.depth).context("map a region")?;
        Ok(Registered::new(&domain, region, access)?)
    };
    let (outgoing, incoming) = (register(Access::Own)?, register(Access::PeerWrites)?);
    Ok((pair, Parts { sends, receives: queue, chain, outgoing, incoming, stride }))
}

impl<W: Wait> Half<W> {
    /// Sends a request.
    pub(crate) fn request(&mut self, work: Work, request: &[u8], number: u32) -> Result<()> {
        let start = self.start(number);
        work.fill(&mut self.parts.outgoing.bytes_mut()[start..], request);
        self.write(start, request.len(), number)
    }

    /// Takes the reply to it.
    pub(crate) fn reply(&mut self, reply: &mut [u8], number: u32) -> Result<()> {
        ensure!(self.next()? == number, "a reply came out of turn");
        let start = self.start(number);
        reply.copy_from_slice(&self.parts.incoming.bytes()[start..start + reply.len()]);
        Ok(())
    }

    /// The peer: answers one request; false when the caller has gone.
    pub(crate) fn serve_one(&mut self, load: Load) -> Result<bool> {
        match self.next()? {
            GONE => return Ok(false),
            number => ensure!(number == self.served, "a request came out of turn"),
        }
        let start = self.start(self.served);
        let Parts { incoming, outgoing, .. } = &mut self.parts;
        let request = &incoming.bytes()[start..start + load.request];
        load.work.run(request, &mut outgoing.bytes_mut()[start..start + load.reply()]);
        self.write(start, load.reply(), self.served)?;
        self.served += 1;
        Ok(true)
    }

    fn start(&self, number: u32) -> usize {
        (number % self.depth) as usize * self.parts.stride
    }

    fn write(&mut self, start: usize, len: usize, immediate: u32) -> Result<()> {
        self.posted += 1;
        let signals = self.posted.is_multiple_of(SIGNAL_EVERY);
        let write = Write {
            bytes: start..start + len,
            offset: start as u64,
            immediate: Some(immediate),
            signal: signals.then_some(0),
        };
        self.pair.write(&self.parts.outgoing, self.target, &write)?;
        if signals {
            let mut ended = [Completion::default(); 4];
            let count = self.parts.sends.poll(&mut ended)?;
            for completion in &ended[..count] {
                if let Err(status) = completion.result() {
                    bail!("a write of the baseline failed: {status}");
                }
            }
        }
        Ok(())
    }

    /// The next write's immediate.
    fn next(&mut self) -> Result<u32> {
        let mut one = [Completion::default()];
        while self.parts.receives.poll(&mut one)? == 0 {
            W::wait(&mut self.parts.receives)?;
        }
        if let Err(status) = one[0].result() {
            bail!("a receive of the baseline failed: {status}");
        }
        self.used += 1;
        if self.used == RECEIVES_BATCH {
            self.used = 0;
            self.parts.chain.post(&mut self.pair)?;
        }
        one[0].immediate().context("a completion without an immediate")
    }
}

impl<W: Wait> Transport for End<W> {
    fn send(&mut self, request: &[u8]) -> Result<()> {
        self.half.request(self.work, request, self.sent)?;
        self.sent += 1;
        Ok(())
    }

    fn receive(&mut self, reply: &mut [u8]) -> Result<()> {
        self.half.reply(reply, self.received)?;
        self.received += 1;
        Ok(())
    }
}

impl<W: Wait> Drop for End<W> {
    fn drop(&mut self) {
        // Who does not hear it is ended with its process.
        let _ = self.half.write(0, 0, GONE);
    }
}
