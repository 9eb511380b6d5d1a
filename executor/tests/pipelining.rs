//! Many calls under way at once, end to end: completion queues, futures, and several threads.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

mod service;

use std::{
    os::fd::AsFd,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    thread,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use gleaner::{CallError, Failure, Full, Pool, Transport, Transports, Waiting};
use gleaner_lease::state::EndReason;
use gleaner_testkit::wait_until;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use service::{PATIENCE, Service, functions, request};

fn millis(millis: u64) -> [u8; 8] {
    (millis * 1_000_000).to_le_bytes()
}

/// Runs a future beside the pool's driver in a tokio of one thread.
fn with_tokio<T>(pool: &Pool, work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::select! {
            done = work => done,
            error = pool.drive() => panic!("{error}"),
            () = tokio::time::sleep(PATIENCE) => panic!("the futures do not get on: {:?}", pool.stats()),
        }
    })
}

/// An executor as small as can be: it sleeps on the pool's descriptor.
fn block_on<T>(pool: &Pool, work: impl Future<Output = T>) -> T {
    count_looks(pool, work).0
}

/// The same, and how often it looked.
fn count_looks<T>(pool: &Pool, work: impl Future<Output = T>) -> (T, u32) {
    struct Flag(AtomicBool);
    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Release);
        }
    }
    let flag = Arc::new(Flag(AtomicBool::new(true)));
    let waker = Waker::from(flag.clone());
    let (mut work, mut looks) = (pin!(work), 0);
    loop {
        if flag.0.swap(false, Ordering::Acquire)
            && let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(&waker))
        {
            return (done, looks);
        }
        looks += 1;
        let due = pool.process();
        if flag.0.load(Ordering::Acquire) {
            continue;
        }
        let left = due.map_or(PATIENCE, |due| due.saturating_duration_since(Instant::now()));
        let descriptor = pool.descriptor().unwrap();
        let mut sleep = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        poll(&mut sleep, PollTimeout::try_from(left.as_millis() + 1).unwrap()).unwrap();
    }
}

/// A request over each transport.
fn transports() -> [gleaner::Request; 2] {
    [Transport::Shm, Transport::Tcp].map(|way| request().transport(Transports::Only(way)))
}

#[test]
fn ten_thousand_calls_complete_once_each() {
    const CALLS: usize = 10_000;
    let service = Service::start(&["n1", "n2"]);
    for request in transports() {
        let pool = service.client().acquire(request.nodes(1..=2).cores(2).window(8)).unwrap();
        let sum = pool.function(&functions(), "sum").unwrap();
        let mut calls = sum.completions();
        assert_eq!(calls.bound(), 2 * 2 * 8);
        let mut inputs = (0..CALLS as u64).map(|n| n.to_le_bytes());
        let (mut seen, mut out_of_order, mut last) = (vec![0; CALLS], 0, 0);
        loop {
            while !calls.is_full()
                && let Some(input) = inputs.next()
            {
                calls.push(&input, u64::from_le_bytes(input)).unwrap();
            }
            let read = |reply: &[u8]| u64::from_le_bytes(reply.try_into().unwrap());
            let Some((tag, result)) = calls.next_with(read) else { break };
            assert_eq!(result.unwrap(), tag);
            seen[tag as usize] += 1;
            out_of_order += u32::from(tag < last);
            last = tag;
        }
        assert!(seen.iter().all(|times| *times == 1), "each exactly once");
        assert!(out_of_order > 0, "in any order");
        assert_eq!(pool.stats().ok, CALLS as u64);
        assert!(calls.is_empty() && calls.try_next().is_none() && calls.next().is_none());
    }
}

#[test]
fn a_call_that_fits_no_slot_goes_to_the_lane_whose_turn_it_is() {
    let service = Service::start(&["n1"]);
    let pool = service
        .client()
        .acquire(request().cores(2).arena_bytes(1 << 20).waiting(Waiting::Hot))
        .unwrap();
    let spin = pool.function(&functions(), "spin").unwrap();
    let echo = pool.function(&functions(), "echo").unwrap().reply_capacity(100_000);
    let large = vec![7; 100_000];
    assert_eq!(echo.invoke(&large).unwrap(), large, "the function is open on both lanes");
    assert_eq!(echo.invoke(&large).unwrap(), large);
    let mut calls = spin.completions_of(1);
    calls.push(&millis(3000), "slow").unwrap();
    assert_eq!(echo.invoke(&large).unwrap(), large);
    assert!(calls.try_next().is_none(), "the slow one is on the other lane");
    assert_eq!(calls.next().unwrap().0, "slow");
}

#[test]
fn a_quick_call_overtakes_a_slow_one_and_a_full_queue_says_so() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request().cores(2)).unwrap();
    let spin = pool.function(&functions(), "spin").unwrap();
    let echo = pool.function(&functions(), "echo").unwrap();
    let mut calls = spin.completions_of(3);
    calls.push(&millis(300), "slow").unwrap();
    calls.push_to(&echo, b"quick", "quick").unwrap();
    let too_large = vec![0; 1 << 20];
    calls.push(&too_large, "too large").unwrap();
    assert_eq!(calls.push(&millis(1), "one more"), Err(Full("one more")));
    let (tag, error) = calls.next().unwrap();
    assert!(tag == "too large", "{tag}: {error:?}");
    assert!(matches!(error, Err(CallError::Failed(Failure::TooLarge { .. }))), "{error:?}");
    assert_eq!(calls.next().unwrap(), ("quick", Ok(b"quick".to_vec())));
    assert!(calls.try_next().is_none(), "the slow one goes on");
    assert_eq!(calls.next().unwrap().0, "slow");
    // What is given up with its queue holds no slot.
    for _ in 0..3 {
        calls.push(&millis(20_000), "given up").unwrap();
    }
    drop(calls);
    let many = echo.map(vec![b"on"; 100]);
    assert!(many.iter().all(|reply| reply.as_deref() == Ok(b"on")));
}

#[test]
fn a_completion_queue_lives_through_an_eviction_and_deadlines() {
    let service = Service::start(&["n1", "n2"]);
    let pool = service.client().acquire(request().cores(2)).unwrap();
    let first = pool.leases()[0].node.clone();
    let spin = pool.function(&functions(), "spin").unwrap().idempotent(true);
    let mut calls = spin.completions();
    for n in 0..20 {
        calls.push(&millis(20), n).unwrap();
    }
    service.wait_started(&first);
    service.harvester.vacate(&first, EndReason::BatchJob);
    let mut tags: Vec<i32> =
        calls.by_ref().map(|(tag, result)| result.map(|_| tag).unwrap()).collect();
    tags.sort_unstable();
    assert_eq!(tags, (0..20).collect::<Vec<_>>());
    assert!(pool.stats().evictions == 1 && pool.stats().reruns > 0, "{:?}", pool.stats());
    let after = Duration::from_millis(200);
    calls.push_to(&spin.clone().deadline(after), &millis(20_000), 20).unwrap();
    let (tag, error) = calls.next().unwrap();
    assert_eq!((tag, error), (20, Err(CallError::Failed(Failure::Deadline { after }))));
}

#[test]
fn a_thousand_futures_in_one_thread_of_tokio() {
    let service = Service::start(&["n1", "n2"]);
    for request in transports() {
        let pool = service.client().acquire(request.nodes(1..=2).cores(2).window(8)).unwrap();
        let sum = pool.function(&functions(), "sum").unwrap();
        let total = with_tokio(&pool, async {
            let calls: FuturesUnordered<_> =
                (0..1000u64).map(|n| sum.call(&n.to_le_bytes())).collect();
            calls
                .map(|reply| u64::from_le_bytes(reply.unwrap().try_into().unwrap()))
                .fold(0, async |total, n| total + n)
                .await
        });
        assert_eq!(total, 999 * 1000 / 2);
        assert_eq!(pool.stats().ok, 1000);
    }
}

#[test]
fn waiting_for_futures_sleeps() {
    let service = Service::start(&["n1"]);
    for request in transports() {
        let pool = service.client().acquire(request).unwrap();
        let spin = pool.function(&functions(), "spin").unwrap();
        let begun = Instant::now();
        let (reply, looks) = count_looks(&pool, spin.call(&millis(1000)));
        reply.unwrap();
        // About ten looks a second that are for safety, and a few for the call itself.
        let bound = 10 + 10 * begun.elapsed().as_secs() as u32;
        assert!(looks <= bound, "{looks} looks in {:?}", begun.elapsed());
    }
}

#[test]
fn an_executor_of_ones_own_and_blocking_calls_side_by_side() {
    let service = Service::start(&["n1"]);
    for request in transports() {
        let pool = service.client().acquire(request.window(4)).unwrap();
        let echo = pool.function(&functions(), "echo").unwrap();
        let replies = block_on(&pool, async {
            let early: Vec<_> = (0..10u8).map(|n| echo.call(&[n])).collect();
            // Takes the answers of the others on its way: they are still told.
            assert_eq!(echo.invoke(b"blocking").unwrap(), b"blocking");
            let in_place =
                echo.call_with(3, |input| input.fill(2), |reply| reply.iter().sum::<u8>());
            assert_eq!(in_place.await.unwrap(), 6);
            join_all(early).await
        });
        let expected: Vec<_> = (0..10u8).map(|n| Ok(vec![n])).collect();
        assert_eq!(replies, expected);
        let begun = Instant::now();
        for n in 0..200u8 {
            assert_eq!(block_on(&pool, echo.call(&[n])).unwrap(), [n]);
        }
        // Each would take a tenth of a second if its wake-up were lost.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    }
}

#[test]
fn futures_dropped_under_way_leak_no_slot() {
    let service = Service::start(&["n1"]);
    let pool = service.client().acquire(request().window(4)).unwrap();
    let spin = pool.function(&functions(), "spin").unwrap();
    with_tokio(&pool, async {
        for round in 0..20 {
            // More than there are slots: some are sent, some wait; some are polled, some never.
            let mut calls: Vec<_> = (0..12).map(|_| spin.call(&millis(1))).collect();
            let first = calls.remove(0);
            let rest = async {
                if round % 2 == 0 {
                    join_all(calls.drain(..6)).await;
                }
                std::future::pending::<()>().await
            };
            tokio::select! {
                reply = first => drop(reply.unwrap()),
                () = rest => {}
            }
            drop(calls);
        }
        // All slots are free again: as many calls as there are run at once.
        let calls = (0..16).map(|_| spin.call(&millis(1)));
        assert!(join_all(calls).await.iter().all(Result::is_ok));
    });
    assert_eq!(pool.stats().evictions, 0);
    let mut calls = spin.completions();
    for n in 0..calls.bound() {
        calls.push(&millis(0), n).unwrap();
    }
    assert_eq!(calls.filter(|(_, result)| result.is_ok()).count(), 4);
}

#[test]
fn futures_move_when_their_node_is_taken_back() {
    for request in transports() {
        let service = Service::start(&["n1", "n2"]);
        let pool = service.client().acquire(request.cores(2)).unwrap();
        let first = pool.leases()[0].node.clone();
        let spin = pool.function(&functions(), "spin").unwrap().idempotent(true);
        let results = with_tokio(&pool, async {
            let calls: Vec<_> = (0..50).map(|_| spin.call(&millis(20))).collect();
            tokio::task::spawn_blocking(|| thread::sleep(Duration::from_millis(50))).await.unwrap();
            service.harvester.vacate(&first, EndReason::BatchJob);
            join_all(calls).await
        });
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_ne!(pool.leases()[0].node, first);
        let stats = pool.stats();
        assert!(stats.evictions == 1 && stats.reruns >= 1 && stats.ok == 50, "{stats:?}");
    }
}

#[test]
fn a_reply_whose_memory_is_gone_before_it_is_read_counts_once_and_comes_from_another_node() {
    let service = Service::start(&["n1", "n2"]);
    let pool = service.client().acquire(request().window(8)).unwrap();
    let lease = pool.leases().remove(0);
    assert_eq!(lease.transport, Transport::Shm);
    let echo = pool.function(&functions(), "echo").unwrap().idempotent(true);
    let tickets: Vec<_> = (0..8u8).map(|n| echo.submit(&[n; 100]).unwrap()).collect();
    wait_until("all are answered", PATIENCE, || tickets.iter().all(|ticket| ticket.is_done()));
    service.harvester.vacate(&lease.node, EndReason::BatchJob);
    service.wait_for_end(lease.lease_id);
    for (n, ticket) in (0..8u8).zip(tickets) {
        assert_eq!(ticket.wait().unwrap(), [n; 100]);
    }
    let stats = pool.stats();
    assert_eq!((stats.ok, stats.reruns, stats.evictions), (8, 8, 1), "{stats:?}");
    assert_ne!(pool.leases()[0].node, lease.node);
}

#[test]
fn calls_that_moved_get_the_slots_of_replies_that_nobody_takes() {
    let service = Service::with(&["n1", "n2"], |config| config.executor.cores = Some(1));
    let pool = service.client().acquire(request().nodes(2..=2).window(2)).unwrap();
    let spin = pool.function(&functions(), "spin").unwrap().idempotent(true);
    let nodes: Vec<_> = pool.leases().into_iter().map(|lease| lease.node).collect();
    // Lane after lane: the slow ones are on the first node.
    let tickets: Vec<_> = [500, 0, 500, 0].map(|time| spin.submit(&millis(time)).unwrap()).into();
    service.wait_started(&nodes[0]);
    wait_until("the quick ones are answered", PATIENCE, || {
        tickets[1].is_done() && tickets[3].is_done()
    });
    service.harvester.vacate(&nodes[0], EndReason::BatchJob);
    for ticket in tickets {
        ticket.wait().unwrap();
    }
    assert_eq!(pool.stats().evictions, 1);
}

#[test]
fn deadlines_renewals_and_missing_nodes_get_on_without_a_call() {
    let service = Service::start(&["n1"]);
    let wanted = request().ttl(Duration::from_secs(2)).patience(Duration::from_millis(300));
    let pool = service.client().acquire(wanted).unwrap();
    let lease = pool.leases()[0].lease_id;
    let spin = pool.function(&functions(), "spin").unwrap();
    with_tokio(&pool, async {
        // Longer than the lease: it is renewed meanwhile, though nobody calls.
        tokio::time::sleep(Duration::from_secs(4)).await;
        spin.call(&millis(1)).await.unwrap();
        assert_eq!(pool.leases()[0].lease_id, lease);
        let after = Duration::from_millis(100);
        let error = spin.clone().deadline(after).call(&millis(20_000)).await.unwrap_err();
        assert_eq!(error, CallError::Failed(Failure::Deadline { after }));
        service.harvester.vacate("n1", EndReason::BatchJob);
        // Within the patience of `with_tokio`; nobody calls meanwhile.
        while !pool.leases().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let error = spin.call(&millis(1)).await.unwrap_err();
        assert!(matches!(error, CallError::Failed(Failure::NoLease { .. })), "{error}");
    });
}

#[test]
fn a_client_and_its_pool_may_be_used_and_dropped_inside_tokio() {
    let service = Service::start(&["n1"]);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let reply = runtime.block_on(async {
        let pool = service.client().acquire(request()).unwrap();
        pool.function(&functions(), "echo").unwrap().invoke(b"inside").unwrap()
    });
    assert_eq!(reply, b"inside");
}

#[test]
fn threads_with_a_pool_each_call_side_by_side() {
    let service = Service::start(&["n1", "n2"]);
    let client = service.client();
    let count = |n: u64| {
        let pool = client.acquire(request()).unwrap();
        let sum = pool.function(&functions(), "sum").unwrap();
        let mut calls = sum.completions();
        let mut total = 0;
        for input in 0..500u64 {
            if calls.is_full() {
                total += u64::from_le_bytes(calls.next().unwrap().1.unwrap().try_into().unwrap());
            }
            calls.push(&(input * n).to_le_bytes(), ()).unwrap();
        }
        for (_, reply) in calls {
            total += u64::from_le_bytes(reply.unwrap().try_into().unwrap());
        }
        total
    };
    let totals: Vec<u64> = thread::scope(|scope| {
        let count = &count;
        let threads: Vec<_> = (1..=6).map(|n| scope.spawn(move || count(n))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let expected: Vec<u64> = (1..=6).map(|n| n * (499 * 500 / 2)).collect();
    assert_eq!(totals, expected);
}
