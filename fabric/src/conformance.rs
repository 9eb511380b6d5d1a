//! What every backend must do, as functions over a factory of pairs. A backend's tests name them through
//! [`conformance_suite!`](crate::conformance_suite); a backend of another crate turns on the feature `conformance`.
//!
//! Waits are bounded and nothing here measures speed.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)] // all of it is test

mod in_place;

use std::{
    thread,
    time::{Duration, Instant},
};

use gleaner_proto::header::{BLOCK_ALIGN, GUARD_LEN, HEADER_LEN, Header, Kind, Status};

use crate::{
    arena::Arena,
    link::{Arrival, Block, Geometry, Link, LinkError},
};

pub use in_place::{
    calls_are_served_in_place, calls_like_the_one_before, inputs_are_sent_from_elsewhere,
    unread_answers_stay, what_is_no_good_answer_is_told_apart,
};

/// A link's two ends: the client's and the worker's.
pub type Pair = (Box<dyn Link>, Box<dyn Link>);
/// A worker's end, and a peer that sends it any bytes.
pub type HostilePair = (Box<dyn Link>, Box<dyn FnMut(&[u8])>);

/// Longest that any step may take before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
const SMALL: Geometry = Geometry { window: 4, slot_bytes: 512, arena_bytes: 64 << 10 };

/// Makes one `#[test]` of each function of the suite, for the pairs that two expressions make from a `Geometry`.
#[macro_export]
macro_rules! conformance_suite {
    ($pair:expr, $hostile:expr) => {
        $crate::conformance_suite!(@each $pair; order held_posts_go_out window_is_the_bound payload_sizes both_ways_at_once
            peer_gone_is_seen_after_its_last_message wait_is_woken wait_ends_in_time
            no_wake_up_is_lost wait_sees_what_came_before arena_blocks exchange_gives_both_buffers
            calls_are_served_in_place inputs_are_sent_from_elsewhere calls_like_the_one_before what_is_no_good_answer_is_told_apart
            unread_answers_stay);
        $crate::conformance_suite!(@each $hostile; bad_headers_close_the_link garbage_never_panics
            cut_messages_never_arrive);
    };
    (@each $make:expr; $($name:ident)*) => { $(
        #[test]
        fn $name() {
            $crate::conformance::$name($make);
        }
    )* };
}

/// Messages arrive in the order they were posted, with what they were posted with.
pub fn order(make: impl Fn(Geometry) -> Pair) {
    let (mut client, mut worker) = make(SMALL);
    for call in 0..1000u64 {
        for slot in 0..SMALL.window {
            post(&mut *client, &request(slot, call), &payload(slot, call, 300));
        }
        for slot in 0..SMALL.window {
            let arrival = next(&mut *worker);
            assert_eq!((arrival.header.slot, arrival.header.invocation), (slot, call));
            assert_eq!(worker.incoming(arrival.payload()), payload(slot, call, 300));
            assert_eq!(arrival.reply, Some(SMALL.slot(slot)));
            post(&mut *worker, &response(&arrival), &payload(slot, call, 17));
        }
        for slot in 0..SMALL.window {
            let arrival = next(&mut *client);
            assert_eq!((arrival.header.slot, arrival.header.invocation), (slot, call));
            assert_eq!(client.incoming(arrival.payload()), payload(slot, call, 17));
            assert_eq!(arrival.reply, None);
        }
    }
    assert!(client.poll().unwrap().is_none());
    assert!(worker.poll().unwrap().is_none());
}

/// What is held goes out when it is released, or when its sender polls, and in its order.
pub fn held_posts_go_out(make: impl Fn(Geometry) -> Pair) {
    let (mut client, mut worker) = make(SMALL);
    for call in 0..100u64 {
        client.hold();
        for slot in 0..SMALL.window {
            post(&mut *client, &request(slot, call), &payload(slot, call, 300));
        }
        if call % 2 == 0 {
            client.release().unwrap();
        } else {
            assert!(client.poll().unwrap().is_none());
        }
        for slot in 0..SMALL.window {
            let arrival = next(&mut *worker);
            assert_eq!((arrival.header.slot, arrival.header.invocation), (slot, call));
            assert_eq!(worker.incoming(arrival.payload()), payload(slot, call, 300));
        }
    }
    drop(client);
}

/// A peer that does not read costs a bounded number of messages, then an error; never memory, never a block.
pub fn window_is_the_bound(make: impl Fn(Geometry) -> Pair) {
    let geometry = Geometry { window: 4, slot_bytes: 256 << 10, arena_bytes: 0 };
    let (mut client, mut worker) = make(geometry);
    let mut header = request(0, 1);
    header.payload_len = geometry.slot_capacity();
    header.reply_block = 0;
    let mut posted = 0;
    let error = loop {
        match client.post(geometry.slot(0), &header) {
            Ok(()) => posted += 1,
            Err(error) => break error,
        }
        assert!(posted < 1000, "nothing ever pushed back");
    };
    assert!(matches!(*error, LinkError::Window { window: 4 }), "{error}");
    assert!(posted >= 4, "a window must fit: {posted}");
    for _ in 0..posted {
        let until = Instant::now() + PATIENCE;
        while worker.poll().unwrap().is_none() {
            client.poll().unwrap();
            assert!(Instant::now() < until, "what was posted must arrive");
        }
    }
    assert!(!client.unsent());
    client.post(geometry.slot(0), &header).unwrap();
}

/// Payloads from nothing to 64 MiB arrive whole, also where they cross the transport's buffers.
pub fn payload_sizes(make: impl Fn(Geometry) -> Pair) {
    let geometry = Geometry { window: 2, slot_bytes: 4096, arena_bytes: (64 << 20) + 4096 };
    let (mut client, worker) = make(geometry);
    let echo = thread::spawn(move || echo(worker));
    let mut requests = Arena::new(geometry);
    let mut replies = Arena::new(geometry);
    let around = |size: usize| [size - 1, size, size + 1];
    let edges = [1, HEADER_LEN, 3968, 16 << 10, 64 << 10, 1 << 20].map(around);
    let sizes = [0].into_iter().chain(edges.into_iter().flatten()).chain([64 << 20]);
    for (call, size) in sizes.enumerate() {
        let place = |arena: &mut Arena| match size as u32 {
            small if small <= geometry.slot_capacity() => geometry.slot(0),
            large => arena.take(large).unwrap(),
        };
        let (block, reply) = (place(&mut requests), place(&mut replies));
        let data = payload(0, call as u64, size);
        let mut header = request(0, call as u64);
        header.block = block.index();
        header.payload_len = size as u32;
        header.reply_block = reply.index();
        header.reply_capacity = size as u32;
        client.outgoing(block)[..size].copy_from_slice(&data);
        client.post(block, &header).unwrap();
        let arrival = next(&mut *client);
        assert_eq!(arrival.block.offset, reply.offset);
        assert!(client.incoming(arrival.payload()) == data, "{size} bytes came back changed");
        for (arena, block) in [(&mut requests, block), (&mut replies, reply)] {
            if block.offset >= geometry.arena_offset() {
                arena.give_back(block);
            }
        }
    }
    drop(client);
    echo.join().unwrap();
}

/// Both ends send more than the transport holds before either reads: neither blocks, all arrives.
pub fn both_ways_at_once(make: impl Fn(Geometry) -> Pair) {
    let geometry = Geometry { window: 8, slot_bytes: 1 << 20, arena_bytes: 0 };
    let (mut client, mut worker) = make(geometry);
    let size = geometry.slot_capacity() as usize;
    for slot in 0..geometry.window {
        let header = Header { payload_len: size as u32, reply_capacity: 0, ..request(slot, 1) };
        let header = in_slot(geometry, header);
        client.outgoing(geometry.slot(slot))[..size].copy_from_slice(&payload(slot, 1, size));
        client.post(geometry.slot(slot), &header).unwrap();
        let header = Header { kind: Kind::Response, ..header };
        worker.outgoing(geometry.slot(slot))[..size].copy_from_slice(&payload(slot, 2, size));
        worker.post(geometry.slot(slot), &header).unwrap();
    }
    let (mut at_client, mut at_worker) = (0, 0);
    let until = Instant::now() + PATIENCE;
    while (at_client, at_worker) != (geometry.window, geometry.window) {
        if let Some(arrival) = client.poll().unwrap() {
            assert!(client.incoming(arrival.payload()) == payload(at_client, 2, size));
            at_client += 1;
        }
        if let Some(arrival) = worker.poll().unwrap() {
            assert!(worker.incoming(arrival.payload()) == payload(at_worker, 1, size));
            at_worker += 1;
        }
        assert!(Instant::now() < until, "{at_client} and {at_worker} arrived");
    }
}

/// A peer that goes away is seen, by `poll` and by `wait`, and not before its last message was taken.
pub fn peer_gone_is_seen_after_its_last_message(make: impl Fn(Geometry) -> Pair) {
    let (mut client, mut worker) = make(SMALL);
    post(&mut *client, &request(1, 5), b"last");
    drop(client);
    let arrival = next(&mut *worker);
    assert_eq!(worker.incoming(arrival.payload()), b"last");
    worker.wait(PATIENCE).unwrap();
    assert!(matches!(*worker.poll().unwrap_err(), LinkError::Closed));
    let reply = response(&arrival);
    let mut posts = (0..3).map(|_| worker.post(SMALL.slot(1), &reply));
    assert!(posts.any(|post| post.is_err_and(|error| matches!(*error, LinkError::Closed))));
}

/// A message wakes a sleeper.
pub fn wait_is_woken(make: impl Fn(Geometry) -> Pair) {
    let (mut client, worker) = make(SMALL);
    let echo = thread::spawn(move || echo_warm(worker));
    for call in 0..200 {
        post(&mut *client, &request(0, call), b"ping");
        let arrival = next_warm(&mut *client);
        assert_eq!(arrival.header.invocation, call);
    }
    drop(client);
    echo.join().unwrap();
}

/// A sleep ends when its time is over, and not long before.
pub fn wait_ends_in_time(make: impl Fn(Geometry) -> Pair) {
    let (mut client, _worker) = make(SMALL);
    for timeout in [Duration::ZERO, Duration::from_millis(5)] {
        let start = Instant::now();
        client.wait(timeout).unwrap();
        assert!(start.elapsed() >= timeout);
        assert!(client.poll().unwrap().is_none());
    }
}

/// Arm, look once more, sleep on the descriptor: no message slips through between.
pub fn no_wake_up_is_lost(make: impl Fn(Geometry) -> Pair) {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    const CALLS: u64 = 5000;
    let (mut client, mut worker) = make(SMALL);
    let sender = thread::spawn(move || {
        for call in 0..CALLS {
            post(&mut *client, &request(0, call), b"");
            let arrival = next(&mut *client);
            assert_eq!(arrival.header.invocation, call);
        }
        client
    });
    let mut seen = 0;
    while seen < CALLS {
        if let Some(arrival) = worker.poll().unwrap() {
            post(&mut *worker, &response(&arrival), b"");
            seen += 1;
        } else if !worker.arm().unwrap() {
            let mut sleep = [PollFd::new(worker.wait_fd().unwrap(), PollFlags::POLLIN)];
            let woken = poll(&mut sleep, PollTimeout::from(5000u16)).unwrap();
            assert_eq!(woken, 1, "call {seen} arrived without a wake-up");
        }
    }
    drop(sender.join().unwrap());
}

/// Several messages may have come in at once: a sleep before the last of them was taken ends at once.
pub fn wait_sees_what_came_before(make: impl Fn(Geometry) -> Pair) {
    let (mut client, mut worker) = make(SMALL);
    for slot in 0..SMALL.window {
        post(&mut *client, &request(slot, 1), b"");
    }
    for slot in 0..SMALL.window {
        let start = Instant::now();
        worker.wait(PATIENCE).unwrap();
        assert!(start.elapsed() < PATIENCE, "it slept over message {slot}");
        assert_eq!(next(&mut *worker).header.slot, slot);
    }
}

/// A window of blocks of the arena travels at once, and none touches another.
pub fn arena_blocks(make: impl Fn(Geometry) -> Pair) {
    let (mut client, mut worker) = make(SMALL);
    let mut arena = Arena::new(SMALL);
    let blocks: Vec<Block> = (0..4).map(|n| arena.take(1000 + n).unwrap()).collect();
    for (slot, block) in (0..4u16).zip(&blocks) {
        let size = block.capacity as usize;
        let mut header = request(slot, 1);
        header.block = block.index();
        header.payload_len = size as u32;
        client.outgoing(*block)[..size].copy_from_slice(&payload(slot, 1, size));
        client.post(*block, &header).unwrap();
    }
    let arrivals: Vec<Arrival> = (0..4).map(|_| next(&mut *worker)).collect();
    for (arrival, block) in arrivals.iter().zip(&blocks) {
        let size = block.capacity as usize;
        assert_eq!(arrival.block, *block);
        assert!(worker.incoming(arrival.payload()) == payload(arrival.header.slot, 1, size));
    }
}

/// A function sees its input and its output at once, the output with its guard.
pub fn exchange_gives_both_buffers(make: impl Fn(Geometry) -> Pair) {
    let (mut client, mut worker) = make(SMALL);
    post(&mut *client, &request(2, 1), b"upper");
    let arrival = next(&mut *worker);
    let reply = arrival.reply.unwrap();
    let (input, output) = worker.exchange(arrival.payload(), reply);
    assert_eq!(output.len(), reply.capacity as usize + GUARD_LEN);
    input.make_ascii_uppercase();
    output[..input.len()].copy_from_slice(input);
    let header = Header { payload_len: 5, ..response(&arrival) };
    worker.post(reply, &header).unwrap();
    let arrival = next(&mut *client);
    assert_eq!(client.incoming(arrival.payload()), b"UPPER");
}

/// Each wrong header ends the link with an error that says why.
pub fn bad_headers_close_the_link(make: impl Fn(Geometry) -> HostilePair) {
    let wrong: [fn(&mut Header); 7] = [
        |h| h.kind = Kind::Response,
        |h| h.slot = SMALL.window,
        |h| h.block = u32::MAX,
        |h| h.payload_len = u32::MAX,
        |h| h.payload_len = SMALL.slot_capacity() + 1,
        |h| h.reply_block = 3,
        |h| h.reply_capacity = u32::MAX,
    ];
    for spoil in wrong {
        let mut header = request(0, 1);
        spoil(&mut header);
        let (mut worker, mut send) = make(SMALL);
        send(&header.encode());
        let error = until_error(&mut *worker);
        assert!(matches!(error, LinkError::Range { .. } | LinkError::Kind(_)), "{error}");
    }
    for at in [0, 6, 7, 63] {
        let mut bytes = request(0, 1).encode();
        bytes[at] = if at == 0 { 0 } else { 255 };
        let (mut worker, mut send) = make(SMALL);
        send(&bytes);
        let error = until_error(&mut *worker);
        assert!(matches!(error, LinkError::Header(_)), "byte {at}: {error}");
    }
}

/// Noise never panics and never arrives as something that lies outside the regions.
pub fn garbage_never_panics(make: impl Fn(Geometry) -> HostilePair) {
    let mut noise = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..200 {
        let (mut worker, mut send) = make(SMALL);
        let mut bytes = request(0, 1).encode();
        for _ in 0..3 {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes[(noise >> 40) as usize % HEADER_LEN] = (noise >> 32) as u8;
        }
        send(&bytes);
        for _ in 0..4 {
            match worker.poll() {
                Ok(Some(arrival)) => {
                    let end = arrival.block.payload_offset() + u64::from(arrival.block.capacity);
                    assert!(end + GUARD_LEN as u64 <= SMALL.region_bytes());
                    assert_eq!(
                        worker.incoming(arrival.payload()).len(),
                        arrival.header.payload_len as usize
                    );
                }
                Ok(None) => {}
                Err(_) => break,
            }
        }
    }
}

/// Half a header, or half a payload, is not a message.
pub fn cut_messages_never_arrive(make: impl Fn(Geometry) -> HostilePair) {
    let (mut worker, mut send) = make(SMALL);
    send(&request(0, 1).encode()[..HEADER_LEN - 1]);
    assert!(worker.poll().unwrap().is_none());
    drop(send);
    assert!(matches!(until_error(&mut *worker), LinkError::Closed));
}

/// Answers every call with its own payload until the peer is gone.
fn echo(mut worker: Box<dyn Link>) {
    loop {
        match worker.poll() {
            Ok(Some(arrival)) => echo_one(&mut *worker, &arrival),
            Ok(None) => thread::yield_now(),
            Err(error) if matches!(*error, LinkError::Closed) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

fn echo_warm(mut worker: Box<dyn Link>) {
    loop {
        match worker.poll() {
            Ok(Some(arrival)) => echo_one(&mut *worker, &arrival),
            Ok(None) => worker.wait(PATIENCE).unwrap(),
            Err(error) if matches!(*error, LinkError::Closed) => return,
            Err(error) => panic!("{error}"),
        }
    }
}

fn echo_one(worker: &mut dyn Link, arrival: &Arrival) {
    let reply = arrival.reply.unwrap();
    let (input, output) = worker.exchange(arrival.payload(), reply);
    output[..input.len()].copy_from_slice(input);
    let header = Header { payload_len: arrival.header.payload_len, ..response(arrival) };
    worker.post(reply, &header).unwrap();
}

fn in_slot(geometry: Geometry, header: Header) -> Header {
    let block = geometry.slot(header.slot).index();
    Header { block, reply_block: block, ..header }
}

/// A request in its own slot of [`SMALL`].
fn request(slot: u16, invocation: u64) -> Header {
    let header = Header {
        generation: 1,
        slot,
        kind: Kind::Request,
        status: Status::Ok,
        epoch: 3,
        invocation,
        function: 0,
        code: 0,
        payload_len: 0,
        block: 0,
        reply_block: 0,
        reply_capacity: SMALL.slot_capacity(),
        time_ns: 0,
    };
    let block = (u64::from(slot) * u64::from(SMALL.slot_bytes) / BLOCK_ALIGN as u64) as u32;
    Header { block, reply_block: block, ..header }
}

/// An empty response to it, where it asked for it.
fn response(arrival: &Arrival) -> Header {
    let request = arrival.header;
    Header { kind: Kind::Response, block: request.reply_block, payload_len: 0, ..request }
}

fn post(link: &mut dyn Link, header: &Header, data: &[u8]) {
    let block = link.geometry().slot(header.slot);
    link.outgoing(block)[..data.len()].copy_from_slice(data);
    let header = Header { payload_len: data.len() as u32, ..*header };
    link.post(block, &header).unwrap();
}

fn next(link: &mut dyn Link) -> Arrival {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(arrival) = link.poll().unwrap() {
            return arrival;
        }
        assert!(Instant::now() < until, "no message arrived");
        thread::yield_now();
    }
}

fn next_warm(link: &mut dyn Link) -> Arrival {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(arrival) = link.poll().unwrap() {
            return arrival;
        }
        link.wait(PATIENCE).unwrap();
        assert!(Instant::now() < until, "no message arrived");
    }
}

fn until_error(link: &mut dyn Link) -> LinkError {
    let until = Instant::now() + PATIENCE;
    loop {
        match link.poll() {
            Err(error) => return *error,
            Ok(Some(arrival)) => panic!("{arrival:?} arrived"),
            Ok(None) => assert!(Instant::now() < until, "the link stayed open"),
        }
    }
}

/// Bytes that differ with their place and their message, and repeat themselves after 64 KiB.
fn payload(slot: u16, call: u64, size: usize) -> Vec<u8> {
    const PERIOD: usize = 64 << 10;
    let first = (call as usize).wrapping_mul(31).wrapping_add(usize::from(slot));
    // Made once and copied: a byte at a time takes an emulated CPU half a minute for the largest.
    let once: Vec<u8> = (0..size.min(PERIOD)).map(|at| (first + at + (at >> 8)) as u8).collect();
    let mut bytes = once.repeat(size.div_ceil(PERIOD));
    bytes.truncate(size);
    bytes
}
