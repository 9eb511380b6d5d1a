//! From what the agent hands over to a link: a client's connection to one lane, and what its calls travel by.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use gleaner_fabric::{
    AnyLink, Geometry, Side,
    rdma::{Adapter, RdmaError, RdmaLink},
    shm::{Direction, Segment, ShmLink},
    tcp::TcpLink,
};
use gleaner_proto::{
    endpoint::Endpoint,
    framing,
    v1::{self, FromAgent, control_error::Code, from_agent::Message},
};

/// What carries a lane's calls.
pub(super) enum Carrier {
    /// The connection itself.
    Stream,
    /// Memory that both map.
    Segment(OwnedFd),
    /// The client's queue pair, and ours.
    Verbs(Endpoint),
}

/// A client's connection to one lane.
pub(super) struct Connection<'a> {
    pub(super) socket: OwnedFd,
    pub(super) carrier: Carrier,
    /// The device, where this worker was to have one.
    pub(super) adapter: Option<&'a Result<Adapter, RdmaError>>,
}

impl Connection<'_> {
    /// Makes the link; the error is for people.
    pub(super) fn into_link(self, geometry: Geometry) -> Result<AnyLink, String> {
        let Self { socket, carrier, adapter } = self;
        match carrier {
            Carrier::Stream => TcpLink::new(socket, Side::Worker, geometry)
                .map(AnyLink::from)
                .map_err(|error| error.to_string()),
            Carrier::Segment(file) => Ok(shm(socket, &file, geometry)?.into()),
            Carrier::Verbs(peer) => Ok(verbs(socket, &peer, adapter, geometry)?.into()),
        }
    }
}

fn shm(socket: OwnedFd, file: &OwnedFd, geometry: Geometry) -> Result<ShmLink, String> {
    let segment = Segment::open(file.as_fd(), geometry).map_err(|error| error.to_string())?;
    segment.prefault(Direction::Responses).map_err(|error| error.to_string())?;
    // The client waits for this one byte before it touches the memory: its pages are this lease's now.
    crate::sys::send_with_fd(socket.as_fd(), &[0], None).map_err(|error| error.to_string())?;
    Ok(ShmLink::new(segment, socket, Side::Worker))
}

/// Connects to the client's queue pair, and tells the client of ours, or why there is none.
fn verbs(
    socket: OwnedFd,
    peer: &Endpoint,
    adapter: Option<&Result<Adapter, RdmaError>>,
    geometry: Geometry,
) -> Result<RdmaLink, String> {
    let client = socket.try_clone().map_err(|error| error.to_string())?;
    let tell = |message| {
        let frame = framing::encode(&FromAgent { message: Some(message) });
        crate::sys::send_with_fd(client.as_fd(), &frame, None).map_err(|error| error.to_string())
    };
    let made = match adapter {
        Some(Ok(adapter)) => connect(socket, peer, adapter, geometry),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("executor.rdma is off on this node".to_owned()),
    };
    match made {
        Ok((link, ours)) => {
            let endpoint = ours.encode().to_vec().into();
            tell(Message::DataReady(v1::DataReady { endpoint }))?;
            Ok(link)
        }
        Err(message) => {
            let error = v1::ControlError { code: Code::Internal as i32, message: message.clone() };
            tell(Message::Error(error))?;
            Err(message)
        }
    }
}

fn connect(
    socket: OwnedFd,
    peer: &Endpoint,
    adapter: &Adapter,
    geometry: Geometry,
) -> Result<(RdmaLink, Endpoint), String> {
    let make = || {
        let gid = adapter.gid_for(&[peer.address])?;
        let ours = adapter.prepare(gid, geometry)?;
        let endpoint = ours.endpoint();
        Ok((ours.connect(peer, Side::Worker, socket)?, endpoint))
    };
    make().map_err(|error: RdmaError| error.to_string())
}
