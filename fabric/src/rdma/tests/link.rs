//! The conformance suite over verbs, and what only verbs have: keys, receives, ports and completions that lie.

use std::{io::Read, os::unix::net::UnixStream};

use gleaner_proto::header::{HEADER_LEN, Header, Immediate, Kind, Status};

use super::*;
use crate::{
    Asked, Expected, Found, Geometry, Link, LinkError, Side,
    conformance::{HostilePair, Pair},
};

pub(super) const SMALL: Geometry = Geometry { window: 4, slot_bytes: 512, arena_bytes: 64 << 10 };

/// A client's and a worker's: two devices where there are two, so that packets cross what lies between.
fn adapters() -> (Adapter, Adapter) {
    let names = devices().unwrap();
    let open = |name: Option<&String>| {
        Adapter::open(&Settings { device: name.cloned(), ..Settings::default() }).unwrap()
    };
    (open(names.first()), open(names.last()))
}

pub(super) fn ends(geometry: Geometry) -> (RdmaLink, RdmaLink) {
    ends_of(&adapters(), geometry)
}

fn ends_of(adapters: &(Adapter, Adapter), geometry: Geometry) -> (RdmaLink, RdmaLink) {
    let end = |adapter: &Adapter| adapter.prepare(adapter.port.gids[0], geometry).unwrap();
    let (client, worker) = (end(&adapters.0), end(&adapters.1));
    let (at_client, at_worker) = (client.endpoint(), worker.endpoint());
    let (ours, theirs) = UnixStream::pair().unwrap();
    let worker = worker.connect(&at_client, Side::Worker, theirs.into()).unwrap();
    let mut client = client.connect(&at_worker, Side::Client, ours.into()).unwrap();
    client.probe(PATIENCE).unwrap();
    (client, worker)
}

fn pair(geometry: Geometry) -> Pair {
    let (client, worker) = ends(geometry);
    (Box::new(client), Box::new(worker))
}

/// A peer that writes what it likes where it likes, with the immediate that it likes.
pub(super) struct Hostile {
    pub(super) link: RdmaLink,
}

impl Hostile {
    fn against(geometry: Geometry) -> (Self, RdmaLink) {
        let (link, worker) = ends(geometry);
        (Self { link }, worker)
    }

    fn write(&mut self, bytes: &[u8], write: Write) {
        let outgoing = &mut self.link.parts.outgoing;
        outgoing.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
        self.link.pair.write(outgoing, self.link.target, &write).unwrap();
    }

    pub(super) fn message(&mut self, header: &[u8], immediate: Option<u32>) {
        let write = Write { bytes: 0..header.len(), offset: 0, immediate, signal: None };
        self.write(header, write);
    }
}

fn hostile(geometry: Geometry) -> HostilePair {
    let (mut peer, worker) = Hostile::against(geometry);
    let send = move |bytes: &[u8]| {
        // Less than a header is written and not announced: a write has no half.
        let whole = bytes.len() == HEADER_LEN;
        let immediate = Immediate::Headed { block: 0, generation: bytes[0] };
        peer.message(bytes, whole.then(|| immediate.encode()));
    };
    (Box::new(worker), Box::new(send))
}

macro_rules! on_a_device {
    ($make:expr; $($name:ident)*) => { $(
        #[test]
        #[ignore = "needs an RDMA device"]
        fn $name() {
            crate::conformance::$name($make);
        }
    )* };
}

on_a_device!(pair; order held_posts_go_out window_is_the_bound payload_sizes both_ways_at_once
    peer_gone_is_seen_after_its_last_message wait_is_woken wait_ends_in_time no_wake_up_is_lost
    wait_sees_what_came_before arena_blocks exchange_gives_both_buffers
    calls_are_served_in_place inputs_are_sent_from_elsewhere calls_like_the_one_before what_is_no_good_answer_is_told_apart
    unread_answers_stay);
on_a_device!(hostile; bad_headers_close_the_link garbage_never_panics cut_messages_never_arrive);

pub(super) fn request() -> Header {
    Header {
        generation: 1,
        slot: 0,
        kind: Kind::Request,
        status: Status::Ok,
        epoch: 1,
        invocation: 1,
        function: 0,
        code: 0,
        payload_len: 0,
        block: 0,
        reply_block: 0,
        reply_capacity: 0,
        time_ns: 0,
    }
}

/// What ends a link, once it does.
pub(super) fn until_error(link: &mut RdmaLink) -> LinkError {
    until_error_of(|| link.poll().map(|_| ()))
}

/// The same, of who looks in another way.
fn until_error_of(mut look: impl FnMut() -> Result<(), Box<LinkError>>) -> LinkError {
    let until = Instant::now() + PATIENCE;
    loop {
        match look() {
            Err(error) => return *error,
            Ok(()) => assert!(Instant::now() < until, "the link stayed open"),
        }
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn an_immediate_that_lies_ends_the_link() {
    for (immediate, wanted) in [(1 << 8, "another block"), (9, "another generation")] {
        let (mut peer, mut worker) = Hostile::against(SMALL);
        let block = (immediate >> 8) as usize * 64;
        let mut bytes = vec![0; block + HEADER_LEN];
        bytes[block..].copy_from_slice(&request().encode());
        peer.message(&bytes, Some(immediate));
        let error = until_error(&mut worker);
        let told = matches!(error, LinkError::Immediate { .. } | LinkError::Range { .. });
        assert!(told, "{wanted}: {error}");
    }
    let (mut peer, mut worker) = Hostile::against(SMALL);
    let last = Immediate::Headed { block: 0xfe_ffff, generation: 0xff };
    peer.message(&request().encode(), Some(last.encode()));
    let error = until_error(&mut worker);
    assert!(matches!(error, LinkError::Range { block: 0xfe_ffff, .. }), "{error}");
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_brief_message_that_lies_ends_the_link() {
    let inside = SMALL.slot_capacity() as usize;
    for (slot, len, ends) in
        [(4, 8, true), (255, 8, true), (3, inside, false), (0, inside + 1, true)]
    {
        let (mut peer, mut worker) = Hostile::against(SMALL);
        peer.message(&vec![7; len], Some(Immediate::Brief { slot, detail: 0 }.encode()));
        if ends {
            let error = until_error(&mut worker);
            assert!(matches!(error, LinkError::Range { .. }), "slot {slot}, {len} bytes: {error}");
        } else {
            assert_eq!(arrived(&mut worker).0.payload_len as usize, len);
        }
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_brief_call_that_lies_ends_the_link_of_who_serves() {
    for (slot, len) in [(4, 8), (255, 8), (0, SMALL.slot_capacity() as usize + 1)] {
        let (mut peer, mut worker) = Hostile::against(SMALL);
        peer.message(&vec![7; len], Some(Immediate::Brief { slot, detail: 0 }.encode()));
        let nobody = &mut |_: Asked, _: &mut [u8], _: &mut [u8]| panic!("it was run");
        let error = until_error_of(|| worker.serve(nobody).map(|_| ()));
        assert!(matches!(error, LinkError::Range { .. }), "slot {slot}, {len} bytes: {error}");
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_brief_answer_that_lies_is_no_reply() {
    let capacity = SMALL.slot_capacity();
    for (slot, len, room) in [(1, 8, capacity), (0, capacity + 1, capacity), (0, 9, 8)] {
        let (mut client, worker) = ends(SMALL);
        let mut peer = Hostile { link: worker };
        let mut call = Expected::new(0, 1, SMALL.slot(0));
        call.set_lengths(3, room);
        call.begin(1, 0);
        client.ask_with(&call, b"ask", 0).unwrap();
        let message = Immediate::Brief { slot, detail: 0 };
        peer.message(&vec![7; len as usize], Some(message.encode()));
        let until = Instant::now() + PATIENCE;
        loop {
            match client.answer(&call, 1) {
                Ok(Found::None) => assert!(Instant::now() < until, "nothing arrives"),
                Ok(Found::Other(_)) if room < capacity => break,
                Err(error) if room == capacity => {
                    assert!(matches!(*error, LinkError::Range { .. }), "{error}");
                    break;
                }
                other => panic!("slot {slot}, {len} bytes: {other:?}"),
            }
        }
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn an_answer_to_nothing_ends_the_link() {
    let (mut client, worker) = ends(SMALL);
    let mut peer = Hostile { link: worker };
    peer.message(&[7; 8], Some(Immediate::Brief { slot: 1, detail: 0 }.encode()));
    let error = until_error(&mut client);
    assert!(matches!(error, LinkError::Range { slot: 1, .. }), "{error}");
}

/// The next message, whole.
fn arrived(link: &mut RdmaLink) -> (Header, Vec<u8>) {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(arrival) = link.poll().unwrap() {
            return (arrival.header, link.incoming(arrival.payload()).to_vec());
        }
        assert!(Instant::now() < until, "nothing arrives");
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_call_like_the_one_before_is_its_payload_alone() {
    let (mut client, mut worker) = ends(SMALL);
    let own = SMALL.slot(1);
    let capacity = SMALL.slot_capacity();
    for number in 1..=3u8 {
        let asked = Header {
            generation: number.into(),
            slot: 1,
            invocation: number.into(),
            payload_len: 5,
            block: own.index(),
            reply_block: own.index(),
            reply_capacity: capacity,
            ..request()
        };
        client.outgoing(own)[..5].fill(number);
        client.post(own, &asked).unwrap();
        assert_eq!(arrived(&mut worker), (asked, vec![number; 5]));
        let (kind, len) = (Kind::Response, capacity);
        let answer = Header {
            kind,
            payload_len: len,
            reply_block: 0,
            reply_capacity: len,
            time_ns: 1500,
            ..asked
        };
        worker.outgoing(own)[..len as usize].fill(number + 100);
        worker.post(own, &answer).unwrap();
        assert_eq!(arrived(&mut client), (answer, vec![number + 100; len as usize]));
    }
    let header_at = |link: &RdmaLink| link.parts.incoming.snapshot(own.offset as usize);
    assert_eq!(Header::decode(&header_at(&worker)).unwrap().generation, 1, "the first alone");
    assert_eq!(header_at(&client), [0; HEADER_LEN], "none");
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_write_outside_the_region_ends_that_link_alone() {
    let (mut peer, mut worker) = Hostile::against(SMALL);
    let (mut other, mut served) = ends(SMALL);
    let end = SMALL.region_bytes();
    peer.write(&[7; 64], Write { bytes: 0..64, offset: end - 32, immediate: None, signal: None });
    let error = until_error(&mut worker);
    assert!(matches!(error, LinkError::QueuePair(_)), "{error}");
    other.post(SMALL.slot(0), &request()).unwrap();
    served.wait(PATIENCE).unwrap();
    assert!(served.poll().unwrap().is_some());
}

#[test]
#[ignore = "needs an RDMA device"]
fn another_links_key_opens_nothing() {
    // Two lanes of one worker, which has opened its device once.
    let adapters = adapters();
    let (link, mut worker) = ends_of(&adapters, SMALL);
    let mut peer = Hostile { link };
    let (_other, served) = ends_of(&adapters, SMALL);
    let (address, key) = (served.parts.incoming.address(), served.parts.incoming.remote_key());
    peer.link.target = Target { region: address, bytes: SMALL.region_bytes(), key };
    peer.write(&[7; 64], Write { bytes: 0..64, offset: 0, immediate: None, signal: None });
    let error = until_error(&mut worker);
    assert!(matches!(error, LinkError::QueuePair(_)), "{error}");
    assert!(served.parts.incoming.bytes().iter().all(|byte| *byte == 0));
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_key_is_worth_nothing_after_its_link() {
    let (mut peer, worker) = Hostile::against(SMALL);
    let target = peer.link.target;
    drop(worker);
    // The next mapping of this size mostly lies at the very place.
    let mut later = Region::anonymous(SMALL.region_bytes() as usize).unwrap();
    later.bytes_mut().fill(0x55);
    let write = Write { bytes: 0..64, offset: 0, immediate: None, signal: Some(1) };
    peer.write(&[7; 64], write);
    let ended = next(&mut peer.link.parts.sends);
    assert!(ended.result().is_err(), "a stale key wrote");
    assert!(later.bytes().iter().all(|byte| *byte == 0x55));
    assert_eq!(peer.link.target, target);
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_flood_ends_in_the_floods_own_window() {
    let (mut peer, mut worker) = Hostile::against(SMALL);
    let header = request();
    let mut posted = 0;
    let full = loop {
        match peer.link.post(SMALL.slot(0), &header) {
            Ok(()) => posted += 1,
            Err(error) => break error,
        }
        assert!(posted < 10_000, "nothing pushed back");
    };
    assert!(matches!(*full, LinkError::Window { .. }), "{full}");
    let until = Instant::now() + PATIENCE;
    for _ in 0..posted {
        while worker.poll().unwrap().is_none() {
            assert!(Instant::now() < until, "what was posted arrives");
        }
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_peer_that_dies_without_a_word_is_seen_by_its_socket() {
    let (client, mut worker) = ends(SMALL);
    let started = Instant::now();
    let gone = std::thread::spawn(move || drop(client));
    worker.wait(PATIENCE).unwrap();
    assert!(matches!(until_error(&mut worker), LinkError::Closed));
    assert!(started.elapsed() < PATIENCE / 2);
    gone.join().unwrap();
}

#[test]
#[ignore = "needs an RDMA device"]
fn bytes_on_the_socket_mean_nothing() {
    let adapter = Adapter::open(&Settings::default()).unwrap();
    let end = || adapter.prepare(adapter.port.gids[0], SMALL).unwrap();
    let (client, worker) = (end(), end());
    let peer = client.endpoint();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut worker = worker.connect(&peer, Side::Worker, ours.into()).unwrap();
    std::io::Write::write_all(&mut theirs, &[1; 1000]).unwrap();
    worker.wait(Duration::from_millis(50)).unwrap();
    assert!(worker.poll().unwrap().is_none());
    drop(worker);
    assert!(matches!(theirs.read(&mut [0; 1]), Ok(0) | Err(_)));
}
