//! Real verbs: these need a device, as the RDMA run's virtual machine has one, and are ignored elsewhere.
#![allow(clippy::unwrap_used)]

mod apart;
mod link;
pub(super) mod puppet;
mod rights;

use std::time::{Duration, Instant};

use gleaner_proto::endpoint::Endpoint;

use super::*;
use crate::region::Region;

const PATIENCE: Duration = Duration::from_secs(20);

/// One end of a bare connection.
struct End {
    pair: QueuePair<ReadyToSend>,
    sends: CompletionQueue,
    receives: CompletionQueue,
    chain: Receives,
    outgoing: Registered,
    incoming: Registered,
    target: Target,
}

/// Two connected ends, through one device.
fn connected(bytes: usize) -> (End, End) {
    let (device, port) = Device::open_active().unwrap();
    let gid = port.gids[0];
    let make = || {
        let domain = ProtectionDomain::new(&device).unwrap();
        let sends = CompletionQueue::new(&device, 64, false).unwrap();
        let receives = CompletionQueue::new(&device, 64, true).unwrap();
        let depth = Depth { sends: 32, receives: 32, inline: 256 };
        let pair = QueuePair::new(&domain, &sends, &receives, depth).unwrap();
        let register =
            |access| Registered::new(&domain, Region::anonymous(bytes).unwrap(), access).unwrap();
        (pair, sends, receives, register(Access::Own), register(Access::PeerWrites))
    };
    let (a, b) = (make(), make());
    let endpoint = |pair: &QueuePair<Reset>, incoming: &Registered| Endpoint {
        address: gid.address,
        mtu: port.mtu,
        queue_pair: pair.number(),
        first_packet: 7,
        region: incoming.address(),
        region_bytes: incoming.len() as u64,
        key: incoming.remote_key(),
    };
    let (at_a, at_b) = (endpoint(&a.0, &a.4), endpoint(&b.0, &b.4));
    let finish = |(pair, sends, receives, outgoing, incoming): (QueuePair<Reset>, _, _, _, _),
                  peer: &Endpoint| {
        let mut pair = pair.init(&port).unwrap();
        let mut chain = Receives::new(8);
        chain.post(&mut pair).unwrap();
        let pair = pair.ready_to_receive(&port, gid, peer, Timers::default()).unwrap();
        let pair = pair.ready_to_send(7, Timers::default()).unwrap();
        End { pair, sends, receives, chain, outgoing, incoming, target: peer.into() }
    };
    (finish(a, &at_b), finish(b, &at_a))
}

fn next(queue: &mut CompletionQueue) -> Completion {
    let until = Instant::now() + PATIENCE;
    let mut one = [Completion::default()];
    while queue.poll(&mut one).unwrap() == 0 {
        assert!(Instant::now() < until, "no completion");
    }
    one[0]
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_write_with_immediate_arrives_whole() {
    let (mut a, mut b) = connected(1 << 20);
    for (round, len) in [(1u32, 64usize), (2, 4000), (3, 1 << 20)] {
        a.outgoing.bytes_mut()[..len].fill(round as u8);
        let write = Write { bytes: 0..len, offset: 0, immediate: Some(round), signal: Some(9) };
        a.pair.write(&a.outgoing, a.target, &write).unwrap();
        let seen = next(&mut b.receives);
        seen.result().unwrap();
        assert_eq!(seen.immediate(), Some(round));
        assert!(b.incoming.bytes()[..len].iter().all(|byte| *byte == round as u8));
        let sent = next(&mut a.sends);
        sent.result().unwrap();
        assert_eq!(sent.id(), 9);
    }
    b.chain.post(&mut b.pair).unwrap();
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_wrong_key_is_refused_and_ends_both() {
    let (mut a, mut b) = connected(4096);
    let target = Target { key: a.target.key ^ 0xff00, ..a.target };
    let write = Write { bytes: 0..64, offset: 0, immediate: Some(1), signal: Some(1) };
    a.outgoing.bytes_mut()[..64].fill(0xee);
    a.pair.write(&a.outgoing, target, &write).unwrap();
    assert_eq!(next(&mut a.sends).result(), Err(WorkStatus::REMOTE_ACCESS));
    assert!(next(&mut b.receives).result().is_err());
    assert!(b.incoming.bytes().iter().all(|byte| *byte == 0));
}

#[test]
#[ignore = "needs an RDMA device"]
fn what_it_is_asked_for_and_has_not_is_an_error_with_a_remedy() {
    let missing = Device::open("none").unwrap_err();
    assert!(matches!(missing, RdmaError::NoSuchDevice { .. }), "{missing}");
}

#[test]
fn without_a_device_one_is_told() {
    if devices().is_ok_and(|found| !found.is_empty()) {
        // A machine with one: the tests above look at it.
        return;
    }
    let missing = Device::open_active().unwrap_err();
    assert!(missing.to_string().starts_with("no RDMA device: "), "{missing}");
}
