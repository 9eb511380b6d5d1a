//! The client's end of a connection to an executor's agent: greeting, then framed messages (`docs/src/adr/0003-control-streams.md`).
//!
//! Used by [`crate::session`] for the control stream and for each lane's greeting. Every wait has a bound; a look never
//! waits.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use gleaner_fabric::passing::recv_with_fd;
use gleaner_proto::{
    PROTOCOL,
    control::{NONCE_LEN, challenge_digest},
    framing::{self, Incoming},
    v1::{
        Challenge, FromAgent, Hello, Proof, ToAgent, control_error::Code, from_agent, hello,
        to_agent,
    },
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, setsockopt, socket,
        sockopt,
    },
};

use crate::error::AttachError;

/// Bytes that one look reads.
const READ_LEN: usize = 16 << 10;
/// A peer whose machine is gone is noticed after about this long.
const SILENCE_S: u32 = 10;

/// A connection to an agent.
pub(crate) struct Control {
    socket: OwnedFd,
    address: String,
    incoming: Incoming<FromAgent>,
    scratch: Box<[u8]>,
    /// What came beside the bytes.
    descriptor: Option<OwnedFd>,
}

/// A greeting under way: the hello was sent.
pub(crate) struct Greeting {
    pub(crate) control: Control,
    nonce: [u8; NONCE_LEN],
}

/// Both nonces of a connection whose executor has proved that it holds the pinned key.
pub(crate) struct Nonces {
    pub(crate) client: [u8; NONCE_LEN],
    pub(crate) executor: Vec<u8>,
}

impl Control {
    /// Dials an executor's address for clients.
    pub(crate) fn tcp(address: &str, timeout: Duration) -> Result<Self, AttachError> {
        let failed =
            |step| move |source| AttachError::Io { step, address: address.to_owned(), source };
        let resolved = address
            .to_socket_addrs()
            .and_then(|mut found| found.next().ok_or_else(|| io::ErrorKind::NotFound.into()))
            .map_err(failed("cannot find the executor at"))?;
        let stream = TcpStream::connect_timeout(&resolved, timeout)
            .map_err(failed("cannot reach the executor at"))?;
        keep_watch(&stream).map_err(failed("cannot set up the connection to"))?;
        Ok(Self::new(stream.into(), address))
    }

    /// Dials the executor of this node. One that takes no more connections now, since it is stopped or flooded, is as good as
    /// none: a connect that waits would wait without a bound.
    pub(crate) fn local(path: &str) -> Result<Self, AttachError> {
        let dial = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let stream = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
            connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
            Ok(stream)
        };
        let stream = dial().map_err(|error: nix::Error| AttachError::Io {
            step: "cannot reach the executor at",
            address: path.to_owned(),
            source: error.into(),
        })?;
        Ok(Self::new(stream, path))
    }

    fn new(socket: OwnedFd, address: &str) -> Self {
        Self {
            socket,
            address: address.to_owned(),
            incoming: Incoming::new(),
            scratch: vec![0; READ_LEN].into_boxed_slice(),
            descriptor: None,
        }
    }

    /// Sends the hello that opens every connection.
    pub(crate) fn greet(
        mut self,
        purpose: hello::Purpose,
        until: Instant,
    ) -> Result<Greeting, AttachError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(|_| self.broke("the system gives no random bytes"))?;
        let hello = Hello {
            protocol: PROTOCOL,
            client_nonce: nonce.to_vec().into(),
            purpose: Some(purpose),
        };
        self.send(to_agent::Message::Hello(hello), until)?;
        Ok(Greeting { control: self, nonce })
    }

    /// Sends one message, waiting at most until then for room.
    pub(crate) fn send(
        &mut self,
        message: to_agent::Message,
        until: Instant,
    ) -> Result<(), AttachError> {
        let frame = framing::encode(&ToAgent { message: Some(message) });
        let mut rest = &frame[..];
        while !rest.is_empty() {
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            match send(self.socket.as_raw_fd(), rest, flags) {
                Ok(sent) => rest = &rest[sent..],
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => {
                    self.ready(PollFlags::POLLOUT, until, "no room to write to")?
                }
                Err(error) => return Err(self.failed("lost the connection to", error.into())),
            }
        }
        Ok(())
    }

    /// The next message, waiting at most until then.
    pub(crate) fn receive(&mut self, until: Instant) -> Result<from_agent::Message, AttachError> {
        loop {
            if let Some(message) = self.look()? {
                return Ok(message);
            }
            self.ready(PollFlags::POLLIN, until, "no answer from")?;
        }
    }

    /// The next message if it is here. Never waits.
    pub(crate) fn look(&mut self) -> Result<Option<from_agent::Message>, AttachError> {
        loop {
            match self.incoming.take() {
                Ok(Some(FromAgent { message: Some(message) })) => return Ok(Some(message)),
                Ok(Some(_)) => return Err(self.broke("a message of a later version")),
                Ok(None) => {}
                Err(error) => return Err(self.broke(&error.to_string())),
            }
            match self.read() {
                Ok(0) => {
                    let closed = io::ErrorKind::UnexpectedEof.into();
                    return Err(self.failed("lost the connection to", closed));
                }
                Ok(length) => self.incoming.push(&self.scratch[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(self.failed("lost the connection to", error)),
            }
        }
    }

    /// What has arrived, into `scratch`, and a descriptor that came beside it: the last one counts.
    fn read(&mut self) -> io::Result<usize> {
        let (length, descriptor) = recv_with_fd(self.socket.as_fd(), &mut self.scratch)?;
        self.descriptor = descriptor.or(self.descriptor.take());
        Ok(length)
    }

    /// The descriptor that came with the last messages.
    pub(crate) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    /// Waits until something is there to be read, and leaves it there.
    pub(crate) fn wait_readable(&self, until: Instant) -> Result<(), AttachError> {
        self.ready(PollFlags::POLLIN, until, "no answer from")
    }

    /// What becomes readable when a message may be here.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The connection itself, once the greeting has made it a lane's. Nothing may be left unread. A worker that computes
    /// reads nothing meanwhile, which is no silence: the control stream watches over the node for all lanes.
    pub(crate) fn into_lane(self) -> Result<OwnedFd, AttachError> {
        if !self.incoming.is_empty() {
            return Err(self.broke("bytes before the first call"));
        }
        setsockopt(&self.socket, sockopt::TcpUserTimeout, &0)
            .map_err(|error| self.failed("cannot set up the lane to", error.into()))?;
        Ok(self.socket)
    }

    /// The connection of a lane whose calls go through memory: its bytes mean nothing.
    pub(crate) fn into_socket(self) -> OwnedFd {
        self.socket
    }

    /// The error for a peer that does what it must not.
    pub(crate) fn broke(&self, what: &str) -> AttachError {
        AttachError::Protocol { address: self.address.clone(), what: what.to_owned() }
    }

    fn failed(&self, step: &'static str, source: io::Error) -> AttachError {
        AttachError::Io { step, address: self.address.clone(), source }
    }

    fn ready(
        &self,
        events: PollFlags,
        until: Instant,
        step: &'static str,
    ) -> Result<(), AttachError> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(self.failed(step, io::ErrorKind::TimedOut.into()));
        }
        let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::MAX);
        match nix::poll::poll(&mut [PollFd::new(self.socket.as_fd(), events)], timeout) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(self.failed("cannot wait for", error.into())),
        }
    }
}

impl Greeting {
    /// Takes the challenge, checks the executor's key, and answers with the client's signature over `digest`.
    pub(crate) fn prove(
        mut self,
        executor: &VerifyingKey,
        client: &SigningKey,
        digest: impl FnOnce(&Nonces) -> [u8; 32],
        until: Instant,
    ) -> Result<Control, AttachError> {
        let Challenge { protocol, executor_nonce, signature } = match self.control.receive(until)? {
            from_agent::Message::Challenge(challenge) => challenge,
            other => return Err(refused(&self.control, other)),
        };
        if protocol != PROTOCOL {
            let what = format!("it speaks protocol {protocol}, this client {PROTOCOL}");
            return Err(self.control.broke(&what));
        }
        let challenge = challenge_digest(&self.nonce, &executor_nonce);
        let signed = Signature::from_slice(&signature)
            .is_ok_and(|signature| executor.verify_strict(&challenge, &signature).is_ok());
        if !signed || executor_nonce.len() != NONCE_LEN {
            return Err(AttachError::Impostor { address: self.control.address.clone() });
        }
        let nonces = Nonces { client: self.nonce, executor: executor_nonce.to_vec() };
        let signature = client.sign(&digest(&nonces)).to_bytes().to_vec().into();
        self.control.send(to_agent::Message::Proof(Proof { signature }), until)?;
        Ok(self.control)
    }
}

/// The error for an answer that is not the one hoped for.
pub(crate) fn refused(control: &Control, answer: from_agent::Message) -> AttachError {
    match answer {
        from_agent::Message::Error(error) => {
            let code = Code::try_from(error.code).unwrap_or(Code::Unspecified);
            AttachError::Refused { message: format!("{} ({})", error.message, code.as_str_name()) }
        }
        from_agent::Message::Evicted(evicted) => AttachError::Evicted(evicted.detail),
        _ => control.broke("an answer to another question"),
    }
}

/// Small messages at once, and a silent peer is noticed.
fn keep_watch(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &(SILENCE_S / 2))?;
    setsockopt(stream, sockopt::TcpKeepInterval, &1)?;
    setsockopt(stream, sockopt::TcpKeepCount, &(SILENCE_S / 2))?;
    setsockopt(stream, sockopt::TcpUserTimeout, &(SILENCE_S * 1000))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{Backlog, bind, listen};

    use super::*;

    /// The bound is the test's own: a connect that waits never comes back.
    #[test]
    fn an_executor_that_takes_no_more_connections_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("executor.sock");
        let flags = SockFlag::SOCK_CLOEXEC;
        let stopped = socket(AddressFamily::Unix, SockType::Stream, flags, None).unwrap();
        bind(stopped.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        listen(&stopped, Backlog::new(2).unwrap()).unwrap();
        let path = path.to_str().unwrap();
        let mut waiting = Vec::new();
        let refused = loop {
            match Control::local(path) {
                Ok(control) => waiting.push(control),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10, "the backlog has no end");
        };
        let AttachError::Io { source, .. } = &refused else { panic!("{refused}") };
        assert_eq!(source.kind(), io::ErrorKind::WouldBlock);
    }
}
