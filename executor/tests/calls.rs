//! Calls, end to end: client, agent, keeper and worker are the real ones, the harvester is as small as can be.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

mod service;

use std::{thread, time::Duration};

use gleaner::{CallError, Failure, KeepAlive, PoolEventKind, Waiting};
use gleaner_lease::state::EndReason;
use gleaner_testkit::wait_until;
use service::{PATIENCE, Service, functions, request};

fn millis(millis: u64) -> [u8; 8] {
    (millis * 1_000_000).to_le_bytes()
}

#[test]
fn a_call_comes_back_hot_and_warm_copied_and_in_place() {
    let service = Service::start(&["n1"]);
    for waiting in [Waiting::Hot, Waiting::Warm] {
        let pool = service.client().acquire(request().waiting(waiting)).unwrap();
        let echo = pool.function(&functions(), "echo").unwrap();
        assert_eq!(echo.invoke(b"hello").unwrap(), b"hello");
        assert_eq!(echo.invoke(b"").unwrap(), b"");
        let mut output = [0; 8];
        assert_eq!(echo.invoke_into(b"12345", &mut output).unwrap(), 5);
        assert_eq!(&output[..5], b"12345");
        let sum = echo.invoke_with(3, |input| input.fill(2), |reply| reply.iter().sum::<u8>());
        assert_eq!(sum.unwrap(), 6);
        let rfaas = pool.function(&functions(), "rfaas_echo").unwrap();
        assert_eq!(rfaas.invoke(b"unchanged").unwrap(), b"unchanged");
        let lease = pool.leases()[0].lease_id;
        pool.release().unwrap();
        let usage = service.wait_for_end(lease).usage.unwrap();
        assert!(usage.calls >= 5 && usage.cpu_ns > 0, "{usage:?}");
        assert!(usage.executing_ns + usage.polling_ns <= usage.cpu_ns, "{usage:?}");
        assert!(usage.cpu_ns <= usage.allocated_core_ns, "{usage:?}");
    }
}

#[test]
fn payloads_from_nothing_to_the_arena_and_no_further() {
    let service = Service::start(&["n1"]);
    let wanted = request().memory(512 << 20).payload_max(64 << 20);
    let pool = service.client().acquire(wanted).unwrap();
    let echo = pool.function(&functions(), "echo").unwrap();
    for len in [0usize, 1, 4000, 4096, 1 << 20, 64 << 20] {
        let input: Vec<u8> = {
            let mut bytes = vec![7; len];
            bytes.iter_mut().step_by(4093).zip((0..=255).cycle()).for_each(|(byte, n)| *byte = n);
            bytes
        };
        let reply = echo.clone().reply_capacity(len as u32).invoke(&input).unwrap();
        assert!(reply == input, "{len} bytes come back as they went");
    }
    let beyond = vec![0; (64 << 20) + 1];
    let refused = echo.invoke(&beyond).unwrap_err();
    assert!(matches!(refused, CallError::Failed(Failure::TooLarge { .. })), "{refused}");
    let short = echo.reply_capacity(10).invoke(&[0; 11]).unwrap_err();
    assert_eq!(short, CallError::Failed(Failure::ReplyTooLarge { capacity: 10 }));
}

#[test]
fn many_inputs_spread_over_nodes_and_cores() {
    let service = Service::start(&["n1", "n2"]);
    let pool = service.client().acquire(request().nodes(1..=2).cores(2).window(4)).unwrap();
    assert_eq!(pool.leases().len(), 2);
    let sum = pool.function(&functions(), "sum").unwrap();
    let inputs: Vec<[u8; 16]> = (0..500u64)
        .map(|n| {
            let mut input = [0; 16];
            input[..8].copy_from_slice(&n.to_le_bytes());
            input[8..].copy_from_slice(&1u64.to_le_bytes());
            input
        })
        .collect();
    for (n, result) in sum.map(&inputs).into_iter().enumerate() {
        assert_eq!(result.unwrap(), (n as u64 + 1).to_le_bytes());
    }
    let about = pool.function(&functions(), "about").unwrap();
    let lanes: std::collections::BTreeSet<_> =
        about.map(vec![[0u8; 1]; 32]).into_iter().map(|reply| reply.unwrap()[0]).collect();
    assert_eq!(lanes.len(), 2, "both lanes of each node were used");
}

#[test]
fn a_function_s_own_error_and_missing_functions_are_named() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request()).unwrap();
    let fail = pool.function(&functions(), "fail").unwrap();
    let error = fail.invoke(&7u32.to_le_bytes()).unwrap_err();
    assert!(matches!(error, CallError::Failed(Failure::Function { code: 7, .. })), "{error}");
    let missing = pool.function(&functions(), "no_such_function").err().unwrap().to_string();
    assert!(missing.contains("no_such_function") && missing.contains("n1"), "{missing}");
    let text = gleaner::Library::from_bytes(b"not a library at all".to_vec()).unwrap();
    let refused = pool.function(&text, "echo").err().unwrap().to_string();
    assert!(refused.contains("echo") && refused.contains("not an ELF file"), "{refused}");
    // Neither has harmed the lease.
    assert_eq!(pool.function(&functions(), "echo").unwrap().invoke(b"x").unwrap(), b"x");
    assert_eq!(pool.stats().evictions, 0);
}

#[test]
fn calls_move_when_their_node_is_taken_back() {
    let service = Service::start(&["n1", "n2"]);
    let pool = service.client().acquire(request().cores(2)).unwrap();
    let first = pool.leases()[0].node.clone();
    let spin = pool.function(&functions(), "spin").unwrap().idempotent(true);
    let tickets: Vec<_> = (0..8).map(|_| spin.submit(&millis(100)).unwrap()).collect();
    service.wait_started(&first);
    service.harvester.vacate(&first, EndReason::BatchJob);
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    assert_ne!(pool.leases()[0].node, first);
    let stats = pool.stats();
    assert!(stats.evictions == 1 && stats.reruns >= 1 && stats.ok == 8, "{stats:?}");
    let events = pool.events();
    let moved = events.iter().find_map(|event| match &event.kind {
        PoolEventKind::Evicted { reason, moved, lost, .. } => Some((reason, moved, lost)),
        _ => None,
    });
    let (reason, moved, lost) = moved.unwrap();
    assert_eq!(reason, "BATCH_JOB");
    assert!(!moved.is_empty() && lost.is_empty());
}

#[test]
fn a_call_that_had_started_is_not_run_twice_unasked() {
    let service = Service::start(&["n1", "n2"]);
    let pool = service.client().acquire(request()).unwrap();
    let first = pool.leases()[0].node.clone();
    let spin = pool.function(&functions(), "spin").unwrap();
    let started = spin.submit(&millis(10_000)).unwrap();
    let behind = spin.submit(&millis(1)).unwrap();
    service.wait_started(&first);
    service.harvester.vacate(&first, EndReason::BatchJob);
    let error = started.wait().unwrap_err();
    assert!(matches!(error, CallError::Evicted { .. }), "{error}");
    behind.wait().expect("what had not started moves");
    assert_eq!(pool.stats().evicted, 1);
}

#[test]
fn a_deadline_stops_a_call_that_loops_for_ever() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request()).unwrap();
    let lease = pool.leases()[0].lease_id;
    let forever = pool.function(&functions(), "loop_forever").unwrap();
    let after = Duration::from_secs(1);
    let error = forever.deadline(after).invoke(b"").unwrap_err();
    assert_eq!(error, CallError::Failed(Failure::Deadline { after }));
    let ended = service.wait_for_end(lease);
    assert_eq!(ended.reason, EndReason::WorkerFailed as i32, "{ended:?}");
    // The pool goes on: the next call runs on a new lease.
    let echo = pool.function(&functions(), "echo").unwrap();
    assert_eq!(echo.invoke(b"again").unwrap(), b"again");
}

#[test]
fn a_cancelled_call_ends_as_failed_and_one_that_waits_never_runs() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request()).unwrap();
    let spin = pool.function(&functions(), "spin").unwrap();
    let running = spin.submit(&millis(20_000)).unwrap();
    let waiting = spin.submit(&millis(20_000)).unwrap();
    service.wait_started("n1");
    waiting.cancel(PATIENCE);
    running.cancel(PATIENCE);
    for ticket in [running, waiting] {
        let error = ticket.wait().unwrap_err();
        assert!(matches!(error, CallError::Failed(_)), "{error}");
    }
    assert_eq!(pool.stats().evictions, 0, "the function looked at its cancel flag");
    let dropped = spin.submit(&millis(20_000)).unwrap();
    drop(dropped);
    let echo = pool.function(&functions(), "echo").unwrap();
    assert_eq!(echo.invoke(b"on").unwrap(), b"on", "a dropped call does not hold the lane");
}

#[test]
fn a_lease_lives_on_while_it_is_called_and_ends_when_nobody_renews() {
    let service = Service::start(&["n1"]);
    let short = request().ttl(Duration::from_secs(2));
    let pool = service.client().acquire(short.clone()).unwrap();
    let lease = pool.leases()[0].lease_id;
    let spin = pool.function(&functions(), "spin").unwrap();
    for _ in 0..30 {
        spin.invoke(&millis(100)).unwrap();
    }
    assert_eq!(pool.leases()[0].lease_id, lease);
    assert_eq!(pool.stats().evictions, 0);
    pool.release().unwrap();
    let pool = service.client().acquire(short.keep_alive(KeepAlive::Manual)).unwrap();
    let lease = pool.leases()[0].lease_id;
    let ended = service.wait_for_end(lease);
    assert_eq!(ended.reason, EndReason::Expired as i32, "{ended:?}");
    let echo = pool.function(&functions(), "echo").unwrap();
    assert_eq!(echo.invoke(b"leased again").unwrap(), b"leased again");
}

#[test]
fn a_background_thread_renews_for_an_idle_caller() {
    let service = Service::start(&["n1"]);
    let kept = request().ttl(Duration::from_secs(2)).keep_alive(KeepAlive::Background);
    let pool = service.client().acquire(kept).unwrap();
    let lease = pool.leases()[0].lease_id;
    thread::sleep(Duration::from_secs(3));
    assert!(service.harvester.ended(lease).is_none());
    let echo = pool.function(&functions(), "echo").unwrap();
    assert_eq!(echo.invoke(b"still").unwrap(), b"still");
    assert_eq!(pool.stats().evictions, 0);
    drop(pool);
    assert_eq!(service.wait_for_end(lease).reason, EndReason::Released as i32);
}

#[test]
fn without_a_node_calls_run_here_if_the_caller_asked_for_that() {
    let service = Service::start(&["n1"]);
    service.harvester.vacate("n1", EndReason::BatchJob);
    let refused = service.client().acquire(request()).err().unwrap().to_string();
    assert!(refused.contains("no node is left"), "{refused}");
    let pool = service.client().acquire(request().local_fallback(true)).unwrap();
    let sum = pool.function(&functions(), "sum").unwrap();
    assert_eq!(sum.invoke(&5u64.to_le_bytes()).unwrap(), 5u64.to_le_bytes());
    let counter = pool.function(&functions(), "counter").unwrap();
    let counts: Vec<_> = (0..3).map(|_| counter.invoke(b"").unwrap()[0]).collect();
    assert_eq!(counts, [1, 2, 3]);
    let rfaas = pool.function(&functions(), "rfaas_echo").unwrap();
    assert_eq!(rfaas.invoke(b"here").unwrap(), b"here");
    let fail = pool.function(&functions(), "fail").unwrap();
    let error = fail.invoke(&9u32.to_le_bytes()).unwrap_err();
    assert!(matches!(error, CallError::Failed(Failure::Function { code: 9, .. })), "{error}");
    assert_eq!(pool.stats().local, 6);
}

#[test]
fn calls_fall_back_when_the_last_node_goes() {
    let service = Service::start(&["n1"]);
    let wanted = request().local_fallback(true).patience(Duration::from_millis(200));
    let pool = service.client().acquire(wanted).unwrap();
    let spin = pool.function(&functions(), "spin").unwrap().idempotent(true);
    let tickets: Vec<_> = (0..3).map(|_| spin.submit(&millis(50)).unwrap()).collect();
    service.harvester.vacate("n1", EndReason::BatchJob);
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    assert!(pool.stats().local >= 2, "{:?}", pool.stats());
}

#[test]
fn with_no_node_left_and_no_fallback_calls_end_and_say_why() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request().patience(Duration::from_millis(300))).unwrap();
    let spin = pool.function(&functions(), "spin").unwrap().idempotent(true);
    let ticket = spin.submit(&millis(10_000)).unwrap();
    service.wait_started("n1");
    service.harvester.vacate("n1", EndReason::BatchJob);
    let error = ticket.wait().unwrap_err();
    assert!(error.to_string().contains("n1") || error.to_string().contains("node"), "{error}");
    let next = spin.invoke(&millis(1)).unwrap_err();
    assert!(matches!(next, CallError::Failed(Failure::NoLease { .. })), "{next}");
    // The node comes back, and so does the pool.
    service.harvester.book().held.clear();
    wait_until("the pool has a lease again", PATIENCE, || spin.invoke(&millis(1)).is_ok());
}

#[test]
fn calls_go_round_the_cores_of_a_lease_however_their_caller_waits() {
    let service = Service::start(&["n1"]);
    for waiting in [Waiting::Hot, Waiting::Warm] {
        let pool = service.client().acquire(request().cores(2).waiting(waiting)).unwrap();
        let about = pool.function(&functions(), "about").unwrap();
        for settings in [about.clone(), about.deadline(PATIENCE)] {
            let lanes: Vec<u8> = (0..6).map(|_| settings.invoke(b"").unwrap()[0]).collect();
            let first = lanes[0];
            let expected: Vec<u8> = (0..6).map(|call| (first + call) % 2).collect();
            assert_eq!(lanes, expected, "{waiting:?}");
        }
        pool.release().unwrap();
    }
}
