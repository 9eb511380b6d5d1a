//! Calls that a worker serves, and those that it refuses to start.

use std::{
    io::Write,
    time::{Duration, Instant},
};

use gleaner_executor::{
    board::{Phase, Place},
    worker::ipc::{FromWorker, ToWorker},
};
use gleaner_fabric::Geometry;
use gleaner_proto::header::Status;

use crate::rig::{EPOCH, GEOMETRY, HOT, PATIENCE, Rig, WARM};

#[test]
fn payloads_of_any_size_come_back_hot_and_warm() {
    let mut rig = Rig::start(1);
    let [echo] = rig.functions(["echo"]);
    for (session, hot_ns, largest) in [(0, WARM, 1 << 20), (1, HOT, 64 << 20)] {
        let mut client = rig.add_link(session, 0, hot_ns);
        for size in [0, 1, 63, 64, 65, 3968, 3969, 100_000, largest] {
            let data: Vec<u8> = (0..size).map(|at| (at ^ (at >> 8)) as u8).collect();
            let reply = client.call_with(echo, &data, size);
            assert_eq!(reply.header.status, Status::Ok);
            assert!(reply.data == data, "{size} bytes came back changed");
            // Or it would need its header over RDMA.
            assert_eq!(reply.header.reply_capacity, size as u32);
        }
    }
}

#[test]
fn a_window_of_calls_is_answered_in_order() {
    let mut rig = Rig::start(1);
    let [sum] = rig.functions(["sum"]);
    let mut client = rig.add_link(0, 0, WARM);
    for round in 0..100u64 {
        let slots: Vec<u16> = (0..u64::from(GEOMETRY.window))
            .map(|n| client.send(sum, &[round.to_le_bytes(), n.to_le_bytes()].concat(), 8))
            .collect();
        for (n, slot) in slots.into_iter().enumerate() {
            let reply = client.receive().unwrap();
            assert_eq!((reply.header.slot, reply.number()), (slot, round + n as u64));
        }
    }
}

#[test]
fn each_lane_keeps_its_own_state_and_its_counters() {
    let mut rig = Rig::start(2);
    let [counter, about] = rig.functions(["counter", "about"]);
    for lane in 0..2 {
        let mut client = rig.add_link(0, lane, WARM);
        for call in 1..=5 + u64::from(lane) {
            assert_eq!(client.call(counter, b"").number(), call);
        }
        let reply = client.call(about, b"");
        let (numbers, _) = reply.data.as_chunks::<4>();
        assert_eq!([numbers[0], numbers[1]], [u32::from(lane).to_le_bytes(), 2u32.to_le_bytes()]);
    }
    let other = rig.add_link(1, 0, WARM).call(counter, b"").number();
    assert_eq!(other, 6, "a thread's state is the lease's, whatever the session");
    // Calls are counted right after their reply.
    gleaner_testkit::wait_until("all are counted", PATIENCE, || {
        [rig.board.usage(0).calls, rig.board.usage(1).calls] == [7, 7]
    });
}

#[test]
fn the_meter_counts_time_inside_functions_and_not_in_sleep() {
    let mut rig = Rig::start(1);
    let [spin] = rig.functions(["spin"]);
    let mut client = rig.add_link(0, 0, WARM);
    let wanted = Duration::from_millis(20).as_nanos() as u64;
    let reply = client.call(spin, &wanted.to_le_bytes());
    gleaner_testkit::wait_until("it is counted", PATIENCE, || rig.board.usage(0).calls == 1);
    let (inside, claimed) = (reply.number(), rig.board.usage(0).executing_ns);
    // The two clocks agree to a few percent; the difference is between them, not of speed.
    assert!(claimed >= wanted * 9 / 10, "{claimed} of {inside}");
    assert!(reply.header.time_ns.abs_diff(claimed) < 1000, "{reply:?}");
}

#[test]
fn a_stale_epoch_never_runs() {
    let mut rig = Rig::start(1);
    let [counter] = rig.functions(["counter"]);
    let mut client = rig.add_link(0, 0, WARM);
    client.change = |header| header.epoch = EPOCH - 1;
    assert_eq!(client.call(counter, b"").header.status, Status::Stale);
    client.change = |_| {};
    assert_eq!(client.call(counter, b"").number(), 1, "the stale one did not run");
    rig.board.fence();
    assert_eq!(client.call(counter, b"").header.status, Status::Stale);
    // What a fenced board holds is no epoch.
    client.change = |header| header.epoch = 0;
    assert_eq!(client.call(counter, b"").header.status, Status::Stale);
    for slot in [2, 3] {
        let place = Place { session: 0, lane: 0, slot };
        assert_eq!(rig.slot(place).phase, Phase::Idle, "its slot was not started");
    }
}

#[test]
fn a_cancelled_call_is_not_started_and_a_running_one_can_see_it() {
    let mut rig = Rig::start(1);
    let [counter, spin] = rig.functions(["counter", "spin"]);
    let mut client = rig.add_link(0, 0, WARM);
    let place = |slot| Place { session: 0, lane: 0, slot };
    rig.board.slot(place(0)).unwrap().cancel(1);
    assert_eq!(client.call(counter, b"").header.status, Status::Cancelled);
    client.send(spin, &(PATIENCE.as_nanos() as u64).to_le_bytes(), 8);
    let until = Instant::now() + PATIENCE;
    while rig.slot(place(1)).phase != Phase::Started {
        assert!(Instant::now() < until, "the call never started");
        std::thread::yield_now();
    }
    rig.board.slot(place(1)).unwrap().cancel(2);
    let reply = client.receive().unwrap();
    assert_eq!((reply.header.status, reply.header.code), (Status::FunctionError, 125));
    assert_eq!(rig.slot(place(1)).phase, Phase::Finished);
    assert_eq!(client.call(counter, b"").number(), 1, "neither cancelled call counts here");
}

#[test]
fn what_a_function_cannot_do_is_said() {
    let mut rig = Rig::start(1);
    let [fail, produce, panic, no_state] = rig.functions(["fail", "produce", "panic", "no_state"]);
    let mut client = rig.add_link(0, 0, WARM);
    let reply = client.call(fail, &7u32.to_le_bytes());
    assert_eq!((reply.header.status, reply.header.code), (Status::FunctionError, 7));
    assert_eq!(reply.text(), "failed with code 7, as asked");
    let reply = client.call_with(produce, &1000u64.to_le_bytes(), 100);
    assert_eq!(reply.header.status, Status::ReplyTooLarge);
    assert_eq!(reply.header.reply_capacity, 1000, "it says what it needs");
    let reply = client.call(panic, b"abc");
    assert_eq!((reply.header.status, reply.header.code as i32), (Status::FunctionError, -1));
    assert_eq!(reply.text(), "the function panicked: as asked, with 3 bytes");
    for _ in 0..2 {
        let reply = client.call(no_state, b"");
        assert_eq!((reply.header.status, reply.header.code), (Status::FunctionError, 5));
        assert_eq!(reply.text(), "no state today");
    }
    assert_eq!(client.call(9999, b"").header.status, Status::UnknownFunction);
    assert_eq!(client.call(u32::MAX, b"").header.status, Status::UnknownFunction);
    assert_eq!(client.call_with(fail, &7u32.to_le_bytes(), 6).text(), "failed");
}

#[test]
fn a_hostile_client_loses_its_link_and_nobody_else_does() {
    let mut rig = Rig::start(1);
    let [echo] = rig.functions(["echo"]);
    let mut good = rig.add_link(0, 0, WARM);
    assert_eq!(good.call(echo, b"before").text(), "before");
    let mut hostile = rig.add_socket(1, 0, WARM);
    hostile.write_all(&[0xFF; 64]).unwrap();
    let FromWorker::LinkClosed { session: 1, lane: 0, message } = rig.answer() else { panic!() };
    assert!(message.contains("bad header"), "{message}");
    assert_eq!(good.call(echo, b"after").text(), "after");
}

#[test]
fn a_link_of_more_slots_than_the_board_has_is_closed() {
    let mut rig = Rig::start(1);
    let [echo] = rig.functions(["echo"]);
    let mut good = rig.add_link(0, 0, WARM);
    let wide = Geometry { window: GEOMETRY.window + 1, ..GEOMETRY };
    let _client = rig.add_socket_of(wide, 1, 0, WARM);
    let FromWorker::LinkClosed { session: 1, lane: 0, message } = rig.answer() else { panic!() };
    assert_eq!(message, "the board has no room for its session, lane or window");
    assert_eq!(good.call(echo, b"still here").text(), "still here");
}

#[test]
fn a_client_that_goes_away_mid_call_frees_its_lane() {
    let mut rig = Rig::start(1);
    let [sleep, echo] = rig.functions(["sleep", "echo"]);
    let mut good = rig.add_link(0, 0, WARM);
    let mut gone = rig.add_link(1, 0, WARM);
    gone.send(sleep, &50u64.to_le_bytes(), 0);
    drop(gone);
    let FromWorker::LinkClosed { session: 1, lane: 0, .. } = rig.answer() else { panic!() };
    assert_eq!(good.call(echo, b"still here").text(), "still here");
}

#[test]
fn a_dropped_session_closes_its_links_on_every_lane() {
    let mut rig = Rig::start(2);
    let [echo] = rig.functions(["echo"]);
    let mut dropped = [rig.add_link(0, 0, WARM), rig.add_link(0, 1, WARM)];
    let mut kept = rig.add_link(1, 0, HOT);
    rig.tell(&ToWorker::DropSession { session: 0 }, None);
    let mut lanes = [rig.answer(), rig.answer()].map(|record| match record {
        FromWorker::LinkClosed { session: 0, lane, .. } => lane,
        other => panic!("{other:?}"),
    });
    lanes.sort_unstable();
    assert_eq!(lanes, [0, 1]);
    assert!(dropped.iter_mut().all(|client| client.receive().is_err()));
    assert_eq!(kept.call(echo, b"kept").text(), "kept");
}

#[test]
fn links_that_the_board_has_no_room_for_are_refused() {
    let rig = Rig::start(1);
    for (session, lane) in [(4, 0), (0, 1)] {
        let _socket = rig.add_socket(session, lane, WARM);
        let FromWorker::LinkClosed { session: s, lane: l, .. } = rig.answer() else { panic!() };
        assert_eq!((s, l), (session, lane));
    }
}
