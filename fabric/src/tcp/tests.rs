//! The conformance suite over sockets, and what only sockets do: cut messages anywhere.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
};

use super::*;
use crate::{
    call::{Expected, response},
    conformance::{HostilePair, Pair},
};

fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

fn pair(geometry: Geometry) -> Pair {
    let (client, worker) = sockets();
    link_pair(client, worker, geometry)
}

fn link_pair(client: impl Into<OwnedFd>, worker: impl Into<OwnedFd>, geometry: Geometry) -> Pair {
    let client = TcpLink::new(client, Side::Client, geometry).unwrap();
    let worker = TcpLink::new(worker, Side::Worker, geometry).unwrap();
    (Box::new(client), Box::new(worker))
}

fn hostile(geometry: Geometry) -> HostilePair {
    let (mut client, worker) = sockets();
    let worker = TcpLink::new(worker, Side::Worker, geometry).unwrap();
    (Box::new(worker), Box::new(move |bytes| client.write_all(bytes).unwrap()))
}

crate::conformance_suite!(pair, hostile);

#[test]
fn a_unix_stream_is_a_link_as_well() {
    crate::conformance::order(|geometry| {
        let (client, worker) = UnixStream::pair().unwrap();
        link_pair(client, worker, geometry)
    });
}

/// A good answer's bytes.
fn answer(expected: &Expected, reply: &[u8]) -> Vec<u8> {
    let header = response(&expected.request(0), reply.len() as u32, 0);
    [&header.encode()[..], reply].concat()
}

/// The one that was asked for last is received in place if it comes first.
#[test]
fn two_answers_that_are_cut_anywhere_come_whole() {
    let (first, last) = ((0, &b"of slot 0"[..]), (1, &b"slot 1's own"[..]));
    for replies in [[last, first], [first, last]] {
        come_whole(replies);
    }
}

fn come_whole(replies: [(u16, &[u8]); 2]) {
    let geometry = Geometry { window: 2, slot_bytes: 256, arena_bytes: 0 };
    let expected = |slot| {
        let mut expected = Expected::new(slot, 1, geometry.slot(slot));
        expected.begin(u64::from(slot), 0);
        expected
    };
    let stream = replies.map(|(slot, reply)| answer(&expected(slot), reply)).concat();
    for cut in 1..stream.len() {
        let (client, mut worker) = sockets();
        let mut client = TcpLink::new(client, Side::Client, geometry).unwrap();
        for slot in [0, 1] {
            client.ask(&expected(slot), 0).unwrap();
        }
        let mut arrivals = Vec::new();
        for part in [&stream[..cut], &stream[cut..]] {
            worker.write_all(part).unwrap();
            client.wait(Duration::from_secs(10)).unwrap();
            while let Some(arrival) = client.poll().unwrap() {
                arrivals.push(arrival);
            }
        }
        let come = arrivals.iter().map(|one| (one.header.slot, client.incoming(one.payload())));
        assert_eq!(come.collect::<Vec<_>>(), replies, "cut at {cut}");
    }
}

/// One bit of a good answer is another: the short look says of it what the long way does.
#[test]
fn a_good_answer_is_what_a_check_anew_says() {
    let geometry = Geometry { window: 2, slot_bytes: 256, arena_bytes: 256 };
    let own = geometry.slot(1);
    let arena = Block { offset: geometry.arena_offset(), capacity: 20 };
    for (place, reply) in [(own, &b"reply"[..]), (own, &[7; 25]), (arena, b"reply")] {
        let mut call = Expected::new(1, 1, own);
        call.set_blocks(own, place);
        call.set_lengths(0, 20);
        call.begin(7, 3);
        looks_agree(geometry, &call, reply, place == own && reply.len() <= 20);
    }
}

/// Of the answer in the call's own slot.
fn looks_agree(geometry: Geometry, call: &Expected, reply: &[u8], fits: bool) {
    let mut good = Expected::new(1, 1, geometry.slot(1));
    good.begin(7, 3);
    let good = answer(&good, reply);
    for bit in 0..=8 * HEADER_LEN {
        let mut bytes = good.clone();
        if bit < 8 * HEADER_LEN {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let end = || {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let mut client = TcpLink::new(ours, Side::Client, geometry).unwrap();
            client.ask(call, 0).unwrap();
            theirs.write_all(&bytes).unwrap();
            theirs.shutdown(std::net::Shutdown::Write).unwrap();
            (client, theirs)
        };
        let ((mut short, _theirs), (mut long, _others)) = (end(), end());
        let anew = match long.poll() {
            Ok(Some(arrival)) => Ok(found(&long, call, arrival)),
            Ok(None) => Ok(Found::None),
            Err(error) => Err(error.to_string()),
        };
        let short = short.answer(call, 1).map_err(|error| error.to_string());
        assert_eq!(short, anew, "bit {bit}");
        let is_good = matches!(short, Ok(Found::Reply(bytes)) if bytes == reply);
        // Its number and its code say nothing where all is well, nor does the time.
        let means_nothing = (24..32).chain(40..56).any(|byte| bit / 8 == byte);
        let is_whole = bit == 8 * HEADER_LEN || means_nothing;
        assert_eq!(is_good, fits && is_whole, "bit {bit}");
    }
}

#[test]
fn one_byte_at_a_time_is_a_message() {
    let geometry = Geometry { window: 1, slot_bytes: 256, arena_bytes: 0 };
    let (mut client, worker) = sockets();
    client.set_nodelay(true).unwrap();
    let mut worker = TcpLink::new(worker, Side::Worker, geometry).unwrap();
    let mut message = [0; HEADER_LEN + 5];
    message[0] = 1;
    message[6] = 1;
    message[32] = 5;
    message[HEADER_LEN..].copy_from_slice(b"hello");
    for byte in &message[..message.len() - 1] {
        client.write_all(&[*byte]).unwrap();
        assert!(worker.poll().unwrap().is_none());
    }
    client.write_all(b"o").unwrap();
    worker.wait(Duration::from_secs(10)).unwrap();
    let arrival = worker.poll().unwrap().unwrap();
    assert_eq!(worker.incoming(arrival.payload()), b"hello");
}
