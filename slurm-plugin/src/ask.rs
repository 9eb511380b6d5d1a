//! One question to the node's keeper and its answer, both 64 bytes, never longer than until a given moment.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use gleaner_proto::hook::{HOOK_LEN, HOOK_SOCKET, HookAnswer, HookMessage};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket,
    },
};

/// How long the hook waits before it knocks again at a socket whose backlog is full.
const KNOCK_AGAIN: Duration = Duration::from_millis(1);

/// How the question ended.
#[derive(Debug)]
pub(crate) enum Asked {
    /// The keeper has done it.
    Answered(HookAnswer),
    /// There is no socket, or nobody listens on it.
    NoKeeper,
    /// No answer came in time.
    Late,
    /// The keeper closed the connection, or said what this version does not understand.
    Refused,
    /// The system said no.
    Failed(io::Error),
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(answer) => {
                write!(f, "could not end {} processes in time", answer.remaining)
            }
            Self::NoKeeper => f.write_str("does not run"),
            Self::Late => f.write_str("did not answer in time"),
            Self::Refused => f.write_str(
                "closed the connection: it ended, or is of another release than this hook",
            ),
            Self::Failed(error) => write!(f, "cannot be asked ({error})"),
        }
    }
}

/// Asks the keeper of the node with this runtime directory; waits for the answer until `until`.
pub(crate) fn ask(run_dir: &Path, message: &HookMessage, until: Instant) -> Asked {
    match try_ask(run_dir, message, until) {
        Ok(bytes) => match HookAnswer::decode(&bytes) {
            Ok(answer) => Asked::Answered(answer),
            Err(_) => Asked::Refused,
        },
        Err(Errno::ENOENT | Errno::ECONNREFUSED) => Asked::NoKeeper,
        Err(Errno::ETIMEDOUT) => Asked::Late,
        Err(Errno::ECONNRESET | Errno::EPIPE | Errno::EBADMSG) => Asked::Refused,
        Err(error) => Asked::Failed(error.into()),
    }
}

fn try_ask(run_dir: &Path, message: &HookMessage, until: Instant) -> nix::Result<[u8; HOOK_LEN]> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    knock(&stream, &run_dir.join(HOOK_SOCKET), until)?;
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    send(stream.as_raw_fd(), &message.encode(), flags)?;
    let mut bytes = [0; HOOK_LEN];
    loop {
        match recv(stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(HOOK_LEN) => return Ok(bytes),
            Ok(_) => return Err(Errno::EBADMSG),
            Err(Errno::EAGAIN) => wait(&stream, until)?,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Connects; a full backlog is tried again until it is too late.
fn knock(stream: &OwnedFd, path: &Path, until: Instant) -> nix::Result<()> {
    let address = UnixAddr::new(path)?;
    loop {
        match connect(stream.as_raw_fd(), &address) {
            Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < until => {
                thread::sleep(KNOCK_AGAIN)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return Err(Errno::ETIMEDOUT),
            result => return result,
        }
    }
}

fn wait(stream: &OwnedFd, until: Instant) -> nix::Result<()> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Errno::ETIMEDOUT);
    }
    let timeout = PollTimeout::try_from(left.as_millis() + 1).unwrap_or(PollTimeout::ZERO);
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error),
    }
}
