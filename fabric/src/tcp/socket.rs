//! One system call each.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{MsgFlags, recv, send};

use crate::link::{LinkError, failed};

/// Bytes that the socket took; 0 if it has no room.
#[inline]
pub(super) fn send_some(socket: &OwnedFd, bytes: &[u8]) -> Result<usize, Box<LinkError>> {
    match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
        Ok(sent) => Ok(sent),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(0),
        Err(error) => Err(failed(system("send", error))),
    }
}

/// Bytes that the socket gave; 0 if it has none. Its end is an error: a link has no half that goes on.
#[inline]
pub(super) fn receive_some(socket: &OwnedFd, room: &mut [u8]) -> Result<usize, Box<LinkError>> {
    match recv(socket.as_raw_fd(), room, MsgFlags::empty()) {
        Ok(0) => Err(failed(LinkError::Closed)),
        Ok(received) => Ok(received),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(0),
        Err(error) => Err(failed(system("receive", error))),
    }
}

pub(super) fn system(step: &'static str, error: nix::Error) -> LinkError {
    match error {
        nix::Error::EPIPE | nix::Error::ECONNRESET => LinkError::Closed,
        other => LinkError::Io { step, source: io::Error::from(other) },
    }
}
