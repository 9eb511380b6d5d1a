//! A lane that sleeps: what wakes it, and whom it misses.

use std::net::Shutdown;

use gleaner_executor::worker::ipc::{FromWorker, ToWorker};

use crate::rig::{Rig, WARM};

#[test]
fn a_sleeping_lane_serves_whoever_calls() {
    let mut rig = Rig::start(1);
    let [echo] = rig.functions(["echo"]);
    let (mut first, _) = rig.add_shared(0, 0, WARM);
    for round in 0..500u32 {
        assert_eq!(first.call(echo, &round.to_le_bytes()).data, round.to_le_bytes());
    }
    // A second link comes while the lane sleeps, and goes again.
    let (mut second, _) = rig.add_shared(1, 0, WARM);
    for round in 0..500u32 {
        for client in [&mut first, &mut second] {
            assert_eq!(client.call(echo, &round.to_le_bytes()).data, round.to_le_bytes());
        }
    }
    rig.tell(&ToWorker::DropSession { session: 1 }, None);
    assert!(matches!(rig.answer(), FromWorker::LinkClosed { session: 1, .. }));
    // A socket has no word: all sleep in poll(2) from here on.
    let mut third = rig.add_link(2, 0, WARM);
    for round in 0..500u32 {
        for client in [&mut first, &mut third] {
            assert_eq!(client.call(echo, &round.to_le_bytes()).data, round.to_le_bytes());
        }
    }
}

#[test]
fn a_client_that_dies_while_its_lane_sleeps_by_words_is_missed() {
    let mut rig = Rig::start(1);
    let [echo] = rig.functions(["echo"]);
    let (mut client, socket) = rig.add_shared(0, 0, WARM);
    assert_eq!(client.call(echo, b"x").text(), "x");
    // As a killed process does: its socket ends, and nobody rings.
    socket.shutdown(Shutdown::Both).unwrap();
    assert!(matches!(rig.answer(), FromWorker::LinkClosed { session: 0, .. }));
}
