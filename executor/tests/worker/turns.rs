//! Whose turn it is: what a link that floods does to the others of its lane. Counted by the function itself, never timed.

use std::io::Write;

use gleaner_executor::{
    board::{Phase, Place},
    worker::ipc::{FromWorker, ToWorker},
};
use gleaner_proto::header::{Header, Kind, Status};

use crate::rig::{EPOCH, GEOMETRY, PATIENCE, Rig, WARM};

/// Far more than any window, or than the worker answers to somebody who does not read.
const FLOOD: u64 = 1000;

/// A call as bytes of a stream, in slot 0 whoever else is there.
fn call(invocation: u64, function: u32, input: &[u8]) -> Vec<u8> {
    let (slot, block) = (GEOMETRY.slot(0), GEOMETRY.slot(0).index());
    let header = Header {
        generation: invocation as u32,
        slot: 0,
        kind: Kind::Request,
        status: Status::Ok,
        epoch: EPOCH,
        invocation,
        function,
        code: 0,
        payload_len: input.len() as u32,
        block,
        reply_block: block,
        reply_capacity: slot.capacity,
        time_ns: 0,
    };
    [&header.encode()[..], input].concat()
}

#[test]
fn a_flood_beyond_every_window_delays_another_link_by_one_call_a_turn() {
    let mut rig = Rig::start(1);
    let [spin, counter] = rig.functions(["spin", "counter"]);
    let mut flood = rig.add_socket(0, 0, WARM);
    let mut other = rig.add_link(1, 0, WARM);
    let long = (PATIENCE.as_nanos() as u64).to_le_bytes();
    flood.write_all(&call(1, spin, &long)).unwrap();
    let busy = Place { session: 0, lane: 0, slot: 0 };
    gleaner_testkit::wait_until("the lane is busy", PATIENCE, || {
        rig.slot(busy).phase == Phase::Started
    });
    (2..FLOOD).for_each(|number| flood.write_all(&call(number, counter, b"")).unwrap());
    let calls = GEOMETRY.window;
    for _ in 0..calls {
        other.send(counter, b"", 64);
    }
    rig.board.slot(busy).unwrap().cancel(1);
    let mut before = 0;
    for _ in 0..calls {
        let at = other.receive().unwrap().number();
        assert!(at - before <= 2, "call {at} of the lane comes after {before}");
        before = at;
    }
}

#[test]
fn calls_of_a_lone_link_do_not_keep_its_lane_from_its_mail() {
    let mut rig = Rig::start(1);
    let [spin, counter] = rig.functions(["spin", "counter"]);
    let (mut flood, _socket) = rig.add_shared(0, 0, WARM);
    let long = PATIENCE.as_nanos() as u64;
    let slot = flood.send(spin, &long.to_le_bytes(), 8);
    let busy = Place { session: 0, lane: 0, slot };
    gleaner_testkit::wait_until("the lane is busy", PATIENCE, || {
        rig.slot(busy).phase == Phase::Started
    });
    let waiting: Vec<u16> = (1..GEOMETRY.window).map(|_| flood.send(counter, b"", 64)).collect();
    rig.tell(&ToWorker::DropSession { session: 0 }, None);
    // Opened by the same thread that passes the mail on, after it has done so.
    rig.functions(["echo"]);
    rig.board.slot(busy).unwrap().cancel(1);
    assert!(matches!(rig.answer(), FromWorker::LinkClosed { session: 0, lane: 0, .. }));
    for slot in waiting {
        assert_eq!(rig.slot(Place { session: 0, lane: 0, slot }).phase, Phase::Idle);
    }
}
