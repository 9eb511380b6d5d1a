//! What goes away while calls are under way between two machines: the node, the worker, the executor, the client, the wire.

use std::time::Instant;

use gleaner::{CallError, Client, Function, Pool, PoolEventKind, Ticket, Transport, Transports};
use gleaner_testkit::{process::Daemon, wait_until};

use crate::{
    doomed,
    host::{Host, by, run},
    service::{PATIENCE, functions, verbs::all_held, verbs::link_word},
};

pub(crate) fn acquire(client: &Client) -> Pool {
    let pool = client.acquire(by(Transports::Only(Transport::Rdma))).unwrap();
    assert_eq!(pool.leases()[0].transport, Transport::Rdma);
    pool
}

fn echo(pool: &Pool) -> Function<'_> {
    pool.function(&functions(), "echo").unwrap()
}

/// A call that runs on a node, when this returns.
fn long<'p>(pool: &'p Pool, host: &mut Host, node: &str) -> Ticket<'p> {
    let ticket = pool.function(&functions(), "spin").unwrap().submit(&doomed::LONG).unwrap();
    host.ask(&format!("started {node}"));
    ticket
}

#[test]
#[ignore = "needs another machine"]
fn a_vacate_answers_at_once_and_calls_go_on_elsewhere() {
    let mut host = Host::start("rxe0", "n1 n2");
    let (here, there) = (all_held(), host.ask("held"));
    let pool = acquire(&host.client());
    let (lease, node) = (pool.leases()[0].lease_id, pool.leases()[0].node.clone());
    let under_way = long(&pool, &mut host, &node);
    host.ask(&format!("vacate {node}"));
    let started = Instant::now();
    let ended = under_way.wait().unwrap_err();
    println!("evicted {:?} after the order was taken", started.elapsed());
    assert!(matches!(ended, CallError::Evicted { .. }), "{ended}");
    host.ask(&format!("ended {lease}"));
    assert_eq!(echo(&pool).invoke(b"elsewhere").unwrap(), b"elsewhere");
    assert_ne!(pool.leases()[0].node, node);
    assert_eq!(pool.leases()[0].transport, Transport::Rdma);
    drop(pool);
    assert_eq!(all_held(), here);
    host.wait_until_held(&there);
}

#[test]
#[ignore = "needs another machine"]
fn a_killed_worker_leaves_nothing_and_its_call_an_end() {
    let mut host = Host::start("rxe0", "n1");
    let there = host.ask("held");
    let pool = acquire(&host.client());
    let under_way = long(&pool, &mut host, "n1");
    host.ask("kill worker");
    assert_eq!(host.ask("held"), there, "the kernel took all of it before the worker was gone");
    let ended = under_way.wait().unwrap_err();
    assert!(matches!(ended, CallError::Unknown { .. } | CallError::Failed(_)), "{ended:?}");
    assert_eq!(echo(&pool).invoke(b"again").unwrap(), b"again");
}

#[test]
#[ignore = "needs another machine"]
fn a_killed_executor_ends_its_calls() {
    let mut host = Host::start("rxe0", "n1");
    let there = host.ask("held");
    let pool = acquire(&host.client());
    let under_way = long(&pool, &mut host, "n1");
    host.ask("kill executor");
    let ended = under_way.wait().unwrap_err();
    assert!(matches!(ended, CallError::Unknown { .. }), "{ended:?}");
    host.wait_until_held(&there);
}

#[test]
#[ignore = "needs another machine"]
fn a_killed_client_leaves_nothing_on_either_machine() {
    let mut host = Host::start("rxe0", "n1");
    let (here, there) = (all_held(), host.ask("held"));
    let mut client = Daemon::start("client", doomed::command(&host.options()), None).unwrap();
    host.ask("started n1");
    assert_eq!(all_held()[0], here[0] + 1);
    client.kill();
    assert_eq!(all_held(), here, "the kernel took all of it before the client was gone");
    host.wait_until_held(&there);
}

/// Why the session ended, once it is told.
fn evicted(pool: &Pool) -> String {
    let mut why = None;
    wait_until("the session is evicted", PATIENCE, || {
        let _ = pool.process();
        why = pool.events().into_iter().find_map(|event| match event.kind {
            PoolEventKind::Evicted { detail, .. } => Some(detail),
            _ => None,
        });
        why.is_some()
    });
    why.unwrap()
}

#[test]
#[ignore = "needs another machine"]
fn our_link_down_is_told_and_up_again_serves() {
    let mut host = Host::start("rxe0", "n1");
    let there = host.ask("held");
    let pool = acquire(&host.client());
    let echo = echo(&pool);
    assert_eq!(echo.invoke(b"before").unwrap(), b"before");
    let interface = link_word("netdev");
    run(&format!("ip link set {interface} down"));
    let meanwhile = echo.clone().idempotent(true).submit(b"meanwhile").unwrap();
    let why = evicted(&pool);
    assert!(why.contains("port 1 of the RDMA device is down"), "{why}");
    run(&format!("ip link set {interface} up"));
    assert_eq!(meanwhile.wait().unwrap(), b"meanwhile");
    assert_eq!(pool.leases()[0].transport, Transport::Rdma);
    drop(pool);
    host.wait_until_held(&there);
}

#[test]
#[ignore = "needs another machine"]
fn the_other_link_down_and_up_costs_no_call_that_may_run_again() {
    let mut host = Host::start("rxe0", "n1");
    let pool = acquire(&host.client());
    let echo = echo(&pool).idempotent(true);
    assert_eq!(echo.invoke(b"before").unwrap(), b"before");
    // It comes up by itself: while it is down, nobody can be told to.
    host.ask("shell i=$(rdma link show | sed 's/.*netdev //'); { ip link set $i down; sleep 2; ip link set $i up; } &");
    let mut events = Vec::new();
    let mut calls = 0u32;
    while !events.iter().any(|kind| matches!(kind, PoolEventKind::Evicted { .. })) {
        assert_eq!(echo.invoke(&calls.to_le_bytes()).unwrap(), calls.to_le_bytes());
        events.extend(pool.events().into_iter().map(|event| event.kind));
        calls += 1;
    }
    println!("{calls} calls: {events:?}");
    assert_eq!(echo.invoke(b"after").unwrap(), b"after");
}
