//! The way to one lease's executor: by which transport, the session's control stream, and a link for each lane.
//!
//! On the executor's own node everything goes through its local socket, and calls through shared memory; else through TCP, and
//! calls by RDMA where both ends have a port and packets find their way.
//! Same node means that the socket was reached, that the executor behind it holds the leased key, and that the memory which
//! it passed could be mapped: never that two names are equal.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::Instant,
};

use ed25519_dalek::{SigningKey, VerifyingKey};
use gleaner_fabric::{
    AnyLink, Geometry, Side,
    rdma::{RdmaError, RdmaLink, Unconnected},
    shm::{Direction, Segment, ShmLink},
    tcp::TcpLink,
};
use gleaner_proto::{
    control::{attach_digest, lane_digest},
    endpoint::Endpoint,
    v1::{self, Attach, Attached, DataLane, DataReady, from_agent::Message, hello},
};
use prost::bytes::Bytes;

use crate::{
    control::{Control, Nonces, refused},
    error::AttachError,
    lane::Lane,
    options::Options,
    request::{Request, Transports},
    verbs::{self, Way},
};

/// How a session's calls travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Memory that caller and worker share.
    Shm,
    /// A pair of queue pairs a lane, on InfiniBand or RoCE.
    Rdma,
    /// A TCP connection a lane.
    Tcp,
}

/// What carries a session's lanes.
pub(crate) enum Carrier {
    Memory,
    Verbs(Way),
    Stream,
}

impl Carrier {
    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Memory => Transport::Shm,
            Self::Verbs(_) => Transport::Rdma,
            Self::Stream => Transport::Tcp,
        }
    }
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
            // A name that leads nowhere, on a shared file system or left behind, must not cost the second best. Without a
            // device here that goes by TCP.
            Transports::Auto if here => &[Transport::Shm, Transport::Rdma, Transport::Tcp],
            Transports::Auto if verbs::adapter(&self.options.rdma).is_ok() => {
                &[Transport::Rdma, Transport::Tcp]
            }
            Transports::Auto | Transports::Only(Transport::Tcp) => &[Transport::Tcp],
            Transports::Only(Transport::Rdma) => &[Transport::Rdma],
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

    /// What carries a session's lanes, now that its executor has said where it is reached. No way by RDMA is an error only
    /// where nothing else is wanted: the session is good for TCP too.
    pub(crate) fn carrier(
        &self,
        transport: Transport,
        wanted: Transports,
        attached: &Attached,
    ) -> Result<Carrier, AttachError> {
        match transport {
            Transport::Shm => Ok(Carrier::Memory),
            Transport::Tcp => Ok(Carrier::Stream),
            Transport::Rdma => match self.way(attached) {
                Ok(way) => Ok(Carrier::Verbs(way)),
                Err(_) if wanted == Transports::Auto => Ok(Carrier::Stream),
                Err(error) => Err(error),
            },
        }
    }

    /// Connects one lane of a session.
    pub(crate) fn lane(
        &self,
        carrier: &Carrier,
        attached: &Attached,
        lane: u32,
        geometry: Geometry,
    ) -> Result<Lane, AttachError> {
        let until = Instant::now() + self.options.answer_timeout;
        let begin =
            |endpoint| self.begin_lane(carrier, (attached.session_id, lane), endpoint, until);
        let link: AnyLink = match carrier {
            Carrier::Memory => self.shm(begin(Bytes::new())?.0, geometry, until)?.into(),
            Carrier::Stream => self.tcp(begin(Bytes::new())?.0.into_lane()?, geometry)?.into(),
            Carrier::Verbs(way) => {
                let ours = way.prepare(geometry).map_err(self.no_rdma())?;
                let endpoint = Bytes::copy_from_slice(&ours.endpoint().encode());
                let (control, ready) = begin(endpoint).map_err(|error| match error {
                    AttachError::Refused { message } => self.no_rdma_there(&message),
                    other => other,
                })?;
                self.verbs(ours, control, &ready)?.into()
            }
        };
        Ok(Lane::new(link, attached.grant_epoch))
    }

    /// Greets for a lane, and waits until its other end is there.
    fn begin_lane(
        &self,
        carrier: &Carrier,
        (session_id, lane): (u64, u32),
        endpoint: Bytes,
        until: Instant,
    ) -> Result<(Control, DataReady), AttachError> {
        let carried = match carrier {
            Carrier::Memory => v1::Transport::SharedMemory,
            Carrier::Stream => v1::Transport::Stream,
            Carrier::Verbs(_) => v1::Transport::Verbs,
        };
        let wanted =
            DataLane { session_id, lane, transport: carried.into(), endpoint: endpoint.clone() };
        let purpose = hello::Purpose::DataLane(wanted);
        let greeting = self.dial(carrier.transport())?.greet(purpose, until)?;
        let digest = |nonces: &Nonces| {
            lane_digest(&nonces.client, &nonces.executor, session_id, lane, &endpoint)
        };
        let mut control = greeting.prove(&self.executor, self.key, digest, until)?;
        match control.receive(until)? {
            Message::DataReady(ready) => Ok((control, ready)),
            other => Err(refused(&control, other)),
        }
    }

    /// From which of our addresses the executor's workers may be reached.
    fn way(&self, attached: &Attached) -> Result<Way, AttachError> {
        if attached.rdma_addresses.is_empty() {
            let why = "executor.rdma is off there, or no port of its device is active (`gleaner nodes` says what a node \
                       lacks); or do not force the transport";
            return Err(self.no_rdma_there(why));
        }
        let adapter = verbs::adapter(&self.options.rdma).map_err(self.no_rdma())?;
        Way::new(adapter, &attached.rdma_addresses).map_err(self.no_rdma())
    }

    fn verbs(
        &self,
        ours: Unconnected,
        control: Control,
        ready: &DataReady,
    ) -> Result<RdmaLink, AttachError> {
        let peer = Endpoint::decode(&ready.endpoint);
        let peer = peer.map_err(|error| control.broke(&error.to_string()))?;
        let connected = ours.connect(&peer, Side::Client, control.into_socket());
        let mut link = connected.map_err(self.no_rdma())?;
        // That both have a port says nothing of the way between: a first write does.
        link.probe(self.options.connect_timeout).map_err(self.no_rdma())?;
        Ok(link)
    }

    fn no_rdma_there(&self, why: &str) -> AttachError {
        AttachError::NoRdmaThere { node: self.lease.node.clone(), why: why.to_owned() }
    }

    fn no_rdma(&self) -> impl Fn(RdmaError) -> AttachError {
        |source| AttachError::Rdma { node: self.lease.node.clone(), source }
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
            Transport::Rdma | Transport::Tcp => {
                Control::tcp(&self.lease.address, self.options.connect_timeout)
            }
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
