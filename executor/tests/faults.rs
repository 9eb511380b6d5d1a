//! What goes wrong on a node, and what is left of it: nothing, and a clear word to everybody.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

mod service;

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use gleaner::{CallError, Failure};
use gleaner_lease::{
    state::EndReason,
    token::{TOKEN_LEN, verify_signature},
};
use gleaner_proto::v1::{self, from_agent, hello::Purpose, to_agent};
use gleaner_testkit::wait_until;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use service::{
    PATIENCE, Service, functions, key,
    raw::{Answer, Raw, refusal},
    request,
};

const MINUTE: Duration = Duration::from_secs(60);

fn attached(answer: &Answer) -> &v1::Attached {
    match answer {
        Some(from_agent::Message::Attached(attached)) => attached,
        _ => panic!("not attached: {}", refusal(answer)),
    }
}

#[test]
fn tokens_that_are_not_for_here_and_now_and_this_client_are_refused() {
    let service = Service::start(&["n1"]);
    let owner = key(1);
    let lease = service.lease(&owner, MINUTE);
    let attach = |token: &[u8], key: &SigningKey| Raw::attach(&lease.address, token, key).1;
    let malformed = refusal(&attach(&lease.token[..100], &owner));
    assert!(malformed.starts_with("TOKEN") && malformed.contains("no token"), "{malformed}");
    for byte in [5, 20, 60, TOKEN_LEN - 1] {
        let mut forged = lease.token.to_vec();
        forged[byte] ^= 1;
        let refused = refusal(&attach(&forged, &owner));
        assert!(refused.starts_with("TOKEN"), "byte {byte}: {refused}");
    }
    let stolen = refusal(&attach(&lease.token, &key(2)));
    assert!(stolen.starts_with("PROOF"), "{stolen}");
    let harvester = service.harvester.public_key();
    let claims = verify_signature(&lease.token, &harvester).unwrap();
    let resigned = |change: &dyn Fn(&mut gleaner_lease::token::Claims)| {
        let mut claims = claims;
        change(&mut claims);
        refusal(&attach(&service.harvester.book().sign(&claims), &owner))
    };
    let expired = resigned(&|claims| claims.expires = service::harvester::now());
    assert!(expired.contains("expired"), "{expired}");
    let stale = resigned(&|claims| claims.epoch.0 -= 1);
    assert!(stale.contains("epoch"), "{stale}");
    let elsewhere = resigned(&|claims| claims.node.0[0] ^= 1);
    assert!(elsewhere.contains("another node"), "{elsewhere}");
    let rebooted = resigned(&|claims| claims.boot.0[0] ^= 1);
    assert!(rebooted.contains("boot"), "{rebooted}");
    assert!(service.children(0, "worker").len() <= 1, "no worker was started for any of them");
    let (_stream, answer) = Raw::attach(&lease.address, &lease.token, &owner);
    attached(&answer);
}

#[test]
fn a_token_is_worth_nothing_once_its_lease_has_ended() {
    let service = Service::start(&["n1"]);
    let owner = key(1);
    let lease = service.lease(&owner, MINUTE);
    let (mut raw, answer) = Raw::attach(&lease.address, &lease.token, &owner);
    attached(&answer);
    raw.send(to_agent::Message::Detach(v1::Detach { release: true }));
    assert!(matches!(raw.read(), Some(from_agent::Message::Detached(_))));
    assert_eq!(service.wait_for_end(lease.lease_id).reason, EndReason::Released as i32);
    let replayed = refusal(&Raw::attach(&lease.address, &lease.token, &owner).1);
    assert!(replayed.starts_with("TOKEN") && replayed.contains("has ended"), "{replayed}");
}

#[test]
fn only_the_session_s_client_adds_lanes_and_each_once() {
    let service = Service::start(&["n1"]);
    let owner = key(1);
    let lease = service.lease(&owner, MINUTE);
    let (_raw, answer) = Raw::attach(&lease.address, &lease.token, &owner);
    let session_id = attached(&answer).session_id;
    let add = |lane, key: &_| {
        let mut raw = Raw::dial(&lease.address);
        let wanted = v1::DataLane { session_id, lane, ..Default::default() };
        let answer = raw.greet(Purpose::DataLane(wanted), key);
        (raw, answer)
    };
    assert!(refusal(&add(0, &key(2)).1).starts_with("PROOF"));
    assert!(refusal(&add(7, &owner).1).starts_with("SESSION"));
    // Where calls are to be written to is signed as well: nobody on the way puts another place there.
    let to = |endpoint: &'static [u8]| {
        let endpoint = endpoint.into();
        Purpose::DataLane(v1::DataLane { session_id, lane: 0, endpoint, ..Default::default() })
    };
    let changed = Raw::dial(&lease.address).greet_changed(to(b"here"), &to(b"there"), &owner);
    assert!(refusal(&changed).starts_with("PROOF"), "{}", refusal(&changed));
    let (_lane, answer) = add(0, &owner);
    assert!(matches!(answer, Some(from_agent::Message::DataReady(_))), "{answer:?}");
    assert!(refusal(&add(0, &owner).1).starts_with("SESSION"), "connected once");
    // The same client may attach again, from another process that holds its key.
    let (_again, answer) = Raw::attach(&lease.address, &lease.token, &owner);
    assert_ne!(attached(&answer).session_id, session_id);
}

#[test]
fn greetings_that_make_no_sense_cost_one_connection_and_nobody_else() {
    let service = Service::start(&["n1"]);
    let owner = key(1);
    let lease = service.lease(&owner, MINUTE);
    let mut silent: Vec<_> = (0..20).map(|_| Raw::dial(&lease.address)).collect();
    for garbage in
        [&[0xff; 64][..], &[0, 0, 0, 0], &[200, 0, 0, 0, 1, 2, 3], b"GET / HTTP/1.1\r\n\r\n"]
    {
        let mut raw = Raw::dial(&lease.address);
        raw.stream.write_all(garbage).unwrap();
    }
    let (mut raw, answer) = Raw::attach(&lease.address, &lease.token, &owner);
    attached(&answer);
    // A second greeting on a session, and a frame longer than any: the session is dropped.
    raw.send(to_agent::Message::Proof(v1::Proof::default()));
    assert!(raw.read().is_none());
    for raw in &mut silent {
        assert!(refusal(&raw.read()).contains("a greeting has to be done within 2s"));
        assert!(raw.read().is_none(), "a silent greeting ends by itself");
    }
}

/// A stopped keeper stands for a node that is slow to start a worker.
#[test]
fn a_slow_node_costs_no_greeting_and_one_that_never_answers_is_told_of() {
    let service = Service::start(&["n1"]);
    let owner = key(1);
    let lease = service.lease(&owner, MINUTE);
    service.executors[0].stop();
    let attach = || Raw::attach(&lease.address, &lease.token, &owner).1;
    let begun = Instant::now();
    thread::scope(|scope| {
        let waits = scope.spawn(attach);
        wait_until("a greeting's own time is over", PATIENCE, || {
            begun.elapsed().as_millis() > 2500
        });
        assert!(!waits.is_finished());
        service.executors[0].cont();
        attached(&waits.join().unwrap());
    });
    let lease = service.lease(&owner, MINUTE);
    service.executors[0].stop();
    let (_raw, answer) = Raw::attach(&lease.address, &lease.token, &owner);
    assert!(refusal(&answer).contains("could not serve the lease within 8s: try again"));
    service.executors[0].cont();
}

#[test]
fn what_a_function_does_to_its_worker_fails_its_own_call_alone() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request()).unwrap();
    let library = functions();
    let died = [
        ("crash", "SIGSEGV"),
        ("abort", "SIGABRT"),
        ("overflow_stack", ""),
        ("exit_it", ""),
        ("overrun", "past its output"),
        ("eat_memory", "memory"),
    ];
    for (name, said) in died {
        let function = pool.function(&library, name).unwrap().idempotent(true);
        let error = function.invoke(b"3").unwrap_err();
        let failed = matches!(
            error,
            CallError::Failed(Failure::WorkerDied { .. } | Failure::Function { .. })
        );
        assert!(failed, "{name}: {error}");
        assert!(error.to_string().contains(said), "{name}: {error}");
        let echo = pool.function(&library, "echo").unwrap();
        assert_eq!(echo.invoke(b"next").unwrap(), b"next", "after {name}");
    }
    for (name, kind) in [("fork_it", "fork"), ("connect_out", "connect"), ("panic", "as asked")] {
        let error = pool.function(&library, name).unwrap().invoke(b"").unwrap_err();
        assert!(error.to_string().contains(kind), "{name}: {error}");
    }
}

#[test]
fn the_others_of_a_dead_worker_run_again() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request().cores(2)).unwrap();
    let spin = pool.function(&functions(), "spin").unwrap().idempotent(true);
    let crash = pool.function(&functions(), "crash").unwrap().idempotent(true);
    let beside = spin.submit(&2_000_000_000u64.to_le_bytes()).unwrap();
    service.wait_started("n1");
    let crashed = crash.submit(b"").unwrap();
    let error = crashed.wait().unwrap_err();
    assert!(matches!(error, CallError::Failed(Failure::WorkerDied { .. })), "{error}");
    let reply = beside.wait_reply().unwrap();
    assert!(reply.stats.reruns >= 1, "{:?}", reply.stats);
}

#[test]
fn a_killed_worker_ends_its_lease_and_the_call_in_it() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request()).unwrap();
    let lease = pool.leases()[0].lease_id;
    let spin = pool.function(&functions(), "spin").unwrap().idempotent(true);
    let running = spin.submit(&30_000_000_000u64.to_le_bytes()).unwrap();
    service.wait_started("n1");
    let workers = service.children(0, "worker");
    workers.iter().for_each(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap());
    let error = running.wait().unwrap_err();
    assert!(matches!(error, CallError::Failed(Failure::WorkerDied { .. })), "{error}");
    assert_eq!(service.wait_for_end(lease).reason, EndReason::WorkerFailed as i32);
    assert_eq!(spin.invoke(&1u64.to_le_bytes()).unwrap().len(), 8);
}

#[test]
fn a_client_that_goes_away_mid_call_leaves_nothing_on_the_node() {
    let service = Service::start(&["n1"]);
    let owner = key(1);
    let lease = service.lease(&owner, MINUTE);
    let (raw, answer) = Raw::attach(&lease.address, &lease.token, &owner);
    attached(&answer);
    assert_eq!(service.workers_of_leases(0), 1);
    drop(raw);
    let ended = service.wait_for_end(lease.lease_id);
    assert_eq!(ended.reason, EndReason::Released as i32, "{ended:?}");
    assert_eq!(service.workers_of_leases(0), 0);
    wait_until("all cores are free again", PATIENCE, || {
        let book = service.harvester.book();
        let node = gleaner_proto::ids::NodeName::new("n1").unwrap();
        book.issuer.free(&node).is_some_and(|free| free.cores == 4)
    });
}

#[test]
fn a_killed_agent_takes_its_leases_along_and_the_pool_recovers() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request()).unwrap();
    let spin = pool.function(&functions(), "spin").unwrap();
    let running = spin.submit(&30_000_000_000u64.to_le_bytes()).unwrap();
    service.wait_started("n1");
    let worker = service.leased_workers(0)[0];
    for agent in service.children(0, "agent") {
        kill(Pid::from_raw(agent), Signal::SIGKILL).unwrap();
    }
    wait_until("its lease's worker is gone", PATIENCE, || {
        !service.leased_workers(0).contains(&worker)
    });
    let error = running.wait().unwrap_err();
    assert!(matches!(error, CallError::Unknown { .. }), "{error}");
    assert_eq!(spin.invoke(&1u64.to_le_bytes()).unwrap().len(), 8, "on a new lease");
}

/// A lease that ends soon, and its client's stream.
fn short_lease(service: &Service) -> (v1::Lease, Raw) {
    let owner = key(1);
    let lease = service.lease(&owner, Duration::from_millis(700));
    let (raw, answer) = Raw::attach(&lease.address, &lease.token, &owner);
    attached(&answer);
    (lease, raw)
}

#[test]
fn a_stopped_agent_serves_nothing_stale_when_it_goes_on() {
    let service = Service::start(&["n1"]);
    let (lease, mut raw) = short_lease(&service);
    let agent = Pid::from_raw(service.children(0, "agent")[0]);
    kill(agent, Signal::SIGSTOP).unwrap();
    // Asked while it is stopped, before and after the lease's end: it must not say yes to either.
    raw.send(to_agent::Message::Renew(v1::Renew { ttl_ms: 60_000 }));
    wait_until("the keeper has ended the lease", PATIENCE, || {
        service::harvester::now().0 > lease_end(&service, &lease)
            && service.workers_of_leases(0) == 0
    });
    kill(agent, Signal::SIGCONT).unwrap();
    match raw.read() {
        Some(from_agent::Message::Evicted(evicted)) => {
            assert_eq!(evicted.reason(), v1::EndReason::Expired, "{evicted:?}");
        }
        Some(from_agent::Message::Error(_)) | None => {}
        other => panic!("a stopped agent served {other:?}"),
    }
    assert_eq!(service.wait_for_end(lease.lease_id).reason, EndReason::Expired as i32);
}

/// Its keeper is stopped as well, and says nothing of the lease: the agent's own clock must do.
#[test]
fn an_agent_that_goes_on_without_its_keeper_serves_nothing_stale_either() {
    let service = Service::start(&["n1"]);
    let (lease, mut raw) = short_lease(&service);
    let agent = Pid::from_raw(service.children(0, "agent")[0]);
    service.executors[0].stop();
    kill(agent, Signal::SIGSTOP).unwrap();
    raw.send(to_agent::Message::Renew(v1::Renew { ttl_ms: 60_000 }));
    wait_until("the lease is over", PATIENCE, || {
        service::harvester::now().0 > lease_end(&service, &lease)
    });
    kill(agent, Signal::SIGCONT).unwrap();
    let answer = raw.read();
    assert!(refusal(&answer).contains("not live on this node"), "{answer:?}");
    service.executors[0].cont();
    assert_eq!(service.wait_for_end(lease.lease_id).reason, EndReason::Expired as i32);
}

fn lease_end(service: &Service, lease: &v1::Lease) -> u64 {
    verify_signature(&lease.token, &service.harvester.public_key()).unwrap().expires.0
}

#[test]
fn a_client_that_does_not_read_delays_nobody_and_loses_its_session() {
    let service = Service::start(&["n1"]);
    let owner = key(1);
    let lease = service.lease(&owner, MINUTE);
    let (mut deaf, answer) = Raw::attach(&lease.address, &lease.token, &owner);
    attached(&answer);
    let (mut other, answer) = Raw::attach(&lease.address, &lease.token, &owner);
    attached(&answer);
    deaf.stream.set_nonblocking(true).unwrap();
    let renew = || to_agent::Message::Renew(v1::Renew { ttl_ms: 60_000 });
    let frame = gleaner_proto::framing::encode(&v1::ToAgent { message: Some(renew()) });
    let burst = frame.repeat(1000);
    wait_until("the deaf client is cut off or stuck", PATIENCE, || {
        let cut = deaf
            .stream
            .write(&burst)
            .is_err_and(|error| error.kind() != std::io::ErrorKind::WouldBlock);
        other.send(renew());
        assert!(matches!(other.read(), Some(from_agent::Message::Renewed(_))), "served beside it");
        cut
    });
}

#[test]
fn a_silent_harvester_keeps_a_node_no_longer_than_its_grant() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request()).unwrap();
    let echo = pool.function(&functions(), "echo").unwrap();
    service.harvester.book().silent = true;
    assert_eq!(echo.invoke(b"goes on").unwrap(), b"goes on", "until the grant ends");
    wait_until("the node is left", PATIENCE, || service.workers_of_leases(0) == 0);
    service.harvester.book().speak_again();
    wait_until("the node is granted again", PATIENCE, || echo.invoke(b"back").is_ok());
}
