use std::os::{fd::AsFd, unix::net::UnixStream};

use gleaner_fabric::{Segment, ShmLink, Side};
use gleaner_proto::header::Kind;

use super::*;
use crate::calls::Fill;

const GEOMETRY: Geometry = Geometry { window: 2, slot_bytes: 4096, arena_bytes: 0 };
const CALL: Invocation = Invocation { call: 0, number: 1, function: 0, time_ns: 0 };

/// A lane over shared memory whose call was answered, and its slot; the file is the executor's.
fn answered_so(status: Status) -> (std::os::fd::OwnedFd, Lane, ShmLink, u16) {
    let file = Segment::create(GEOMETRY).unwrap();
    let open = || Segment::open(file.as_fd(), GEOMETRY).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut worker = ShmLink::new(open(), theirs.into(), Side::Worker);
    let mut lane = Lane::new(ShmLink::new(open(), ours.into(), Side::Client).into(), 1);
    let slot = lane.prepare(5, 64).unwrap();
    lane.send(slot, &CALL, &mut &b"input"[..]).unwrap();
    let request = worker.poll().unwrap().unwrap();
    let reply = request.reply.unwrap();
    worker.outgoing(reply)[..5].copy_from_slice(b"reply");
    let kind = Kind::Response;
    let block = reply.index();
    let header = Header { kind, status, block, payload_len: 5, ..request.header };
    worker.post(reply, &header).unwrap();
    (file, lane, worker, slot)
}

/// The same, and the answer was found.
fn answered() -> (std::os::fd::OwnedFd, Lane, ShmLink, Answer) {
    let (file, mut lane, worker, _) = answered_so(Status::Ok);
    let answer = lane.poll().unwrap().unwrap();
    (file, lane, worker, answer)
}

#[test]
fn an_upcoming_reply_is_read_where_it_lies() {
    let (_file, mut lane, _worker, slot) = answered_so(Status::Ok);
    assert_eq!(lane.upcoming(), Some((slot, CALL.call)));
    assert!(lane.read_upcoming(slot, &mut |bytes| assert_eq!(bytes, b"reply")));
    assert_eq!((lane.upcoming(), lane.outstanding().count(), lane.free.len()), (None, 0, 2));
}

#[test]
fn what_is_upcoming_and_no_reply_is_left_to_the_poll() {
    let (_file, mut lane, _worker, slot) = answered_so(Status::FunctionError);
    assert_eq!(lane.upcoming(), Some((slot, CALL.call)));
    assert!(!lane.read_upcoming(slot, &mut |_| panic!("no reply")));
    assert_eq!(lane.poll().unwrap().unwrap().status, Status::FunctionError);
}

#[test]
fn an_upcoming_reply_to_nobody_is_left_to_the_poll() {
    let (_file, mut lane, _worker, slot) = answered_so(Status::Ok);
    lane.abandon(slot);
    assert_eq!(lane.upcoming(), None);
    assert_eq!(lane.poll().unwrap().unwrap().call, None);
}

#[test]
fn an_upcoming_reply_whose_memory_is_taken_back_while_it_is_read_is_not_believed() {
    let (file, mut lane, _worker, slot) = answered_so(Status::Ok);
    let take_back = &mut |_: &[u8]| Segment::take_back(&file, GEOMETRY).unwrap();
    assert!(!lane.read_upcoming(slot, take_back));
    assert_eq!(lane.outstanding().count(), 1, "it waits for its verdict");
    assert_eq!(lane.input(slot), b"input", "to be sent elsewhere");
}

#[test]
fn a_large_call_s_blocks_go_back_to_the_arenas() {
    let geometry = Geometry { arena_bytes: 64 << 10, ..GEOMETRY };
    let file = Segment::create(geometry).unwrap();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let segment = Segment::open(file.as_fd(), geometry).unwrap();
    let mut lane = Lane::new(ShmLink::new(segment, ours.into(), Side::Client).into(), 1);
    for (input, reply) in [(5000, 5), (5, 5000), (60_000, 60_000), (5, 5)].repeat(3) {
        let slot = lane.prepare(input, reply).unwrap();
        assert_eq!(lane.input(slot).len(), input as usize);
        lane.free(slot);
        let own = geometry.slot(slot);
        let call = &lane.slots[usize::from(slot)].expected;
        assert_eq!((call.input().offset, call.block().offset), (own.offset, own.offset));
    }
    let whole = Block { offset: geometry.arena_offset(), capacity: lane.requests.largest() };
    assert_eq!(lane.requests.take(whole.capacity), Some(whole), "all of it is free again");
}

#[test]
fn an_input_that_panics_makes_no_call() {
    let file = Segment::create(GEOMETRY).unwrap();
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let segment = Segment::open(file.as_fd(), GEOMETRY).unwrap();
    let mut lane = Lane::new(ShmLink::new(segment, ours.into(), Side::Client).into(), 1);
    let slot = lane.prepare(5, 64).unwrap();
    let mut fill: Fill<'_> = &mut |_| panic!("no input");
    let send = || lane.send(slot, &CALL, &mut fill);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(send)).unwrap_err();
    assert_eq!(lane.outstanding().count(), 0, "an eviction would send it elsewhere");
}

#[test]
fn a_reply_is_read_once() {
    let (_file, mut lane, _worker, Answer { slot, .. }) = answered();
    assert!(lane.read(slot, &mut |bytes| assert_eq!(bytes, b"reply")));
    assert_eq!(lane.outstanding().count(), 0);
}

#[test]
fn a_reply_that_was_taken_back_is_not_believed_and_its_input_is_still_there() {
    let (file, mut lane, _worker, Answer { slot, .. }) = answered();
    Segment::take_back(&file, GEOMETRY).unwrap();
    assert!(!lane.read(slot, &mut |_| ()));
    assert_eq!(lane.outstanding().count(), 1, "it waits for its verdict");
    assert_eq!(lane.input(slot), b"input", "to be sent elsewhere");
}
