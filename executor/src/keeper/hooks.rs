//! The keeper's end of the hook's socket: a few connections at a time, one message each, from root or the keeper's user.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
};

use gleaner_proto::hook::{HOOK_LEN, HookAnswer, HookMessage};
use nix::{
    sys::socket::{
        AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, getsockopt, listen, socket,
        sockopt,
    },
    unistd::geteuid,
};

use crate::sys;

/// Connections at a time; more wait in the socket's backlog.
pub(super) const HOOKS_MAX: usize = 8;
const BACKLOG: i32 = 16;
/// How long a peer may take to send its one message.
const PATIENCE_NS: u64 = 1_000_000_000;

#[derive(Debug)]
struct Peer {
    socket: OwnedFd,
    until_ns: u64,
}

/// The socket and who has connected.
#[derive(Debug)]
pub(super) struct Hooks {
    listener: OwnedFd,
    peers: [Option<Peer>; HOOKS_MAX],
}

impl Hooks {
    /// Listens at `path`, for this user alone. The caller holds the node's lock: what lies there is stale.
    pub(super) fn listen(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind_at(&listener, path, 0o600)?;
        listen(&listener, Backlog::new(BACKLOG)?)?;
        Ok(Self { listener, peers: [const { None }; HOOKS_MAX] })
    }

    /// What to wait for: the listener if there is room, and every peer.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let room = self.peers.iter().any(Option::is_none);
        let listener = room.then(|| self.listener.as_fd());
        listener.into_iter().chain(self.peers.iter().flatten().map(|peer| peer.socket.as_fd()))
    }

    /// Drops the peers that took too long; returns when the next one would.
    pub(super) fn overdue(&mut self, now_ns: u64) -> Option<u64> {
        let mut next = None;
        for peer in &mut self.peers {
            match peer.as_ref().map(|peer| peer.until_ns) {
                Some(until_ns) if until_ns <= now_ns => *peer = None,
                Some(until_ns) => next = Some(next.unwrap_or(u64::MAX).min(until_ns)),
                None => {}
            }
        }
        next
    }

    /// One message that has arrived, with the socket to answer on. Call until `None`.
    pub(super) fn next(&mut self, now_ns: u64) -> Option<(HookMessage, OwnedFd)> {
        self.accept(now_ns);
        for place in &mut self.peers {
            let Some(peer) = place else { continue };
            let mut bytes = [0; HOOK_LEN];
            let read = match sys::recv_with_fd(peer.socket.as_fd(), &mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(_) => None,
                Ok((len, _)) => HookMessage::decode(&bytes[..len]).ok(),
            };
            // A peer that says anything else is closed at once: a hook of another version then acts by itself.
            let peer = place.take();
            if let (Some(message), Some(peer)) = (read, peer) {
                return Some((message, peer.socket));
            }
        }
        None
    }

    fn accept(&mut self, now_ns: u64) {
        for place in self.peers.iter_mut().filter(|place| place.is_none()) {
            let Ok(socket) = sys::accept(self.listener.as_fd()) else { return };
            if may_speak(&socket) {
                *place = Some(Peer { socket, until_ns: now_ns + PATIENCE_NS });
            }
        }
    }
}

/// Sends the one answer. A hook that has gone meanwhile needs none.
pub(super) fn answer(socket: &OwnedFd, answer: &HookAnswer) {
    let _ = sys::send_with_fd(socket.as_fd(), &answer.encode(), None);
}

/// Binds a Unix socket at `path` with these permissions from its first moment on.
pub(super) fn bind_at(socket: &OwnedFd, path: &Path, mode: u32) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn may_speak(socket: &OwnedFd) -> bool {
    let peer = getsockopt(socket, sockopt::PeerCredentials);
    peer.is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}
