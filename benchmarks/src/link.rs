//! Gleaner's link over verbs alone, without a service: a client's end here and a worker's in a process of its own, with an echo or a sum behind
//! the worker's. Runs the rounds that the raw baselines run.

use std::{os::unix::net::UnixStream, time::Duration};

use anyhow::{Result, bail};
use gleaner_fabric::{
    Asked, Done, Expected, Found, Geometry, Link, LinkError, Side,
    rdma::{Adapter, RdmaLink, Settings, Unconnected},
};
use gleaner_proto::header::{BLOCK_ALIGN, GUARD_LEN, HEADER_LEN, Header};

use crate::{
    peer::{self, Peer, Role},
    raw::{Load, Transport, Work, run},
    rounds::Sample,
    stage::Trips,
};

/// How long one wait lasts; whoever waits looks again.
const WAIT: Duration = Duration::from_secs(1);

/// How both ends wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// They poll.
    Hot,
    /// They sleep for each message.
    Warm,
}

/// The client's end.
pub(crate) struct End {
    /// First: the peer goes when it finds this one gone.
    link: RdmaLink,
    geometry: Geometry,
    waiting: Waiting,
    work: Work,
    sent: u64,
    received: u64,
    _peer: Peer,
}

/// One round: new ends, and as many round trips.
pub fn round(waiting: Waiting, load: Load, trips: Trips, sample: &mut Sample) -> Result<()> {
    run(&mut start(waiting, waiting, load)?, load, trips, sample)
}

fn prepare(load: Load) -> Result<Unconnected> {
    let adapter = Adapter::open(&Settings::default())?;
    let gid = adapter.gid_for(&adapter.addresses())?;
    let bytes = load.request.max(load.reply()) + HEADER_LEN + GUARD_LEN;
    let slot_bytes = bytes.next_multiple_of(BLOCK_ALIGN).max(4 * BLOCK_ALIGN) as u32;
    let geometry = Geometry { window: load.depth as u16, slot_bytes, arena_bytes: 0 }.check()?;
    Ok(adapter.prepare(gid, geometry)?)
}

/// Both ends in one program, connected.
pub fn pair(load: Load) -> Result<(RdmaLink, RdmaLink)> {
    let (client, worker) = (prepare(load)?, prepare(load)?);
    let (at_client, at_worker) = (client.endpoint(), worker.endpoint());
    let (ours, theirs) = UnixStream::pair()?;
    let worker = worker.connect(&at_client, Side::Worker, theirs.into())?;
    let client = client.connect(&at_worker, Side::Client, ours.into())?;
    Ok((client, worker))
}

/// Starts the worker's end, in a process of its own; it goes when the client's is dropped.
pub(crate) fn start(waiting: Waiting, worker: Waiting, load: Load) -> Result<End> {
    let role = if worker == Waiting::Hot { Role::HotLink } else { Role::WarmLink };
    let mut peer = Peer::start(role, load)?;
    let mine = prepare(load)?;
    let theirs = peer.meet(&mine.endpoint())?;
    let link = mine.connect(&theirs, Side::Client, peer.socket()?.into())?;
    let geometry = link.geometry();
    Ok(End { link, geometry, waiting, work: load.work, sent: 0, received: 0, _peer: peer })
}

/// The worker's process: serves until the client has gone.
pub(crate) fn run_worker(client: UnixStream, waiting: Waiting, load: Load) -> Result<()> {
    let mine = prepare(load)?;
    let theirs = peer::exchange(&client, &mine.endpoint())?;
    let mut worker = mine.connect(&theirs, Side::Worker, client.try_clone()?.into())?;
    peer::ready(&client)?;
    drop(client);
    loop {
        match serve(&mut worker, load) {
            Ok(false) if waiting == Waiting::Warm => worker.wait(WAIT)?,
            Ok(_) => {}
            Err(error) if matches!(*error, LinkError::Closed) => return Ok(()),
            Err(error) => bail!(error),
        }
    }
}

/// Answers one request, if there is one.
#[inline(never)]
pub fn serve(worker: &mut RdmaLink, load: Load) -> Result<bool, Box<LinkError>> {
    worker.serve_with(&mut |_: Asked, input: &mut [u8], output: &mut [u8]| {
        let len = load.reply();
        load.work.run(input, &mut output[..len]);
        Done::well(len, 0)
    })
}

/// Sends a request with what is in `fill`.
#[inline(never)]
pub fn request(client: &mut RdmaLink, work: Work, call: &mut Expected, fill: &[u8]) -> Result<()> {
    call.set_lengths(fill.len() as u32, call.block().capacity);
    work.fill(client.outgoing(call.input()), fill);
    Ok(client.ask(call, 0)?)
}

/// Looks for a reply once, and copies it. False: there is none.
#[inline(never)]
pub fn reply(client: &mut RdmaLink, expected: &Expected, reply: &mut [u8]) -> Result<bool> {
    match client.answer(expected, 1)? {
        Found::None => Ok(false),
        Found::Reply(bytes) => {
            reply.copy_from_slice(bytes);
            Ok(true)
        }
        Found::Other(arrival) => bail!("{:?} is not the reply to {expected:?}", arrival.header),
    }
}

/// The answer to request number `number`.
pub fn expected(geometry: Geometry, number: u64) -> Expected {
    let slot = (number % u64::from(geometry.window)) as u16;
    let generation = (number / u64::from(geometry.window)) as u32 + 1;
    let block = geometry.slot(slot);
    let request = Expected::new(slot, 1, block).request(0);
    Expected::of(&Header { generation, invocation: number, ..request })
}

impl Transport for End {
    fn send(&mut self, request: &[u8]) -> Result<()> {
        let mut call = expected(self.geometry, self.sent);
        self::request(&mut self.link, self.work, &mut call, request)?;
        self.sent += 1;
        Ok(())
    }

    fn receive(&mut self, reply: &mut [u8]) -> Result<()> {
        let expected = expected(self.geometry, self.received);
        while !self::reply(&mut self.link, &expected, reply)? {
            if self.waiting == Waiting::Warm {
                self.link.wait(WAIT)?;
            }
        }
        self.received += 1;
        Ok(())
    }
}
