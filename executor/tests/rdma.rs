//! The whole service over RDMA: what needs a device runs in a virtual machine, started by the one test here that does not.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

mod service;

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use gleaner::{AcquireError, CallError, Pool, PoolEventKind, Transport, Transports, Waiting};
use gleaner_config::Config;
use gleaner_fabric::{
    Block, Geometry, Link, Side,
    rdma::{Adapter, OBJECTS_PER_LINK, RdmaLink, Settings},
};
use gleaner_lease::state::EndReason;
use gleaner_proto::{
    endpoint::{Address, Endpoint},
    header::{Header, Kind, Status},
    v1::{self, from_agent, hello::Purpose},
};
use gleaner_testkit::{
    guest::{Guest, Network, unsupported},
    wait_until,
};
use service::{
    PATIENCE, Service,
    fair::{assert_turns, served_beside_a_flood},
    functions, key,
    raw::Raw,
    request,
    verbs::{all_held, held, link_word, pinned, rdma_on},
};

const RDMA: Transports = Transports::Only(Transport::Rdma);

#[test]
fn guest_passes_what_needs_a_device() {
    if let Some(why) = unsupported() {
        eprintln!("ignored: {why}");
        return;
    }
    let mut own = Command::new(std::env::current_exe().unwrap());
    own.args(["--ignored", "--test-threads=1"]);
    let guest = Guest::new(Network::Loopback).bound(Duration::from_secs(560));
    let output = guest.run(&own).unwrap().expect_success();
    println!("{output}");
    assert!(!output.contains("running 0 tests"), "{output}");
}

#[test]
fn forced_and_turned_off_is_an_error_that_says_so() {
    let service = Service::start(&["n1"]);
    let refused = service.client().acquire(request().transport(RDMA)).err().unwrap();
    assert!(matches!(refused, AcquireError::Attach { .. }), "{refused}");
    assert!(refused.to_string().contains("executor.rdma"), "{refused}");
}

fn acquire(service: &Service) -> Pool {
    let pool = service.client().acquire(request().transport(RDMA)).unwrap();
    assert_eq!(pool.leases()[0].transport, Transport::Rdma);
    pool
}

#[test]
#[ignore = "needs an RDMA device"]
fn calls_go_by_rdma_and_leave_nothing() {
    let service = Service::with(&["n1"], rdma_on);
    let before = all_held();
    for waiting in [Waiting::Hot, Waiting::Warm] {
        let wanted = request().transport(RDMA).waiting(waiting).payload_max(4 << 20);
        let pool = service.client().acquire(wanted).unwrap();
        assert_eq!(pool.leases()[0].transport, Transport::Rdma);
        assert_eq!(held("qp"), before[0] + 2, "one at each end");
        let echo = pool.function(&functions(), "echo").unwrap();
        for len in [0usize, 1, 128, 4000, 1 << 20, 4 << 20] {
            let input = vec![len as u8 ^ 0x5a; len];
            let reply = echo.clone().reply_capacity(len as u32).invoke(&input).unwrap();
            assert!(reply == input, "{len} bytes come back as they went");
        }
        let results = echo.map((0..100u8).map(|n| [n; 9]));
        assert!((0..100u8).zip(results).all(|(n, reply)| reply.unwrap() == [n; 9]));
        pool.release().unwrap();
        wait_until("nothing is left", PATIENCE, || all_held() == before);
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_vacate_answers_who_waits_and_leaves_nothing() {
    let service = Service::with(&["n1"], rdma_on);
    let before = all_held();
    let pool = acquire(&service);
    let spin = pool.function(&functions(), "spin").unwrap();
    let long = spin.submit(&60_000_000_000u64.to_le_bytes()).unwrap();
    service.wait_started("n1");
    let lease = pool.leases()[0].lease_id;
    let started = Instant::now();
    service.harvester.vacate("n1", EndReason::BatchJob);
    let ended = long.wait().unwrap_err();
    // A queue pair that nobody answers gives up after half a second at least: the control stream was quicker.
    println!("evicted after {:?}", started.elapsed());
    assert!(matches!(ended, CallError::Evicted { .. }), "{ended}");
    service.wait_for_end(lease);
    let [queue_pairs, regions, ..] = all_held();
    assert!(queue_pairs <= before[0] + 1 && regions <= before[1] + 2, "the client's alone");
    drop(pool);
    wait_until("nothing is left", PATIENCE, || all_held() == before);
}

/// A client of its own making, which keeps its queue pair and the key to its lane's region when its lease is over.
#[test]
#[ignore = "needs an RDMA device"]
fn a_stale_key_writes_nothing_after_a_vacate() {
    let service = Service::with(&["n1"], rdma_on);
    let before = all_held();
    let owner = key(1);
    let lease = service.lease(&owner, PATIENCE);
    let (_control, answer) = Raw::attach(&lease.address, &lease.token, &owner);
    let Some(from_agent::Message::Attached(attached)) = answer else { panic!("{answer:?}") };
    let mut stale = lane(&lease.address, &attached, &owner);
    service.harvester.vacate("n1", EndReason::BatchJob);
    service.wait_for_end(lease.lease_id);
    assert_eq!(held("qp"), before[0] + 1, "the client's alone");

    // The next lease's worker: the same size, from the same pool of waiting ones, on the same device.
    service.harvester.book().held.clear();
    wait_until("the node is granted", PATIENCE, || service.harvester.granted() == 1);
    let pool = acquire(&service);
    let echo = pool.function(&functions(), "echo").unwrap();
    assert_eq!(echo.invoke(b"before").unwrap(), b"before");
    let slot = stale.geometry().slot(0);
    stale.outgoing(slot).fill(0xee);
    let header = Header { payload_len: slot.capacity, ..request_in(slot) };
    stale.post(slot, &header).unwrap();
    let refused = stale.probe(PATIENCE).unwrap_err();
    assert!(refused.to_string().contains("the peer does not answer"), "{refused}");
    for call in 0..100u32 {
        assert_eq!(echo.invoke(&call.to_le_bytes()).unwrap(), call.to_le_bytes());
    }
    assert!(pool.events().iter().all(|event| matches!(event.kind, PoolEventKind::Leased { .. })));
}

/// Connects a session's only lane by hand.
fn lane(address: &str, session: &v1::Attached, key: &SigningKey) -> RdmaLink {
    let geometry = Geometry {
        window: session.window as u16,
        slot_bytes: session.slot_bytes as u32,
        arena_bytes: session.arena_bytes,
    };
    let adapter = Adapter::open(&Settings::default()).unwrap();
    let theirs = Address::decode(&session.rdma_addresses[0]).unwrap();
    let ours = adapter.prepare(adapter.gid_for(&[theirs]).unwrap(), geometry).unwrap();
    let wanted = v1::DataLane {
        session_id: session.session_id,
        lane: 0,
        transport: v1::Transport::Verbs.into(),
        endpoint: ours.endpoint().encode().to_vec().into(),
    };
    let mut raw = Raw::dial(address);
    let answer = raw.greet(Purpose::DataLane(wanted), key);
    let Some(from_agent::Message::DataReady(ready)) = answer else { panic!("{answer:?}") };
    let peer = Endpoint::decode(&ready.endpoint).unwrap();
    let mut link = ours.connect(&peer, Side::Client, raw.stream.into()).unwrap();
    link.probe(PATIENCE).unwrap();
    link
}

fn request_in(slot: Block) -> Header {
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
        block: slot.index(),
        reply_block: slot.index(),
        reply_capacity: 0,
        time_ns: 0,
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_worker_s_objects_are_gone_when_it_is() {
    let service = Service::with(&["n1"], rdma_on);
    let before = all_held();
    let pool = acquire(&service);
    let spin = pool.function(&functions(), "spin").unwrap();
    let long = spin.submit(&60_000_000_000u64.to_le_bytes()).unwrap();
    service.wait_started("n1");
    let worker = service.leased_workers(0)[0];
    assert!(pinned(worker.pid) > 0, "its regions are pinned");
    let pid = nix::unistd::Pid::from_raw(worker.pid as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    wait_until("the worker is gone", PATIENCE, || service.leased_workers(0).is_empty());
    assert_eq!(held("qp"), before[0] + 1, "the client's alone");
    let ended = long.wait().unwrap_err();
    assert!(matches!(ended, CallError::Unknown { .. } | CallError::Failed(_)), "{ended:?}");
    drop(pool);
    wait_until("nothing is left", PATIENCE, || all_held() == before);
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_port_that_goes_down_ends_its_sessions_and_serves_again_later() {
    let service = Service::with(&["n1"], rdma_on);
    let pool = acquire(&service);
    let echo = pool.function(&functions(), "echo").unwrap();
    assert_eq!(echo.invoke(b"before").unwrap(), b"before");
    let interface = link_word("netdev");
    let link = |state| {
        let set = Command::new("ip").args(["link", "set", &interface, state]).status().unwrap();
        assert!(set.success());
    };
    link("down");
    let meanwhile = echo.submit(b"meanwhile");
    let started = Instant::now();
    let told = || {
        let _ = pool.process();
        let events = pool.events();
        let evicted = |kind: &PoolEventKind| match kind {
            PoolEventKind::Evicted { detail, .. } => Some(detail.clone()),
            _ => None,
        };
        events.iter().find_map(|event| evicted(&event.kind))
    };
    let mut why = None;
    wait_until("the session is evicted", PATIENCE, || {
        why = why.take().or_else(told);
        why.is_some()
    });
    println!("evicted after {:?}: {}", started.elapsed(), why.unwrap());
    link("up");
    // It had not arrived: it is free to run in the next session.
    assert_eq!(meanwhile.unwrap().wait().unwrap(), b"meanwhile");
    assert_eq!(echo.invoke(b"after").unwrap(), b"after");
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_worker_s_share_of_the_device_is_bounded() {
    let service = Service::with(&["n1"], rdma_on);
    let _pool = acquire(&service);
    let worker = service.leased_workers(0)[0];
    let group = fs::read_to_string(format!("/proc/{}/cgroup", worker.pid)).unwrap();
    let group = Path::new("/sys/fs/cgroup").join(group.trim().trim_start_matches("0::/"));
    let limit = fs::read_to_string(group.join("rdma.max")).unwrap();
    let objects = OBJECTS_PER_LINK * Config::default().executor.sessions_per_lease + 64;
    assert!(limit.contains(&format!("hca_handle=1 hca_object={objects}")), "{limit}");
    let used = fs::read_to_string(group.join("rdma.current")).unwrap();
    assert!(used.contains(&format!("hca_handle=1 hca_object={OBJECTS_PER_LINK}")), "{used}");
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_flood_delays_the_others_by_one_call_a_turn() {
    let service = Service::with(&["n1"], rdma_on);
    assert_turns(&served_beside_a_flood(&service, |request| request.transport(RDMA), 2));
}

#[test]
#[ignore = "needs an RDMA device"]
fn many_calls_leave_what_few_leave() {
    // An emulated CPU makes some 700 a second; where there is a faster one, a million is a minute.
    let calls = std::env::var("MANY_CALLS").map_or(20_000, |count| count.parse().unwrap());
    let service = Service::with(&["n1"], rdma_on);
    let pool = acquire(&service);
    let echo = pool.function(&functions(), "echo").unwrap();
    let worker = service.leased_workers(0)[0].pid;
    let own = std::process::id();
    let holds = || (all_held(), pinned(worker), pinned(own));
    let call = |calls: u32| {
        let started = Instant::now();
        let mut under_way = echo.completions_of(16);
        let mut pushed = 0;
        let mut ended = 0;
        while ended < calls {
            while pushed < calls && !under_way.is_full() {
                under_way.push(&pushed.to_le_bytes(), pushed).unwrap();
                pushed += 1;
            }
            let (tag, reply) = under_way.next_with(<[u8]>::to_vec).unwrap();
            assert_eq!(reply.unwrap(), tag.to_le_bytes());
            ended += 1;
        }
        println!("{calls} calls in {:?}", started.elapsed());
    };
    call(1000);
    let few = holds();
    call(calls);
    assert_eq!(holds(), few);
}
