//! The single-user mode: both ends of a loopback connection belong to this same user, as the kernel's socket tables say.
//!
//! Called by [`crate::Authority`] for each call, and by daemons before they listen. It trusts `/proc/net/tcp` alone.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::{Caller, Via};

/// Why the single-user mode refuses.
#[derive(Debug, thiserror::Error)]
pub enum LoopbackError {
    /// A listen address that other machines reach.
    #[error(
        "auth = \"single-user\" must not listen on {0}: it has no credentials; listen on 127.0.0.1 or ::1, or set auth = \"munge\""
    )]
    NotLoopback(SocketAddr),
    /// The other end sent another mode's credential.
    #[error("the peer's credential is not {expected:?}: set the same auth on both ends")]
    OtherMode {
        /// What this mode sends.
        expected: &'static str,
    },
    /// The connection is another user's.
    #[error(
        "{peer} belongs to uid {owner}, and single-user mode serves uid {own} alone: set auth = \"munge\" for more users"
    )]
    OtherUser {
        /// The other end.
        peer: SocketAddr,
        /// Whose it is.
        owner: u32,
        /// This process's user.
        own: u32,
    },
    /// The other end is in none of the kernel's tables.
    #[error(
        "the owner of {0} cannot be found in /proc/net/tcp: single-user mode serves live connections of this machine alone"
    )]
    NoOwner(SocketAddr),
    /// The tables cannot be read.
    #[error("cannot read {file}, which single-user mode needs: mount /proc")]
    Unreadable {
        /// Which table.
        file: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Refuses an address that is not this machine's alone.
pub fn require_loopback(address: SocketAddr) -> Result<(), LoopbackError> {
    if plain(address).ip().is_loopback() {
        Ok(())
    } else {
        Err(LoopbackError::NotLoopback(address))
    }
}

/// The caller, if the other end of the connection is this same user's.
pub(crate) fn same_user(via: Via) -> Result<Caller, LoopbackError> {
    let peer = match via {
        Via::Accepted { peer, .. } => peer,
        Via::Dialled { server } => server,
    };
    require_loopback(peer)?;
    let own = nix::unistd::geteuid().as_raw();
    let owner = owner(via)?.ok_or(LoopbackError::NoOwner(peer))?;
    if owner != own {
        return Err(LoopbackError::OtherUser { peer, owner, own });
    }
    Ok(Caller { uid: own, gid: nix::unistd::getegid().as_raw() })
}

fn owner(via: Via) -> Result<Option<u32>, LoopbackError> {
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let table = match fs::read_to_string(file) {
            Ok(table) => table,
            // A kernel without IPv6 has no such table, and then no such peer.
            Err(source) if file.ends_with('6') && source.kind() == std::io::ErrorKind::NotFound => {
                continue;
            }
            Err(source) => return Err(LoopbackError::Unreadable { file, source }),
        };
        if let Some(uid) = table.lines().filter_map(Row::parse).find_map(|row| row.owner_of(via)) {
            return Ok(Some(uid));
        }
    }
    Ok(None)
}

/// One line of the kernel's table.
struct Row {
    local: SocketAddr,
    remote: SocketAddr,
    state: u8,
    uid: u32,
}

/// The states in which the socket still has its owner; a closing one shows root's uid whoever had it.
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;
const LISTEN: u8 = 10;

impl Row {
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let local = parse_address(fields.next()?)?;
        let remote = parse_address(fields.next()?)?;
        let state = u8::from_str_radix(fields.next()?, 16).ok()?;
        let uid = fields.nth(3)?.parse().ok()?;
        Some(Self { local, remote, state, uid })
    }

    fn owner_of(&self, via: Via) -> Option<u32> {
        let found = match via {
            Via::Accepted { peer, local } => {
                matches!(self.state, ESTABLISHED | CLOSE_WAIT)
                    && (self.local, self.remote) == (plain(peer), plain(local))
            }
            Via::Dialled { server } => {
                let server = plain(server);
                self.state == LISTEN
                    && self.local.port() == server.port()
                    && (self.local.ip() == server.ip() || self.local.ip().is_unspecified())
            }
        };
        found.then_some(self.uid)
    }
}

/// `0100007F:1F90`: each 32-bit word of the address in the machine's byte order, the port as a number.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for word in address.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match *bytes.as_slice() {
        [a, b, c, d] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        ref sixteen => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(sixteen).ok()?)),
    };
    Some(plain(SocketAddr::new(ip, port)))
}

/// IPv4 in IPv6's clothes is IPv4; scope and flow do not matter here.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair(listen: &str) -> (TcpStream, TcpStream, TcpListener) {
        let listener = TcpListener::bind(listen).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        (client, server, listener)
    }

    fn accepted(server: &TcpStream) -> Via {
        Via::Accepted { peer: server.peer_addr().unwrap(), local: server.local_addr().unwrap() }
    }

    #[test]
    fn this_users_connections_are_taken() {
        for listen in ["127.0.0.1:0", "[::1]:0"] {
            let (_client, server, listener) = pair(listen);
            let own = nix::unistd::geteuid().as_raw();
            assert_eq!(same_user(accepted(&server)).unwrap().uid, own);
            let server = listener.local_addr().unwrap();
            assert_eq!(same_user(Via::Dialled { server }).unwrap().uid, own);
        }
    }

    #[test]
    fn another_users_connection_is_refused() {
        let (client, server, _listener) = pair("127.0.0.1:0");
        // Root can give a socket away; its row then shows the new owner.
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        nix::unistd::fchown(&client, Some(nix::unistd::Uid::from_raw(65534)), None).unwrap();
        assert!(matches!(
            same_user(accepted(&server)),
            Err(LoopbackError::OtherUser { owner: 65534, .. })
        ));
    }

    #[test]
    fn a_closed_connection_has_no_owner() {
        let (client, server, _listener) = pair("127.0.0.1:0");
        let via = accepted(&server);
        drop((client, server));
        assert!(matches!(same_user(via), Err(LoopbackError::NoOwner(_))));
    }

    #[test]
    fn other_machines_are_refused() {
        assert!(require_loopback("0.0.0.0:1".parse().unwrap()).is_err());
        assert!(require_loopback("[::ffff:127.0.0.1]:1".parse().unwrap()).is_ok());
        let via = Via::Dialled { server: "10.0.0.1:80".parse().unwrap() };
        assert!(matches!(same_user(via), Err(LoopbackError::NotLoopback(_))));
    }

    #[test]
    fn odd_rows_are_skipped() {
        for line in ["", "  sl  local_address rem_address", "0: 01:zz 00:00 0A", "0: 0100007F 1 1"]
        {
            assert!(Row::parse(line).is_none(), "{line}");
        }
    }
}
