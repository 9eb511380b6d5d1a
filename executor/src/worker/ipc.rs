//! What the agent and one worker say to each other: small records over a Unix seqpacket socket, descriptors beside them.
//!
//! The agent uses it to bring a lease's worker up and to add links; the worker's main thread answers. No invocation passes
//! here. Both sides decode with the same bounds: a worker runs foreign code, so the agent trusts nothing it sends.
//!
//! ```text
//! agent → worker: Init+board, [Segment+memfd | Verbs,] AddLink+socket, SetHot, DropSession, Library+memfd, OpenFunction, Finish
//! worker → agent: Ready, FunctionOpened, FunctionFailed, LinkClosed
//! ```
#![forbid(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use gleaner_fabric::Geometry;
use gleaner_proto::endpoint::{ENDPOINT_LEN, Endpoint};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::sys;

/// Longest record, in bytes.
pub const RECORD_MAX: usize = 2048;
/// Longest function name, in bytes.
pub const FUNCTION_NAME_MAX: usize = 255;
/// Most bytes of a message for people; what is longer is cut.
pub const MESSAGE_MAX: usize = 1024;
/// Most functions of one lease.
pub const FUNCTIONS_MAX: u32 = 1024;
/// Most libraries of one lease.
pub const LIBRARIES_MAX: u32 = 256;

/// How a function is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Abi {
    /// Find out: Gleaner's if the library exports its descriptor, else rFaaS's.
    Any = 0,
    /// `uint32_t f(void *in, uint32_t size, void *out)`.
    Rfaas = 1,
    /// `gleaner_function.h`.
    Gleaner = 2,
}

/// Agent to worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToWorker {
    /// The first record, with the board's descriptor: start `lanes` threads. Answered by `Ready`.
    Init {
        /// The lease, for messages to people.
        lease: u64,
        /// Threads: the board's lanes.
        lanes: u16,
    },
    /// The memory of the next `AddLink`, with its descriptor: calls travel there.
    Segment,
    /// The client's end of the next `AddLink`: calls travel by RDMA, and the worker answers the client itself.
    Verbs(Endpoint),
    /// A connection to serve, with its descriptor; calls travel as its bytes, if neither `Segment` nor `Verbs` came right before.
    AddLink {
        /// The session's index on the board.
        session: u16,
        /// The lane.
        lane: u16,
        /// How its regions are divided.
        geometry: Geometry,
        /// How long the lane looks for its calls after the last one, before it sleeps; 0: not at all.
        hot_ns: u64,
    },
    /// Another time to look for a session's calls.
    SetHot {
        /// The session's index on the board.
        session: u16,
        /// As in `AddLink`.
        hot_ns: u64,
    },
    /// Close every link of a session. Each is answered by `LinkClosed`; after the last one the index is free.
    DropSession {
        /// The session's index on the board.
        session: u16,
    },
    /// A library, with its sealed memfd. Loaded when its first function is opened.
    Library {
        /// Its number in the lease, below [`LIBRARIES_MAX`].
        library: u32,
    },
    /// Answered by `FunctionOpened` or `FunctionFailed`. A library whose constructors hang never answers: bound the wait.
    OpenFunction {
        /// Its number in the lease, below [`FUNCTIONS_MAX`]: what invocation headers carry.
        function: u32,
        /// The library.
        library: u32,
        /// Its name in the library.
        name: String,
        /// How it is called.
        abi: Abi,
    },
    /// The lease ends in order: end every function's state, and exit with status 0.
    Finish,
}

/// Worker to agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FromWorker {
    /// The lanes are up.
    Ready,
    /// A function can be called.
    FunctionOpened {
        /// Its number.
        function: u32,
        /// How it is called; never `Any`.
        abi: Abi,
    },
    /// A function cannot be called.
    FunctionFailed {
        /// Its number.
        function: u32,
        /// Why, for people.
        message: String,
    },
    /// A link is no longer served.
    LinkClosed {
        /// The session's index on the board.
        session: u16,
        /// The lane.
        lane: u16,
        /// Why, for people.
        message: String,
    },
}

/// Why a record could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// The other process closed the socket, or is gone.
    #[error("the other end of the worker's socket is gone")]
    Gone,
    /// Nothing to read, or no room to write, on a socket that does not block.
    #[error("the worker's socket would block")]
    WouldBlock,
    /// The record breaks the format.
    #[error("bad record on the worker's socket: {0}")]
    Record(&'static str),
    /// The system refused.
    #[error("{step} on the worker's socket: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// A record that travels here.
pub trait Record: Sized {
    /// Its bytes, at most [`RECORD_MAX`].
    fn encode(&self) -> Vec<u8>;
    /// Reads one.
    fn decode(bytes: &[u8]) -> Result<Self, IpcError>;
}

/// Sends one record, with a descriptor where it needs one. Never blocks.
pub fn send(
    socket: impl AsFd,
    record: &impl Record,
    descriptor: Option<BorrowedFd<'_>>,
) -> Result<(), IpcError> {
    sys::send_with_fd(socket.as_fd(), &record.encode(), descriptor)
        .map_err(|error| system("send", error))
}

/// Worker: sends one record; waits up to `patience` for an agent that is behind with reading.
pub fn send_patiently(
    socket: impl AsFd,
    record: &impl Record,
    patience: Duration,
) -> Result<(), IpcError> {
    let end = Instant::now() + patience;
    loop {
        match send(&socket, record, None) {
            Err(IpcError::WouldBlock) if Instant::now() < end => {
                let mut sleep = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                // However it ends, sending again says more.
                let _ = poll(&mut sleep, PollTimeout::from(100u8));
            }
            other => return other,
        }
    }
}

/// Receives one record and the descriptor beside it, close-on-exec. Never blocks.
pub fn receive<R: Record>(socket: impl AsFd) -> Result<(R, Option<OwnedFd>), IpcError> {
    let mut bytes = [0; RECORD_MAX];
    match sys::recv_with_fd(socket.as_fd(), &mut bytes) {
        Ok((0, _)) => Err(IpcError::Gone),
        Ok((length, descriptor)) => Ok((R::decode(&bytes[..length])?, descriptor)),
        Err(error) => Err(system("receive", error)),
    }
}

impl Record for ToWorker {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Self::Init { lease, lanes } => {
                out.push(1);
                out.extend(lease.to_le_bytes());
                out.extend(lanes.to_le_bytes());
            }
            Self::SetHot { session, hot_ns } => {
                out.push(8);
                out.extend(session.to_le_bytes());
                out.extend(hot_ns.to_le_bytes());
            }
            Self::AddLink { session, lane, geometry, hot_ns } => {
                out.push(2);
                out.extend(session.to_le_bytes());
                out.extend(lane.to_le_bytes());
                out.extend(geometry.window.to_le_bytes());
                out.extend(geometry.slot_bytes.to_le_bytes());
                out.extend(geometry.arena_bytes.to_le_bytes());
                out.extend(hot_ns.to_le_bytes());
            }
            Self::DropSession { session } => {
                out.push(3);
                out.extend(session.to_le_bytes());
            }
            Self::Library { library } => {
                out.push(4);
                out.extend(library.to_le_bytes());
            }
            Self::OpenFunction { function, library, name, abi } => {
                out.push(5);
                out.extend(function.to_le_bytes());
                out.extend(library.to_le_bytes());
                out.push(*abi as u8);
                push_text(&mut out, name, FUNCTION_NAME_MAX);
            }
            Self::Finish => out.push(6),
            Self::Segment => out.push(7),
            Self::Verbs(endpoint) => {
                out.push(9);
                out.extend(endpoint.encode());
            }
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, IpcError> {
        let mut fields = Fields(bytes);
        let record = match fields.u8()? {
            1 => Self::Init { lease: fields.u64()?, lanes: fields.u16()? },
            2 => Self::AddLink {
                session: fields.u16()?,
                lane: fields.u16()?,
                geometry: Geometry {
                    window: fields.u16()?,
                    slot_bytes: fields.u32()?,
                    arena_bytes: fields.u64()?,
                }
                .check()
                .map_err(|_| IpcError::Record("its geometry is out of bounds"))?,
                hot_ns: fields.u64()?,
            },
            3 => Self::DropSession { session: fields.u16()? },
            4 => Self::Library { library: fields.below(LIBRARIES_MAX)? },
            5 => Self::OpenFunction {
                function: fields.below(FUNCTIONS_MAX)?,
                library: fields.below(LIBRARIES_MAX)?,
                abi: fields.abi()?,
                name: fields.text(FUNCTION_NAME_MAX)?,
            },
            6 => Self::Finish,
            7 => Self::Segment,
            8 => Self::SetHot { session: fields.u16()?, hot_ns: fields.u64()? },
            9 => {
                let endpoint = Endpoint::decode(&fields.take::<ENDPOINT_LEN>()?);
                Self::Verbs(endpoint.map_err(|_| IpcError::Record("its endpoint is none"))?)
            }
            _ => return Err(IpcError::Record("its kind is unknown")),
        };
        fields.end().map(|()| record)
    }
}

impl Record for FromWorker {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64);
        match self {
            Self::Ready => out.push(1),
            Self::FunctionOpened { function, abi } => {
                out.push(2);
                out.extend(function.to_le_bytes());
                out.push(*abi as u8);
            }
            Self::FunctionFailed { function, message } => {
                out.push(3);
                out.extend(function.to_le_bytes());
                push_text(&mut out, message, MESSAGE_MAX);
            }
            Self::LinkClosed { session, lane, message } => {
                out.push(4);
                out.extend(session.to_le_bytes());
                out.extend(lane.to_le_bytes());
                push_text(&mut out, message, MESSAGE_MAX);
            }
        }
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, IpcError> {
        let mut fields = Fields(bytes);
        let record = match fields.u8()? {
            1 => Self::Ready,
            2 => {
                Self::FunctionOpened { function: fields.below(FUNCTIONS_MAX)?, abi: fields.abi()? }
            }
            3 => Self::FunctionFailed {
                function: fields.below(FUNCTIONS_MAX)?,
                message: fields.text(MESSAGE_MAX)?,
            },
            4 => Self::LinkClosed {
                session: fields.u16()?,
                lane: fields.u16()?,
                message: fields.text(MESSAGE_MAX)?,
            },
            _ => return Err(IpcError::Record("its kind is unknown")),
        };
        fields.end().map(|()| record)
    }
}

/// Reads little-endian fields off the front of a record.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], IpcError> {
        let (field, rest) =
            self.0.split_first_chunk::<N>().ok_or(IpcError::Record("it is too short"))?;
        self.0 = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, IpcError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, IpcError> {
        self.take().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, IpcError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, IpcError> {
        self.take().map(u64::from_le_bytes)
    }

    fn below(&mut self, bound: u32) -> Result<u32, IpcError> {
        let number = self.u32()?;
        if number < bound {
            Ok(number)
        } else {
            Err(IpcError::Record("its number is out of bounds"))
        }
    }

    fn abi(&mut self) -> Result<Abi, IpcError> {
        match self.u8()? {
            0 => Ok(Abi::Any),
            1 => Ok(Abi::Rfaas),
            2 => Ok(Abi::Gleaner),
            _ => Err(IpcError::Record("its ABI is unknown")),
        }
    }

    fn text(&mut self, most: usize) -> Result<String, IpcError> {
        let length = usize::from(self.u16()?);
        if length > most {
            return Err(IpcError::Record("its text is too long"));
        }
        let (text, rest) =
            self.0.split_at_checked(length).ok_or(IpcError::Record("it is too short"))?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| IpcError::Record("its text is not UTF-8"))
    }

    fn end(&self) -> Result<(), IpcError> {
        if self.0.is_empty() { Ok(()) } else { Err(IpcError::Record("it is longer than its kind")) }
    }
}

fn push_text(out: &mut Vec<u8>, text: &str, most: usize) {
    let text = &text[..text.floor_char_boundary(most)];
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
}

fn system(step: &'static str, source: io::Error) -> IpcError {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, InvalidData, WouldBlock};
    match source.kind() {
        WouldBlock => IpcError::WouldBlock,
        BrokenPipe | ConnectionReset => IpcError::Gone,
        InvalidData => IpcError::Record("it is too long"),
        _ => IpcError::Io { step, source },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        sys::seqpacket_pair().unwrap()
    }

    fn to_worker() -> Vec<ToWorker> {
        let geometry = Geometry { window: 8, slot_bytes: 4096, arena_bytes: 1 << 20 };
        vec![
            ToWorker::Init { lease: 5, lanes: 2 },
            ToWorker::AddLink { session: 1, lane: 2, geometry, hot_ns: u64::MAX },
            ToWorker::SetHot { session: 1, hot_ns: 0 },
            ToWorker::DropSession { session: 1 },
            ToWorker::Library { library: 3 },
            ToWorker::OpenFunction {
                function: 4,
                library: 3,
                name: "f".repeat(FUNCTION_NAME_MAX),
                abi: Abi::Any,
            },
            ToWorker::Finish,
            ToWorker::Segment,
        ]
    }

    fn from_worker() -> Vec<FromWorker> {
        let message = "ü".repeat(MESSAGE_MAX / 2);
        vec![
            FromWorker::Ready,
            FromWorker::FunctionOpened { function: 4, abi: Abi::Rfaas },
            FromWorker::FunctionFailed { function: 4, message: message.clone() },
            FromWorker::LinkClosed { session: 1, lane: 2, message },
        ]
    }

    #[test]
    fn every_record_arrives_with_its_descriptor() {
        let (agent, worker) = pair();
        for record in to_worker() {
            send(&agent, &record, Some(agent.as_fd())).unwrap();
            let (seen, descriptor) = receive::<ToWorker>(&worker).unwrap();
            assert_eq!(seen, record);
            assert!(descriptor.is_some());
        }
        for record in from_worker() {
            send(&worker, &record, None).unwrap();
            let (seen, descriptor) = receive::<FromWorker>(&agent).unwrap();
            assert_eq!(seen, record);
            assert!(descriptor.is_none());
        }
        drop(worker);
        assert!(matches!(receive::<FromWorker>(&agent), Err(IpcError::Gone)));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = ToWorker::decode(&bytes);
            let _ = FromWorker::decode(&bytes);
        }

        #[test]
        fn a_changed_record_decodes_or_is_refused(which in 0usize..8, at: prop::sample::Index, byte: u8) {
            let mut bytes = to_worker()[which].encode();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = ToWorker::decode(&bytes);
        }
    }
}
