//! The far end of a round over verbs, in a process of its own, as a worker's is: this program again, with a socket to its caller as
//! its standard input, on which the two tell each other where they are.
//!
//! Not a thread: User-Mode Linux runs one thread of a process at a time.

use std::{
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use gleaner_proto::endpoint::{ENDPOINT_LEN, Endpoint};
use gleaner_testkit::poll_until;
use nix::{
    sys::{prctl, signal::Signal},
    unistd::dup,
};

use crate::{
    link::{self, Waiting},
    raw::{Load, Work, verbs},
    stage::pin,
};

/// The first word of a peer's command line.
const PEER: &str = "peer";
/// How long a peer may take to begin, and to end.
const BOUND: Duration = Duration::from_secs(30);

/// What a peer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Verbs alone, polled.
    Polled,
    /// Verbs alone, slept for.
    Slept,
    /// The link's worker, hot.
    HotLink,
    /// The link's worker, warm.
    WarmLink,
}

const ROLES: [(Role, &str); 4] = [
    (Role::Polled, "polled"),
    (Role::Slept, "slept"),
    (Role::HotLink, "hot-link"),
    (Role::WarmLink, "warm-link"),
];

const WORKS: [(Work, &str); 3] =
    [(Work::Echo, "echo"), (Work::Sum, "sum"), (Work::Sample, "sample")];

/// A peer's process. Dropped: waited for, and killed if it does not end.
pub(crate) struct Peer {
    child: Child,
    socket: UnixStream,
}

impl Peer {
    pub(crate) fn start(role: Role, load: Load) -> Result<Self> {
        let (socket, theirs) = UnixStream::pair().context("make a socket")?;
        socket.set_read_timeout(Some(BOUND))?;
        let (name, work) = (name_of(&ROLES, role), name_of(&WORKS, load.work));
        let numbers = [load.request, load.depth, load.cpu].map(|number| number.to_string());
        let mut command = Command::new(std::env::current_exe()?);
        command.args([PEER, name, work]).args(numbers).stdin(OwnedFd::from(theirs));
        Ok(Self { child: command.spawn().context("start the peer")?, socket })
    }

    /// Tells it where we are; returns where it is, once it is connected.
    pub(crate) fn meet(&mut self, own: &Endpoint) -> Result<Endpoint> {
        let theirs = exchange(&self.socket, own)?;
        let mut byte = [0];
        (&self.socket).read_exact(&mut byte).context("the peer did not connect")?;
        Ok(theirs)
    }

    /// The socket, for who wants to see the peer's end by it.
    pub(crate) fn socket(&self) -> Result<UnixStream> {
        Ok(self.socket.try_clone()?)
    }
}

fn name_of<T: PartialEq>(table: &[(T, &'static str)], wanted: T) -> &'static str {
    table.iter().find(|(known, _)| *known == wanted).map_or("", |(_, name)| name)
}

fn named<T: Copy>(table: &[(T, &str)], wanted: &str) -> Option<T> {
    table.iter().find(|(_, name)| *name == wanted).map(|(known, _)| *known)
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        if !poll_until(BOUND, || !matches!(self.child.try_wait(), Ok(None))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Each end says where it is.
pub(crate) fn exchange(mut socket: &UnixStream, own: &Endpoint) -> Result<Endpoint> {
    socket.write_all(&own.encode()).context("tell the other end")?;
    let mut bytes = [0; ENDPOINT_LEN];
    socket.read_exact(&mut bytes).context("hear of the other end")?;
    Ok(Endpoint::decode(&bytes)?)
}

/// The peer is connected.
pub(crate) fn ready(mut socket: &UnixStream) -> Result<()> {
    socket.write_all(&[1]).context("tell the caller")
}

/// Is the peer, if this process was started as one: true then, and all is done.
pub fn play_role() -> Result<bool> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_none_or(|word| word != PEER) {
        return Ok(false);
    }
    let [_, role, work, request, depth, cpu] = &words[..] else {
        bail!("a peer is not started by hand")
    };
    let work = named(&WORKS, work).context("no such work")?;
    let load = Load { request: request.parse()?, work, depth: depth.parse()?, cpu: cpu.parse()? };
    // Who is killed says no farewell, and a peer that polls would never notice.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    pin(load.cpu)?;
    let caller = UnixStream::from(dup(std::io::stdin()).context("the caller's socket")?);
    match named(&ROLES, role).context("no such role")? {
        Role::Polled => verbs::serve::<verbs::Polled>(caller, load)?,
        Role::Slept => verbs::serve::<verbs::Slept>(caller, load)?,
        Role::HotLink => link::run_worker(caller, Waiting::Hot, load)?,
        Role::WarmLink => link::run_worker(caller, Waiting::Warm, load)?,
    }
    Ok(true)
}
