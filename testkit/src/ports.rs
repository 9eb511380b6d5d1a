//! TCP ports that stay ours between choosing them and a daemon's binding them, across parallel test processes.
//!
//! A reservation is a socket bound to the port but not listening. It was bound without `SO_REUSEADDR`, so that two
//! reservations never share a port, and got the option afterwards, so that a daemon (slurmctld, slurmd, a Rust
//! listener: all set it) can bind and listen beside it.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt::ReuseAddr,
};

/// Below the ephemeral range, which clients' own sockets come from.
const RANGE: std::ops::Range<u16> = 10_000..32_000;
/// Ports that are tried before giving up.
const ATTEMPTS_MAX: u32 = 1_000;

/// A TCP port that no other reservation on this machine has, for as long as this lives.
#[derive(Debug)]
pub struct ReservedPort {
    port: u16,
    _held: OwnedFd,
}

impl ReservedPort {
    /// Reserves a free port.
    pub fn reserve() -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..ATTEMPTS_MAX {
            let random = RandomState::new().hash_one(std::process::id());
            let width = u64::from(RANGE.end - RANGE.start);
            let port = RANGE.start + (random % width) as u16;
            match Self::hold(port) {
                Ok(held) => return Ok(Self { port, _held: held }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The port's number.
    pub fn port(&self) -> u16 {
        self.port
    }

    fn hold(port: u16) -> io::Result<OwnedFd> {
        let held = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        bind(held.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port))?;
        setsockopt(&held, ReuseAddr, &true)?;
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_daemon_can_listen_on_a_reserved_port_and_no_second_reservation_gets_it() {
        let reserved = ReservedPort::reserve().unwrap();
        assert!(ReservedPort::hold(reserved.port()).is_err());
        let listener = TcpListener::bind(("127.0.0.1", reserved.port())).unwrap();
        assert!(ReservedPort::hold(reserved.port()).is_err());
        drop(listener);
        TcpListener::bind(("0.0.0.0", reserved.port())).unwrap();
    }
}
