//! A link's set-up: both regions registered, a queue pair made, the peer's endpoint taken. What a link is made of until it may
//! speak; nothing here is on the hot path.
#![forbid(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use gleaner_proto::endpoint::Endpoint;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::{
    adapter::Adapter,
    completions::CompletionQueue,
    device::{Device, Gid, Port},
    error::RdmaError,
    link::RdmaLink,
    memory::{Access, ProtectionDomain, Registered},
    pair::{Depth, Init, QueuePair, Receives, Target, Timers},
};
use crate::{
    check::Side,
    link::Geometry,
    region::Region,
    tune::{INLINE_WANTED, RECEIVES_BATCH, SENDS_MIN},
};

/// What an end is of its device's objects: a protection domain, two completion queues, two registrations, a queue pair.
pub const OBJECTS_PER_LINK: u32 = 6;

/// An end that waits to hear where its peer is.
#[derive(Debug)]
pub struct Unconnected {
    pair: QueuePair<Init>,
    parts: Parts,
    gid: Gid,
    first_packet: u32,
    timers: Timers,
}

/// What an end is made of beside its queue pair.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) sends: CompletionQueue,
    pub(super) receives: CompletionQueue,
    pub(super) chain: Receives,
    pub(super) outgoing: Registered,
    pub(super) incoming: Registered,
    pub(super) device: Device,
    pub(super) port: Port,
    pub(super) geometry: Geometry,
    pub(super) depth: Depth,
}

impl Unconnected {
    /// Pins both regions and makes a queue pair. The caller pays for the pages.
    pub(super) fn new(adapter: &Adapter, gid: Gid, geometry: Geometry) -> Result<Self, RdmaError> {
        let Adapter { device, port, .. } = adapter;
        let depth = depth(geometry, device.limits()?.queue_max);
        let domain = ProtectionDomain::new(device)?;
        let sends = CompletionQueue::new(device, depth.sends, false)?;
        let receives = CompletionQueue::new(device, depth.receives, true)?;
        let mut pair = QueuePair::new(&domain, &sends, &receives, depth)?.init(port)?;
        let mut chain = Receives::new(RECEIVES_BATCH);
        for _ in 0..depth.receives / chain.count() {
            chain.post(&mut pair)?;
        }
        let mut first_packet = [0; 4];
        getrandom::fill(&mut first_packet[..3])
            .map_err(|error| device.0.failed_with("begin at a random packet", error.into()))?;
        let parts = Parts {
            sends,
            receives,
            chain,
            outgoing: registered(&domain, geometry, Access::Own)?,
            incoming: registered(&domain, geometry, Access::PeerWrites)?,
            device: device.clone(),
            port: port.clone(),
            geometry,
            depth,
        };
        let first_packet = u32::from_le_bytes(first_packet);
        Ok(Self { pair, parts, gid, first_packet, timers: adapter.timers() })
    }

    /// What the peer must be told.
    pub fn endpoint(&self) -> Endpoint {
        let Parts { incoming, port, .. } = &self.parts;
        Endpoint {
            address: self.gid.address,
            mtu: port.mtu,
            queue_pair: self.pair.number(),
            first_packet: self.first_packet,
            region: incoming.address(),
            region_bytes: incoming.len() as u64,
            key: incoming.remote_key(),
        }
    }

    /// Connects to the peer. From here on it may write; it does so once it is connected as well. The socket is the one on
    /// which the two have met.
    pub fn connect(
        self,
        peer: &Endpoint,
        side: Side,
        socket: OwnedFd,
    ) -> Result<RdmaLink, RdmaError> {
        let Self { pair, parts, gid, first_packet, timers } = self;
        if peer.region_bytes != parts.geometry.region_bytes() {
            let source = io::Error::from(io::ErrorKind::InvalidData);
            return Err(parts.device.0.failed_with("use a region of another size", source));
        }
        let pair = pair.ready_to_receive(&parts.port, gid, peer, timers)?;
        let pair = pair.ready_to_send(first_packet, timers)?;
        let sleep = sleep_on(&parts, &socket)
            .map_err(|error| parts.device.0.failed_with("watch a link", error.into()))?;
        Ok(RdmaLink::new(pair, parts, Target::from(peer), side, (socket, sleep)))
    }
}

/// A window of receives, and the batch that is being used up. A window of writes and more, so that few ask for a completion.
fn depth(geometry: Geometry, queue_max: u32) -> Depth {
    let window = u32::from(geometry.window);
    Depth {
        sends: (2 * window).next_power_of_two().max(SENDS_MIN).min(queue_max),
        receives: window.next_multiple_of(RECEIVES_BATCH) + RECEIVES_BATCH,
        inline: INLINE_WANTED,
    }
}

fn registered(
    domain: &ProtectionDomain,
    geometry: Geometry,
    access: Access,
) -> Result<Registered, RdmaError> {
    let mut region = Region::anonymous(geometry.region_bytes() as usize)
        .map_err(|error| domain.0.device.failed_with("map a link's region", error))?;
    region.advise_huge(geometry.arena_offset() as usize);
    Registered::new(domain, region, access)
}

/// One descriptor for all that may wake a link.
fn sleep_on(parts: &Parts, socket: &OwnedFd) -> nix::Result<Epoll> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let device = &parts.device.0;
    let woken_by = [device.events_fd(), device.alarm_fd(), socket.as_fd()];
    for fd in parts.receives.channel_fd().into_iter().chain(woken_by) {
        epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
    }
    Ok(epoll)
}
