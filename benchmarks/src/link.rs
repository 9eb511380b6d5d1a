//! Gleaner's link over verbs alone, without a service: a client's end here and a worker's in a process of its own, with an echo or a sum behind
//! the worker's. Runs the rounds that the raw baselines run.

use std::{os::unix::net::UnixStream, time::Duration};

use anyhow::{Context, Result, bail};
use gleaner_fabric::{
    Arrival, Geometry, Link, LinkError, Side,
    rdma::{Adapter, RdmaLink, Settings, Unconnected},
};
use gleaner_proto::header::{BLOCK_ALIGN, GUARD_LEN, HEADER_LEN, Header, Kind, Status};

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
    Ok(End { link, waiting, work: load.work, sent: 0, received: 0, _peer: peer })
}

/// The worker's process: serves until the client has gone.
pub(crate) fn run_worker(client: UnixStream, waiting: Waiting, load: Load) -> Result<()> {
    let mine = prepare(load)?;
    let theirs = peer::exchange(&client, &mine.endpoint())?;
    let mut worker = mine.connect(&theirs, Side::Worker, client.try_clone()?.into())?;
    peer::ready(&client)?;
    drop(client);
    loop {
        match next(&mut worker, waiting) {
            Ok(arrival) => serve(&mut worker, load, &arrival)?,
            Err(LinkError::Closed) => return Ok(()),
            Err(error) => bail!(error),
        }
    }
}

/// Answers one request.
pub fn serve(worker: &mut RdmaLink, load: Load, arrival: &Arrival) -> Result<()> {
    let reply = arrival.reply.context("a request without a place for its reply")?;
    let (input, output) = worker.exchange(arrival.payload(), reply);
    load.work.run(input, &mut output[..load.reply()]);
    let payload_len = load.reply() as u32;
    let kind = Kind::Response;
    let (reply_block, reply_capacity) = (0, payload_len);
    let header = Header { kind, payload_len, reply_block, reply_capacity, ..arrival.header };
    Ok(worker.post(reply, &header)?)
}

/// Sends request number `number` with what is in `fill`.
pub fn request(client: &mut RdmaLink, work: Work, number: u64, fill: &[u8]) -> Result<()> {
    let geometry = client.geometry();
    let slot = (number % u64::from(geometry.window)) as u16;
    let block = geometry.slot(slot);
    work.fill(client.outgoing(block), fill);
    let header = Header {
        generation: (number / u64::from(geometry.window)) as u32 + 1,
        slot,
        kind: Kind::Request,
        status: Status::Ok,
        epoch: 1,
        invocation: number,
        function: 0,
        code: 0,
        payload_len: fill.len() as u32,
        block: block.index(),
        reply_block: block.index(),
        reply_capacity: geometry.slot_capacity(),
        time_ns: 0,
    };
    Ok(client.post(block, &header)?)
}

fn next(link: &mut RdmaLink, waiting: Waiting) -> Result<Arrival, LinkError> {
    loop {
        if let Some(arrival) = link.poll()? {
            return Ok(arrival);
        }
        if waiting == Waiting::Warm {
            link.wait(WAIT)?;
        }
    }
}

impl Transport for End {
    fn send(&mut self, request: &[u8]) -> Result<()> {
        self::request(&mut self.link, self.work, self.sent, request)?;
        self.sent += 1;
        Ok(())
    }

    fn receive(&mut self, reply: &mut [u8]) -> Result<()> {
        let arrival = next(&mut self.link, self.waiting)?;
        if arrival.header.invocation != self.received {
            bail!("a reply came out of turn");
        }
        self.received += 1;
        reply.copy_from_slice(self.link.incoming(arrival.payload()));
        Ok(())
    }
}
