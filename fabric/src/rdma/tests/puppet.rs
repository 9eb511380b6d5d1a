//! A client's end of a link in another process, on another host, that does what a test here tells it: so the suite, which holds both
//! ends, runs between two hosts.
//!
//! ```text
//! this host: the suite ── worker's end ◀──── verbs ────▶ client's end ── puppet: the other host
//!               └────────── Remote ──────── TCP: orders, answers ─────────▶┘
//! ```
//!
//! One connection a link: the puppet's end lives as long. The lane's socket is a second one.

use std::{
    io::{self, Read, Write as _},
    net::{TcpListener, TcpStream},
    os::fd::BorrowedFd,
    time::Duration,
};

use gleaner_proto::{
    endpoint::{ENDPOINT_LEN, Endpoint},
    header::{HEADER_LEN, Header},
};

use super::{PATIENCE, link::Hostile};
use crate::{
    Arrival, Block, Geometry, Link, LinkError, Payload, Runs, Side,
    rdma::{Adapter, RdmaLink, Settings, Unconnected},
};

/// Where the puppet listens, in the environment of both hosts.
pub(in crate::rdma) const PUPPET: &str = "GLEANER_PUPPET";
/// The device of each.
pub(in crate::rdma) const DEVICE: &str = "GLEANER_DEVICE";
/// How often the puppet polls for one order.
const LOOKS: u32 = 200;
/// Two hosts need not start at once.
const BOOT_PATIENCE: Duration = Duration::from_secs(60);

/// What the suite's host asks for.
#[repr(u8)]
enum Order {
    Post,
    Hold,
    Release,
    Poll,
    Wait,
    /// Any bytes, from the region's start, and perhaps an immediate.
    Write,
}

impl Order {
    fn from_byte(byte: u8) -> Self {
        let all = [Self::Post, Self::Hold, Self::Release, Self::Poll, Self::Wait, Self::Write];
        all.into_iter().nth(byte.into()).unwrap()
    }
}

const DONE: u8 = 0;
const NOTHING: u8 = 1;
const ARRIVED: u8 = 2;
const CLOSED: u8 = 3;
const WINDOW: u8 = 4;
const BROKEN: u8 = 5;

fn send(mut stream: &TcpStream, kind: u8, body: &[u8]) -> io::Result<()> {
    let mut frame = vec![kind];
    frame.extend((body.len() as u32).to_le_bytes());
    frame.extend(body);
    stream.write_all(&frame)
}

fn receive(mut stream: &TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let length = u32::from_le_bytes([1, 2, 3, 4].map(|at| head[at]));
    let mut body = vec![0; length as usize];
    stream.read_exact(&mut body)?;
    Ok((head[0], body))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Where the puppet listens, and the device of this host.
fn place() -> (String, String) {
    let variable = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    (variable(PUPPET), variable(DEVICE))
}

/// The puppet, which its host may be starting still.
fn connect(address: &str) -> TcpStream {
    let mut stream = None;
    gleaner_testkit::wait_until("the other host listens", BOOT_PATIENCE, || {
        stream = TcpStream::connect(address).ok();
        stream.is_some()
    });
    stream.unwrap()
}

/// One end on the device of this host.
fn prepare(device: &str, geometry: Geometry) -> Unconnected {
    let settings = Settings { device: Some(device.to_owned()), ..Settings::default() };
    let adapter = Adapter::open(&settings).unwrap();
    adapter.prepare(adapter.port.gids[0], geometry).unwrap()
}

/// Plays the client for whoever connects, until its host is ended.
#[test]
#[ignore = "needs another host"]
fn plays_the_client() {
    let (address, device) = place();
    let listener = TcpListener::bind(address).unwrap();
    loop {
        let (orders, _) = listener.accept().unwrap();
        orders.set_nodelay(true).unwrap();
        // One that only looked whether somebody listens says nothing.
        let Ok((_, geometry)) = receive(&orders) else { continue };
        let (lane, _) = listener.accept().unwrap();
        let ours = prepare(&device, geometry_of(&geometry));
        send(&orders, DONE, &ours.endpoint().encode()).unwrap();
        let (_, theirs) = receive(&orders).unwrap();
        let theirs = Endpoint::decode(&theirs).unwrap();
        let mut link = ours.connect(&theirs, Side::Client, lane.into()).unwrap();
        link.probe(PATIENCE).unwrap();
        send(&orders, DONE, &[]).unwrap();
        obey(&orders, link);
    }
}

/// Does what it is told until the other host lets go of the link.
fn obey(orders: &TcpStream, link: RdmaLink) {
    let mut hostile = Hostile { link };
    while let Ok((kind, body)) = receive(orders) {
        let link = &mut hostile.link;
        let answered = match Order::from_byte(kind) {
            Order::Poll => match poll(link) {
                Ok(Some(arrival)) => send(orders, ARRIVED, &arrived(link, &arrival)),
                Ok(None) => send(orders, NOTHING, &[]),
                Err(error) => fail(orders, &error),
            },
            Order::Post => finish(orders, post(link, &body)),
            Order::Hold => {
                link.hold();
                finish(orders, Ok(()))
            }
            Order::Release => finish(orders, link.release()),
            Order::Wait => finish(orders, link.wait(Duration::from_millis(u64_at(&body, 0)))),
            Order::Write => {
                let immediate = (body[0] == 1).then(|| u64_at(&body, 1) as u32);
                hostile.message(&body[9..], immediate);
                finish(orders, Ok(()))
            }
        };
        answered.unwrap();
    }
}

/// A few looks: each order that finds nothing costs an emulated machine a millisecond.
fn poll(link: &mut RdmaLink) -> Result<Option<Arrival>, LinkError> {
    Ok((0..LOOKS).find_map(|_| link.poll().transpose()).transpose()?)
}

fn post(link: &mut RdmaLink, body: &[u8]) -> Result<(), LinkError> {
    let block = Block { offset: u64_at(body, 0), capacity: u64_at(body, 8) as u32 };
    let (header, payload) = body[16..].split_at(HEADER_LEN);
    link.outgoing(block)[..payload.len()].copy_from_slice(payload);
    Ok(link.post(block, &Header::decode(header.try_into().unwrap()).unwrap())?)
}

fn arrived(link: &RdmaLink, arrival: &Arrival) -> Vec<u8> {
    let mut body = arrival.block.offset.to_le_bytes().to_vec();
    body.extend(arrival.header.encode());
    body.extend(link.incoming(arrival.payload()));
    body
}

fn finish(orders: &TcpStream, result: Result<(), LinkError>) -> io::Result<()> {
    match result {
        Ok(()) => send(orders, DONE, &[]),
        Err(error) => fail(orders, &error),
    }
}

fn fail(orders: &TcpStream, error: &LinkError) -> io::Result<()> {
    match error {
        LinkError::Closed => send(orders, CLOSED, &[]),
        LinkError::Window { window } => send(orders, WINDOW, &u64::from(*window).to_le_bytes()),
        other => send(orders, BROKEN, other.to_string().as_bytes()),
    }
}

fn geometry_of(body: &[u8]) -> Geometry {
    let part = |at: usize| u64_at(body, at * 8);
    Geometry { window: part(0) as u16, slot_bytes: part(1) as u32, arena_bytes: part(2) }
}

fn geometry_to(geometry: Geometry) -> Vec<u8> {
    let Geometry { window, slot_bytes, arena_bytes } = geometry;
    [window.into(), slot_bytes.into(), arena_bytes].map(u64::to_le_bytes).concat()
}

/// The puppet's end of a link, as the suite sees it.
pub(super) struct Remote {
    orders: TcpStream,
    geometry: Geometry,
    /// What the suite writes before it posts; the puppet has the memory that is sent from.
    outgoing: Vec<u8>,
    /// The payloads that arrived at the puppet, where they lie there.
    incoming: Vec<u8>,
}

impl Remote {
    /// A link between the puppet and this host: both ends.
    pub(super) fn pair(geometry: Geometry) -> (Self, RdmaLink) {
        let (address, device) = place();
        let orders = connect(&address);
        orders.set_nodelay(true).unwrap();
        send(&orders, DONE, &geometry_to(geometry)).unwrap();
        let lane = TcpStream::connect(&address).unwrap();
        let theirs: [u8; ENDPOINT_LEN] = receive(&orders).unwrap().1.try_into().unwrap();
        let ours = prepare(&device, geometry);
        let at_ours = ours.endpoint().encode();
        let theirs = Endpoint::decode(&theirs).unwrap();
        let worker = ours.connect(&theirs, Side::Worker, lane.into()).unwrap();
        send(&orders, DONE, &at_ours).unwrap();
        receive(&orders).unwrap();
        let region = vec![0; geometry.region_bytes() as usize];
        (Self { orders, geometry, outgoing: region.clone(), incoming: region }, worker)
    }

    /// Writes any bytes to the start of the worker's region.
    pub(super) fn write(&mut self, bytes: &[u8], immediate: Option<u32>) {
        let mut body = vec![u8::from(immediate.is_some())];
        body.extend(u64::from(immediate.unwrap_or(0)).to_le_bytes());
        body.extend(bytes);
        self.order(Order::Write, &body).unwrap();
    }

    fn order(&mut self, order: Order, body: &[u8]) -> Result<Option<Vec<u8>>, LinkError> {
        send(&self.orders, order as u8, body).unwrap();
        let (kind, body) = receive(&self.orders).unwrap();
        match kind {
            DONE | NOTHING => Ok(None),
            ARRIVED => Ok(Some(body)),
            CLOSED => Err(LinkError::Closed),
            WINDOW => Err(LinkError::Window { window: u64_at(&body, 0) as u16 }),
            _ => panic!("the puppet's end broke: {}", String::from_utf8_lossy(&body)),
        }
    }
}

impl Link for Remote {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn outgoing(&mut self, block: Block) -> &mut [u8] {
        block.payload_and_guard(&mut self.outgoing)
    }

    fn post(&mut self, block: Block, header: &Header) -> Result<(), Box<LinkError>> {
        let mut body = block.offset.to_le_bytes().to_vec();
        body.extend(u64::from(block.capacity).to_le_bytes());
        body.extend(header.encode());
        let start = block.payload_offset() as usize;
        body.extend(&self.outgoing[start..start + header.payload_len as usize]);
        self.order(Order::Post, &body).map(drop)?;
        Ok(())
    }

    fn hold(&mut self) {
        self.order(Order::Hold, &[]).unwrap();
    }

    fn release(&mut self) -> Result<(), LinkError> {
        self.order(Order::Release, &[]).map(drop)
    }

    fn poll(&mut self) -> Result<Option<Arrival>, Box<LinkError>> {
        let Some(body) = self.order(Order::Poll, &[])? else { return Ok(None) };
        let header = Header::decode(body[8..8 + HEADER_LEN].try_into().unwrap()).unwrap();
        let block = Block { offset: u64_at(&body, 0), capacity: header.payload_len };
        let arrival = Arrival { header, block, reply: None };
        self.incoming[arrival.payload().range()].copy_from_slice(&body[8 + HEADER_LEN..]);
        Ok(Some(arrival))
    }

    fn incoming(&self, payload: Payload) -> &[u8] {
        &self.incoming[payload.range()]
    }

    fn exchange(&mut self, payload: Payload, reply: Block) -> (&mut [u8], &mut [u8]) {
        (&mut self.incoming[payload.range()], reply.payload_and_guard(&mut self.outgoing))
    }

    fn serve(&mut self, runs: &mut dyn Runs) -> Result<bool, Box<LinkError>> {
        self.serve_with(runs)
    }

    fn unsent(&self) -> bool {
        false
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), LinkError> {
        self.order(Order::Wait, &(timeout.as_millis() as u64).to_le_bytes()).map(drop)
    }

    /// The puppet sleeps for it.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn arm(&mut self) -> Result<bool, LinkError> {
        Ok(true)
    }
}
