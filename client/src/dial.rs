//! The way to one lease's executor: by which transport, the session's control stream, and a link for each lane.
//!
//! On the executor's own node everything goes through its local socket, and calls through shared memory; else through TCP.
//! Same node means that the socket was reached, that the executor behind it holds the leased key, and that the memory which
//! it passed could be mapped: never that two names are equal.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Instant,
};

use ed25519_dalek::{SigningKey, VerifyingKey};
use gleaner_fabric::{
    Geometry, Link, Side,
    shm::{Direction, Segment, ShmLink},
    tcp::TcpLink,
};
use gleaner_proto::{
    control::{attach_digest, lane_digest},
    v1::{self, Attach, Attached, DataLane, from_agent::Message, hello},
};

use crate::{
    control::{Control, refused},
    error::AttachError,
    lane::Lane,
    options::Options,
    request::{Request, Transports},
};

/// How a session's calls travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Memory that caller and worker share.
    Shm,
    /// A TCP connection a lane.
    Tcp,
}

/// Attaches once more, for [`crate::keepalive`]: a control stream without lanes, which only renews.
pub(crate) fn attach_control(
    lease: &v1::Lease,
    key: &SigningKey,
    request: &Request,
    options: &Options,
    transport: Transport,
) -> Result<Control, AttachError> {
    Dialler::new(lease, key, options)?.attach(transport, request).map(|(control, _)| control)
}

/// What every connection of one session needs.
pub(crate) struct Dialler<'a> {
    pub(crate) lease: &'a v1::Lease,
    pub(crate) options: &'a Options,
    key: &'a SigningKey,
    executor: VerifyingKey,
}

impl<'a> Dialler<'a> {
    pub(crate) fn new(
        lease: &'a v1::Lease,
        key: &'a SigningKey,
        options: &'a Options,
    ) -> Result<Self, AttachError> {
        Ok(Self { lease, options, key, executor: executor_key(lease)? })
    }

    /// What to try, in this order.
    pub(crate) fn transports(&self, wanted: Transports) -> &'static [Transport] {
        let here = Path::new(&self.lease.local_socket).exists();
        match wanted {
            Transports::Auto if here => &[Transport::Shm, Transport::Tcp],
            Transports::Auto | Transports::Only(Transport::Tcp) => &[Transport::Tcp],
            Transports::Only(Transport::Shm) if here => &[Transport::Shm],
            Transports::Only(Transport::Shm) => &[],
        }
    }

    /// The error if there is nothing to try.
    pub(crate) fn no_way(&self) -> AttachError {
        AttachError::Elsewhere {
            node: self.lease.node.clone(),
            socket: self.lease.local_socket.clone(),
        }
    }

    /// Begins a session.
    pub(crate) fn attach(
        &self,
        transport: Transport,
        request: &Request,
    ) -> Result<(Control, Attached), AttachError> {
        let token = &self.lease.token;
        let (waiting, hot_timeout_ns) = request.waiting.wire();
        let purpose = hello::Purpose::Attach(Attach {
            token: token.clone(),
            window: u32::from(request.window),
            slot_bytes: u64::from(request.slot_bytes),
            arena_bytes: request.arena_bytes,
            waiting: waiting.into(),
            hot_timeout_ns,
        });
        let until = Instant::now() + self.options.answer_timeout;
        let greeting = self.dial(transport)?.greet(purpose, until)?;
        let mut control = greeting.prove(
            &self.executor,
            self.key,
            |nonces| attach_digest(&nonces.client, &nonces.executor, token),
            until,
        )?;
        match control.receive(until)? {
            Message::Attached(attached) => Ok((control, attached)),
            other => Err(refused(&control, other)),
        }
    }

    /// Connects one lane of a session.
    pub(crate) fn lane(
        &self,
        transport: Transport,
        session_id: u64,
        lane: u32,
        geometry: Geometry,
    ) -> Result<Lane, AttachError> {
        let carried = match transport {
            Transport::Shm => v1::Transport::SharedMemory,
            Transport::Tcp => v1::Transport::Stream,
        };
        let purpose =
            hello::Purpose::DataLane(DataLane { session_id, lane, transport: carried.into() });
        let until = Instant::now() + self.options.answer_timeout;
        let greeting = self.dial(transport)?.greet(purpose, until)?;
        let mut control = greeting.prove(
            &self.executor,
            self.key,
            |nonces| lane_digest(&nonces.client, &nonces.executor, session_id, lane),
            until,
        )?;
        match control.receive(until)? {
            Message::DataReady(_) => {}
            other => return Err(refused(&control, other)),
        }
        let link: Box<dyn Link> = match transport {
            Transport::Shm => Box::new(self.shm(control, geometry, until)?),
            Transport::Tcp => Box::new(self.tcp(control.into_lane()?, geometry)?),
        };
        Ok(Lane::new(link))
    }

    fn shm(
        &self,
        mut control: Control,
        geometry: Geometry,
        until: Instant,
    ) -> Result<ShmLink, AttachError> {
        let file = control.take_descriptor();
        let file = file.ok_or_else(|| control.broke("no memory came with its lane"))?;
        let failed = |source| AttachError::Memory { node: self.lease.node.clone(), source };
        let segment = Segment::open(file.as_fd(), geometry).map_err(failed)?;
        segment.prefault(Direction::Requests).map_err(failed)?;
        // Not touched before: these pages are to be charged to the lease.
        control.wait_readable(until)?;
        segment.prefault(Direction::Responses).map_err(failed)?;
        Ok(ShmLink::new(segment, control.into_socket(), Side::Client))
    }

    fn tcp(&self, socket: OwnedFd, geometry: Geometry) -> Result<TcpLink, AttachError> {
        TcpLink::new(socket, Side::Client, geometry).map_err(|error| AttachError::Io {
            step: "cannot set up the link to",
            address: self.lease.address.clone(),
            source: std::io::Error::other(error),
        })
    }

    fn dial(&self, transport: Transport) -> Result<Control, AttachError> {
        match transport {
            Transport::Shm => Control::local(&self.lease.local_socket),
            Transport::Tcp => Control::tcp(&self.lease.address, self.options.connect_timeout),
        }
    }
}

fn executor_key(lease: &v1::Lease) -> Result<VerifyingKey, AttachError> {
    let bytes = <[u8; 32]>::try_from(&lease.executor_public_key[..]).ok();
    let key = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
    key.ok_or_else(|| AttachError::Protocol {
        address: lease.address.clone(),
        what: "the harvester named no key for it".into(),
    })
}
