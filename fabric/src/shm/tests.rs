//! The conformance suite over shared memory, and what only shared memory has: hostile lines and words, a peer that is killed,
//! files that are refused, pages that are taken back.
#![allow(clippy::unwrap_used)]

use std::{
    fs::File,
    io::Write,
    os::{
        fd::OwnedFd,
        unix::{fs::FileExt, net::UnixStream},
    },
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use gleaner_proto::header::{GUARD_LEN, HEADER_LEN, Kind, Status};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::fstat,
    },
    unistd::ftruncate,
};
use proptest::prelude::*;

use super::*;
use crate::{
    conformance::{HostilePair, Pair},
    tune::LIVENESS_POLLS,
};

fn open(file: &OwnedFd, geometry: Geometry) -> Segment {
    Segment::open(file.as_fd(), geometry).unwrap()
}

fn ends(geometry: Geometry) -> (ShmLink, ShmLink) {
    let file = Segment::create(geometry).unwrap();
    let (client, worker) = UnixStream::pair().unwrap();
    let end = |socket: UnixStream, side| ShmLink::new(open(&file, geometry), socket.into(), side);
    (end(client, Side::Client), end(worker, Side::Worker))
}

fn pair(geometry: Geometry) -> Pair {
    let (client, worker) = ends(geometry);
    (Box::new(client), Box::new(worker))
}

/// A peer that writes what it likes where it likes, through the file.
struct Hostile {
    file: File,
    layout: Layout,
    socket: UnixStream,
}

impl Hostile {
    fn against(side: Side, geometry: Geometry) -> (Self, ShmLink) {
        let file = Segment::create(geometry).unwrap();
        let (socket, ours) = UnixStream::pair().unwrap();
        let link = ShmLink::new(open(&file, geometry), ours.into(), side);
        let layout = Layout::new(geometry).unwrap();
        (Self { file: file.into(), layout, socket }, link)
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        self.file.write_all_at(bytes, at as u64).unwrap();
    }
}

fn hostile(geometry: Geometry) -> HostilePair {
    let (peer, worker) = Hostile::against(Side::Worker, geometry);
    let mut sequence = 0u32;
    let send = move |bytes: &[u8]| {
        let mut line = [0; HEADER_LEN];
        line[..bytes.len()].copy_from_slice(bytes);
        // Without its number, which comes last, a line is none.
        if bytes.len() == HEADER_LEN {
            sequence += 1;
            line[56..60].copy_from_slice(&sequence.to_le_bytes());
        }
        peer.write(peer.layout.half(Direction::Requests).line(sequence.max(1)), &line);
    };
    (Box::new(worker), Box::new(send))
}

crate::conformance_suite!(pair, hostile);

const SMALL: Geometry = Geometry { window: 4, slot_bytes: 256, arena_bytes: 4096 };
/// Longest that anything here may take before its test fails.
const PATIENCE: Duration = Duration::from_secs(60);

fn header(kind: Kind, sequence: u64) -> Header {
    Header {
        generation: 1,
        slot: 0,
        kind,
        status: Status::Ok,
        epoch: 1,
        invocation: sequence,
        function: 0,
        code: 0,
        payload_len: 8,
        block: 0,
        reply_block: 0,
        reply_capacity: 0,
        time_ns: 0,
    }
}

/// Posts a message that says its number, once there is room.
fn post_when_free(link: &mut ShmLink, kind: Kind, number: u64) {
    let slot = (number % u64::from(SMALL.window)) as u16;
    let block = SMALL.slot(slot);
    let header =
        Header { slot, block: block.index(), reply_block: block.index(), ..header(kind, number) };
    link.outgoing(block)[..8].copy_from_slice(&number.to_le_bytes());
    let until = Instant::now() + PATIENCE;
    while let Err(error) = link.post(block, &header) {
        assert!(matches!(*error, LinkError::Window { .. }), "{error}");
        assert!(Instant::now() < until, "message {number} found no room");
        thread::yield_now();
    }
}

fn next(link: &mut ShmLink, mut idle: impl FnMut(&mut ShmLink)) -> Arrival {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(arrival) = link.poll().unwrap() {
            return arrival;
        }
        assert!(Instant::now() < until, "no message arrived");
        idle(link);
    }
}

fn spin(_: &mut ShmLink) {
    thread::yield_now();
}

fn sleep_on_futex(link: &mut ShmLink) {
    let start = Instant::now();
    link.wait(PATIENCE).unwrap();
    assert!(start.elapsed() < PATIENCE, "slept over a message");
}

fn sleep_on_socket(link: &mut ShmLink) {
    if !link.arm().unwrap() {
        let mut sleep = [PollFd::new(link.wait_fd().unwrap(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut sleep, PollTimeout::from(60_000u16)), Ok(1), "slept over a message");
    }
}

#[test]
fn a_million_messages_arrive_in_order_past_a_ring_that_fills_up() {
    const MESSAGES: u64 = 1_000_000;
    let (mut client, mut worker) = ends(SMALL);
    let sender = thread::spawn(move || {
        (0..MESSAGES).for_each(|number| post_when_free(&mut client, Kind::Request, number));
        client
    });
    for number in 0..MESSAGES {
        assert_eq!(next(&mut worker, spin).header.invocation, number);
    }
    drop(sender.join().unwrap());
    worker.wait(PATIENCE).unwrap();
    assert!(matches!(*worker.poll().unwrap_err(), LinkError::Closed));
}

/// Calls one after the other, each end sleeping in its own way.
fn calls(calls: u64, at_client: fn(&mut ShmLink), at_worker: fn(&mut ShmLink)) {
    let (mut client, mut worker) = ends(SMALL);
    let echo = thread::spawn(move || {
        for number in 0..calls {
            let arrival = next(&mut worker, at_worker);
            assert_eq!(worker.incoming(arrival.payload()), number.to_le_bytes());
            post_when_free(&mut worker, Kind::Response, number);
        }
        worker
    });
    for number in 0..calls {
        post_when_free(&mut client, Kind::Request, number);
        let arrival = next(&mut client, at_client);
        assert_eq!(client.incoming(arrival.payload()), number.to_le_bytes());
    }
    echo.join().unwrap();
}

fn sleep_on_word(link: &mut ShmLink) {
    if !link.arm_word().unwrap() {
        let mut sleep = Words::new();
        sleep.push(link.wait_word().unwrap());
        assert!(sleep.wait(PATIENCE).unwrap(), "slept over a message");
    }
}

/// As a caller whose short sleep is over before anything comes.
fn sleep_on_word_then_socket(link: &mut ShmLink) {
    if !link.arm_word().unwrap() {
        sleep_on_socket(link);
    }
}

#[test]
fn no_wake_up_by_futex_is_lost() {
    calls(20_000, sleep_on_futex, sleep_on_futex);
    calls(20_000, spin, sleep_on_futex);
}

#[test]
fn no_wake_up_by_socket_is_lost() {
    calls(20_000, sleep_on_socket, sleep_on_socket);
    calls(20_000, spin, sleep_on_socket);
}

#[test]
fn ways_to_sleep_mix() {
    calls(20_000, sleep_on_futex, sleep_on_socket);
    calls(20_000, sleep_on_word, sleep_on_word_then_socket);
}

#[test]
fn any_of_several_links_ends_one_sleep() {
    const CALLS: u64 = 9_000;
    let (mut clients, mut workers): (Vec<_>, Vec<_>) = (0..3).map(|_| ends(SMALL)).unzip();
    let echo = thread::spawn(move || {
        let mut served = 0;
        while served < CALLS {
            let polled = workers.iter_mut().map(|link| u64::from(link.poll().unwrap().is_some()));
            let arrived: u64 = polled.sum();
            served += arrived;
            if arrived > 0 || workers.iter_mut().any(|link| link.arm_word().unwrap()) {
                continue;
            }
            let mut sleep = Words::new();
            workers.iter().for_each(|link| assert!(sleep.push(link.wait_word().unwrap())));
            assert!(sleep.wait(PATIENCE).unwrap(), "slept over a message");
        }
        workers
    });
    for number in 0..CALLS {
        post_when_free(&mut clients[number as usize % 3], Kind::Request, number);
    }
    echo.join().unwrap();
}

#[test]
fn who_is_awake_gets_no_wake_up() {
    let (mut client, mut worker) = ends(SMALL);
    assert!(!worker.arm().unwrap());
    for number in 0..3 {
        post_when_free(&mut client, Kind::Request, number);
        next(&mut worker, spin);
    }
    let mut bytes = [0; 8];
    let got = recv(worker.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT);
    assert_eq!(got, Ok(1), "one for the message it slept for, none after it");
}

#[test]
fn only_who_gets_no_messages_asks_the_socket() {
    let (mut client, mut worker) = ends(SMALL);
    client.send_wake_up();
    let (socket, flags) = (worker.socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK);
    let lies_there = || recv(socket, &mut [0], flags).is_ok();
    let look = |worker: &mut ShmLink, polls| {
        (0..polls).for_each(|_| assert!(worker.poll().unwrap().is_none()));
    };
    for number in 0..4 {
        look(&mut worker, LIVENESS_POLLS / 2);
        post_when_free(&mut client, Kind::Request, number);
        worker.poll().unwrap().unwrap();
    }
    assert!(lies_there());
    look(&mut worker, LIVENESS_POLLS);
    assert!(!lies_there());
}

#[test]
fn numbers_wrap() {
    let (mut client, mut worker) = ends(SMALL);
    let near = u32::MAX - 20;
    let full = near.wrapping_add(client.segment.layout().lines);
    (client.posted, client.last, worker.inbound.polled) = (near, full, near);
    for number in 0..40 {
        post_when_free(&mut client, Kind::Request, number);
        assert_eq!(next(&mut worker, spin).header.invocation, number);
    }
    assert_eq!(worker.inbound.polled, 19);
}

/// A process that holds the socket's other end, and is killed.
fn killable() -> (ShmLink, Child) {
    let file = Segment::create(SMALL).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let link = ShmLink::new(open(&file, SMALL), ours.into(), Side::Worker);
    let peer = Command::new("sleep").arg("1000").stdin(OwnedFd::from(theirs)).spawn().unwrap();
    (link, peer)
}

#[test]
fn a_killed_peer_is_seen_while_polling() {
    let (mut link, mut peer) = killable();
    assert!(link.poll().unwrap().is_none());
    peer.kill().unwrap();
    peer.wait().unwrap();
    let until = Instant::now() + PATIENCE;
    while link.poll().is_ok() {
        assert!(Instant::now() < until, "the link stayed open");
    }
    assert!(matches!(*link.poll().unwrap_err(), LinkError::Closed));
    let refused = link.post(SMALL.slot(0), &header(Kind::Response, 0));
    assert!(refused.is_err_and(|error| matches!(*error, LinkError::Closed)));
}

#[test]
fn a_killed_peer_ends_a_sleep() {
    for sleep in [sleep_on_futex, sleep_on_socket] {
        let (mut link, mut peer) = killable();
        let sleeper = thread::spawn(move || {
            let until = Instant::now() + PATIENCE;
            while link.poll().is_ok() {
                sleep(&mut link);
                assert!(Instant::now() < until, "the link stayed open");
            }
        });
        peer.kill().unwrap();
        peer.wait().unwrap();
        sleeper.join().unwrap();
    }
}

#[test]
fn a_peer_that_leaves_wakes_the_sleeper_at_once() {
    let (client, mut worker) = ends(SMALL);
    let sleeper = thread::spawn(move || {
        let start = Instant::now();
        while worker.poll().is_ok() {
            worker.wait(PATIENCE).unwrap();
        }
        start.elapsed()
    });
    drop(client);
    assert!(sleeper.join().unwrap() < PATIENCE);
}

#[test]
fn a_count_that_was_never_posted_gives_no_room() {
    let (peer, mut link) = Hostile::against(Side::Client, SMALL);
    let lines = peer.layout.lines;
    for _ in 0..lines {
        link.post(SMALL.slot(0), &header(Kind::Request, 0)).unwrap();
    }
    for lie in [lines + 1, u32::MAX, 0] {
        peer.write(peer.layout.half(Direction::Requests).taken, &lie.to_ne_bytes());
        let refused = link.post(SMALL.slot(0), &header(Kind::Request, 0));
        let refused = *refused.unwrap_err();
        assert!(matches!(refused, LinkError::Window { window: 4 }));
    }
}

/// A line whose kind says that it carries so many bytes.
fn carrying(len: u8, sequence: u32) -> [u8; HEADER_LEN] {
    let mut line = header(Kind::Request, 1).encode();
    line[6] |= 0x80 | len << 2;
    line[56..60].copy_from_slice(&sequence.to_le_bytes());
    line
}

#[test]
fn a_line_that_says_it_carries_more_than_fits_is_refused() {
    let (peer, mut link) = Hostile::against(Side::Worker, SMALL);
    peer.write(peer.layout.half(Direction::Requests).line(1), &carrying(16, 1));
    let arrival = link.poll().unwrap().unwrap();
    assert_eq!(link.incoming(arrival.payload()).len(), 16);
    peer.write(peer.layout.half(Direction::Requests).line(2), &carrying(17, 2));
    assert!(matches!(*link.poll().unwrap_err(), LinkError::Range { len: 17, .. }));
}

#[test]
fn a_small_payload_touches_no_line_but_its_own() {
    let (mut client, mut worker) = ends(SMALL);
    post_when_free(&mut client, Kind::Request, 7);
    // What lies in the region is the sender's alone: the line has carried it.
    client.outgoing(SMALL.slot(3))[..8].fill(0xEE);
    let arrival = next(&mut worker, spin);
    assert_eq!(worker.incoming(arrival.payload()), 7u64.to_le_bytes());
}

#[test]
fn a_reply_is_taken_by_its_own_call_alone_and_anything_else_stays() {
    let (mut client, mut worker) = ends(SMALL);
    let mut calls = [0, 1].map(|slot| Expected::new(slot, 3, SMALL.slot(slot)));
    for (size, status) in [(8, Status::Ok), (100, Status::Ok), (0, Status::FunctionError)] {
        for call in &mut calls {
            call.set_lengths(size, 100);
            call.begin(u64::from(size), 6);
            client.ask_keeping(call, &vec![size as u8; size as usize], 0).unwrap();
            assert!(client.reply_to(call).is_none(), "nobody has answered");
            let arrival = next(&mut worker, spin);
            let Block { offset, capacity } = arrival.reply.unwrap();
            worker.outgoing(SMALL.slot(call.slot()))[..size as usize].fill(9);
            let kind = Kind::Response;
            let header = Header { kind, status, reply_block: 0, time_ns: 5, ..arrival.header };
            worker.post(Block { offset, capacity }, &header).unwrap();
        }
        for (call, other) in [(0, 1), (1, 0)] {
            assert_eq!(client.upcoming(), Some(calls[call].slot()));
            assert!(client.reply_to(&calls[other]).is_none(), "it is another's");
            match status {
                Status::Ok => {
                    let reply = client.reply_to(&calls[call]);
                    assert_eq!(reply.unwrap(), vec![9; size as usize]);
                }
                status => {
                    assert!(client.reply_to(&calls[call]).is_none(), "it is no reply");
                    assert_eq!(client.poll().unwrap().unwrap().header.status, status);
                }
            }
        }
        assert!(client.upcoming().is_none() && client.poll().unwrap().is_none());
    }
}

#[test]
fn a_word_that_is_no_way_to_sleep_and_a_full_socket_do_no_harm() {
    let (peer, mut link) = Hostile::against(Side::Client, SMALL);
    let half = *peer.layout.half(Direction::Requests);
    for call in 0..100_000u32 {
        peer.write(half.sleeping, &(call % 5).to_ne_bytes());
        peer.write(half.taken, &call.to_ne_bytes());
        link.post(SMALL.slot(0), &header(Kind::Request, 0)).unwrap();
    }
}

#[test]
fn bytes_that_nobody_asked_for_do_not_keep_a_sleeper_busy_for_ever() {
    let (peer, mut link) = Hostile::against(Side::Client, SMALL);
    peer.socket.set_nonblocking(true).unwrap();
    while (&peer.socket).write(&[0; 4096]).is_ok() {}
    for _ in 0..10 {
        assert!(!link.arm().unwrap());
        link.wait(Duration::from_millis(1)).unwrap();
        assert!(link.poll().unwrap().is_none());
    }
}

proptest! {
    /// Whatever a peer writes into the control area, what arrives lies inside the regions, and nothing panics.
    #[test]
    fn any_control_area_gives_messages_or_errors(
        client in any::<bool>(),
        writes in prop::collection::vec((any::<prop::sample::Index>(), noise(), 1u32..20), 1..40),
    ) {
        let side = if client { Side::Client } else { Side::Worker };
        let (peer, mut link) = Hostile::against(side, SMALL);
        let inbound = Direction::sent_by(side).opposite();
        for (at, bytes, sequence) in writes {
            let at = at.index(peer.layout.half(Direction::Requests).region - HEADER_LEN);
            peer.write(at, &bytes);
            peer.write(peer.layout.half(inbound).line(sequence), &numbered(bytes, sequence));
            for _ in 0..4 {
                if let Ok(Some(arrival)) = link.poll() {
                    prop_assert_eq!(link.incoming(arrival.payload()).len(), arrival.header.payload_len as usize);
                    if let Some(reply) = arrival.reply {
                        let (_, output) = link.exchange(arrival.payload(), reply);
                        prop_assert_eq!(output.len(), reply.capacity as usize + GUARD_LEN);
                    }
                }
            }
            let _ = link.post(SMALL.slot(0), &header(side.takes(), 0));
            let _ = link.arm();
            link.wait(Duration::ZERO).unwrap();
        }
    }
}

/// Bytes that are sometimes nearly a header.
fn noise() -> impl Strategy<Value = [u8; HEADER_LEN]> {
    let near = (any::<bool>(), 0..HEADER_LEN, any::<u8>()).prop_map(|(request, at, byte)| {
        let kind = if request { Kind::Request } else { Kind::Response };
        let mut bytes = header(kind, 1).encode();
        bytes[at] = byte;
        bytes
    });
    let any_bytes = prop::collection::vec(any::<u8>(), HEADER_LEN)
        .prop_map(|bytes| <[u8; HEADER_LEN]>::try_from(bytes).unwrap());
    prop_oneof![near, any_bytes]
}

fn numbered(mut bytes: [u8; HEADER_LEN], sequence: u32) -> [u8; HEADER_LEN] {
    bytes[56..60].copy_from_slice(&sequence.to_le_bytes());
    bytes
}

fn refused(file: impl AsFd, geometry: Geometry) -> SegmentError {
    Segment::open(file.as_fd(), geometry).unwrap_err()
}

#[test]
fn a_file_whose_size_may_change_is_refused() {
    let bytes = Layout::new(SMALL).unwrap().bytes as i64;
    let unsealed = memfd_create("test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&unsealed, bytes).unwrap();
    let all = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    assert!(
        matches!(refused(&unsealed, SMALL), SegmentError::Unsealed { missing } if missing == all)
    );
    fcntl(&unsealed, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW)).unwrap();
    assert!(matches!(refused(&unsealed, SMALL), SegmentError::Unsealed { .. }));
    let error = refused(&unsealed, SMALL).to_string();
    assert!(error.contains("F_SEAL_SHRINK") && error.contains("Segment::create"), "{error}");
}

#[test]
fn a_file_of_another_size_is_refused() {
    let bytes = Layout::new(SMALL).unwrap().bytes as i64;
    let cut = memfd_create("test", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    ftruncate(&cut, bytes - 4096).unwrap();
    let all = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&cut, FcntlArg::F_ADD_SEALS(all)).unwrap();
    assert!(matches!(refused(&cut, SMALL), SegmentError::Size { .. }));
    let other = Geometry { arena_bytes: 1 << 20, ..SMALL };
    assert!(matches!(refused(Segment::create(SMALL).unwrap(), other), SegmentError::Size { .. }));
    let none = Geometry { window: 0, ..SMALL };
    assert!(matches!(Segment::create(none), Err(SegmentError::Geometry(_))));
}

#[test]
fn what_is_no_memory_file_is_refused() {
    let (socket, _other) = UnixStream::pair().unwrap();
    assert!(matches!(refused(socket, SMALL), SegmentError::NotMemory));
}

#[test]
fn a_segment_can_neither_shrink_nor_grow() {
    let file = Segment::create(SMALL).unwrap();
    let bytes = Layout::new(SMALL).unwrap().bytes as i64;
    for size in [0, bytes - 1, bytes + 1] {
        assert_eq!(ftruncate(&file, size), Err(nix::Error::EPERM));
    }
}

/// The first byte of slot 1 of a direction.
fn byte<'a>(segment: &'a mut Segment, half: &Half) -> &'a mut u8 {
    let room = segment.room(half, segment.geometry().slot(1));
    &mut segment.outgoing(room)[0]
}

#[test]
fn pages_come_with_prefault_keep_what_is_there_and_go_when_taken_back() {
    let geometry = Geometry { window: 4, slot_bytes: 4096, arena_bytes: 4 << 20 };
    let file = Segment::create(geometry).unwrap();
    let bytes = || fstat(&file).unwrap().st_blocks * 512;
    let mut segment = open(&file, geometry);
    assert_eq!(bytes(), 0, "no page before it is asked for");
    let [requests, responses] =
        [Direction::Requests, Direction::Responses].map(|way| *segment.layout().half(way));
    *byte(&mut segment, &requests) = 7;
    let (whole, control) = (segment.layout().bytes, segment.layout().control_bytes());
    for direction in [Direction::Requests, Direction::Responses] {
        segment.prefault(direction).unwrap();
    }
    segment.touch(0..whole);
    segment.begin();
    assert_eq!(bytes(), whole as i64);
    assert_eq!(*byte(&mut segment, &requests), 7);
    *byte(&mut segment, &responses) = 8;
    assert!(segment.is_whole());
    Segment::take_back(&file, geometry).unwrap();
    assert!(!segment.is_whole());
    assert_eq!(bytes(), (control + segment.layout().region_bytes) as i64);
    assert_eq!(*byte(&mut segment, &requests), 7, "the sender's stay");
    assert_eq!(*byte(&mut segment, &responses), 0);
}

/// Whoever sleeps on the link's word when its memory goes: woken at once, whether it has lain down, or does so just now.
#[test]
fn a_sleeper_is_woken_when_its_memory_is_taken_back() {
    for round in 0..200 {
        let file = Segment::create(SMALL).unwrap();
        let (socket, _theirs) = UnixStream::pair().unwrap();
        let mut client = ShmLink::new(open(&file, SMALL), socket.into(), Side::Client);
        let segment = open(&file, SMALL);
        segment.begin();
        let half = *segment.layout().half(Direction::Responses);
        thread::scope(|scope| {
            let sleeper = scope.spawn(move || {
                let mut slept = 0;
                while client.intact() {
                    assert!(!client.arm_word().unwrap());
                    let mut words = Words::new();
                    words.push(client.wait_word().unwrap());
                    if client.intact() {
                        slept += 1;
                        assert!(words.wait(PATIENCE).unwrap(), "it slept on");
                    }
                }
                slept
            });
            while round % 2 == 0 && segment.sleeping(&half).load(Ordering::Acquire) == bell::AWAKE {
                thread::yield_now();
            }
            Segment::take_back(&file, SMALL).unwrap();
            assert!(sleeper.join().unwrap() <= 2);
        });
    }
}
