//! Several sessions on one lease, end to end: who may join, whom it ends for, and whose turn it is.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

mod service;

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use gleaner::{
    CallError, Client, Function, JoinError, KeepAlive, Options, Pool, Request, Share, Transport,
    Transports,
};
use gleaner_identity::Auth;
use gleaner_lease::state::EndReason;
use gleaner_testkit::wait_until;
use service::{
    PATIENCE, Service,
    fair::{assert_turns, served_beside_a_flood},
    functions, request,
};

const WAYS: [Transport; 2] = [Transport::Shm, Transport::Tcp];

fn over(way: Transport) -> Request {
    request().transport(Transports::Only(way))
}

fn echo(pool: &Pool) -> Function<'_> {
    pool.function(&functions(), "echo").unwrap()
}

fn lease_of(pool: &Pool) -> u64 {
    pool.leases()[0].lease_id
}

#[test]
fn threads_with_a_pool_each_share_one_lease_which_counts_once() {
    const THREADS: u64 = 4;
    const CALLS: u64 = 500;
    let service = Service::start(&["n1"]);
    for way in WAYS {
        let given = service.harvester.book().leases_given();
        let client = service.client();
        let owner = client.acquire(over(way).cores(2)).unwrap();
        let (lease, share) = (lease_of(&owner), owner.share());
        let sum_up = |n: u64| {
            let pool = client.join(&share, over(way)).unwrap();
            assert_eq!((lease_of(&pool), pool.leases()[0].transport), (lease, way));
            let sum = pool.function(&functions(), "sum").unwrap();
            let results = sum.map((0..CALLS).map(|input| (input * n).to_le_bytes()));
            results
                .into_iter()
                .map(|reply| u64::from_le_bytes(reply.unwrap().try_into().unwrap()))
                .sum::<u64>()
        };
        let totals: Vec<u64> = thread::scope(|scope| {
            let sum_up = &sum_up;
            let threads: Vec<_> = (0..THREADS).map(|n| scope.spawn(move || sum_up(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let expected: Vec<u64> = (0..THREADS).map(|n| n * (CALLS * (CALLS - 1) / 2)).collect();
        assert_eq!(totals, expected);
        assert_eq!(service.harvester.book().leases_given(), given + 1);
        assert_eq!(service.workers_of_leases(0), 1, "one worker for all");
        owner.release().unwrap();
        let ended = service.wait_for_end(lease);
        let usage = ended.usage.unwrap();
        assert_eq!(usage.calls, THREADS * CALLS);
        assert!(usage.cpu_ns <= usage.allocated_core_ns, "{usage:?}");
    }
}

#[test]
fn the_lease_ends_with_the_last_pool_and_with_no_other() {
    let service = Service::start(&["n1"]);
    let client = service.client();
    let owner = client.acquire(request()).unwrap();
    let (lease, share) = (lease_of(&owner), owner.share());
    let [second, third] = [(); 2].map(|()| client.join(&share, request()).unwrap());
    owner.release().unwrap();
    assert_eq!(echo(&second).invoke(b"after its owner").unwrap(), b"after its owner");
    drop(second);
    let late = client.join(&share, request()).unwrap();
    drop(late);
    assert_eq!(echo(&third).invoke(b"the last").unwrap(), b"the last");
    assert_eq!((lease_of(&third), third.stats().evictions), (lease, 0));
    assert!(service.harvester.ended(lease).is_none());
    third.release().unwrap();
    let ended = service.wait_for_end(lease);
    assert_eq!(ended.reason, EndReason::Released as i32);
    assert_eq!(ended.detail, "its client gave it back", "at once, and not as one that was left");
    let over = client.join(&share, request()).err().unwrap();
    assert!(matches!(over, JoinError::Attach { .. }), "{over}");
    assert!(over.to_string().contains("n1") && over.to_string().contains("ended"), "{over}");
}

#[test]
fn all_meet_again_on_the_lease_that_the_first_of_them_gets() {
    let service = Service::start(&["n1", "n2", "n3"]);
    let client = service.client();
    let owner = client.acquire(request()).unwrap();
    let share = owner.share();
    let pools: Vec<Pool> = (0..3).map(|_| client.join(&share, request()).unwrap()).collect();
    let spins: Vec<_> = pools.iter().map(|pool| pool.function(&functions(), "spin")).collect();
    let tickets: Vec<_> = spins
        .iter()
        .map(|spin| spin.as_ref().unwrap().clone().idempotent(true))
        .flat_map(|spin| [(); 4].map(|()| spin.submit(&20_000_000u64.to_le_bytes()).unwrap()))
        .collect();
    let first = owner.leases()[0].node.clone();
    service.wait_started(&first);
    service.harvester.vacate(&first, EndReason::BatchJob);
    tickets.into_iter().for_each(|ticket| drop(ticket.wait().unwrap()));
    let now: BTreeSet<u64> = pools.iter().map(lease_of).collect();
    assert_eq!(now.len(), 1, "one lease for the three");
    // Once more, while the owner has not looked at its pool at all: it finds them after two.
    let (second, before) = (pools[0].leases()[0].node.clone(), lease_of(&pools[0]));
    service.harvester.vacate(&second, EndReason::BatchJob);
    for pool in pools.iter().chain([&owner]) {
        // Until the vacate has come through, the lease serves.
        wait_until("a pool has moved", PATIENCE, || {
            assert_eq!(echo(pool).idempotent(true).invoke(b"on").unwrap(), b"on");
            lease_of(pool) != before
        });
    }
    let now: BTreeSet<u64> = pools.iter().chain([&owner]).map(lease_of).collect();
    assert_eq!(now.len(), 1, "{now:?}");
    assert_eq!(service.harvester.book().leases_given(), 3);
    let late = client.join(&pools[2].share(), request()).unwrap();
    assert_eq!(lease_of(&late), lease_of(&owner));
}

#[test]
fn whoever_renews_does_it_for_all() {
    let service = Service::start(&["n1"]);
    let client = service.client();
    let short = request().ttl(Duration::from_secs(2));
    let owner = client.acquire(short.clone().keep_alive(KeepAlive::Manual)).unwrap();
    let lease = lease_of(&owner);
    for keep_alive in [KeepAlive::OnCall, KeepAlive::Background] {
        let own = request().keep_alive(keep_alive);
        let pool = client.join(&owner.share(), own).unwrap();
        let spin = pool.function(&functions(), "spin").unwrap();
        match keep_alive {
            KeepAlive::Background => thread::sleep(Duration::from_secs(3)),
            _ => (0..30).for_each(|_| drop(spin.invoke(&100_000_000u64.to_le_bytes()).unwrap())),
        }
    }
    assert_eq!(echo(&owner).invoke(b"still").unwrap(), b"still");
    assert_eq!((lease_of(&owner), owner.stats().evictions), (lease, 0));
    drop(owner);
    assert_eq!(service.wait_for_end(lease).reason, EndReason::Released as i32);
}

#[test]
fn a_pool_that_goes_without_a_word_ends_nothing_for_the_others() {
    let service = Service::start(&["n1"]);
    let owner = service.client().acquire(request()).unwrap();
    let lease = lease_of(&owner);
    let mut child = OtherProcess::join(&service, &owner.share());
    child.process.kill().unwrap();
    child.process.wait().unwrap();
    // Longer than a lease without any client is left.
    for _ in 0..30 {
        let spin = owner.function(&functions(), "spin").unwrap();
        spin.invoke(&100_000_000u64.to_le_bytes()).unwrap();
    }
    assert_eq!((lease_of(&owner), owner.stats().evictions), (lease, 0));
}

#[test]
fn what_does_not_fit_the_lease_is_refused_and_hurts_nobody() {
    let service = Service::with(&["n1"], |config| config.executor.sessions_per_lease = 2);
    let client = service.client();
    let owner = client.acquire(request()).unwrap();
    let share = owner.share();
    let large = client.join(&share, request().arena_bytes(64 << 20)).err().unwrap();
    assert!(large.to_string().contains("67108864 bytes of memory"), "{large}");
    let second = client.join(&share, request()).unwrap();
    let third = client.join(&share, request()).err().unwrap();
    assert!(third.to_string().contains("sessions_per_lease"), "{third}");
    for pool in [&owner, &second] {
        assert_eq!(echo(pool).invoke(b"on").unwrap(), b"on");
    }
    drop(second);
    let mut joined = None;
    wait_until("its place is free", PATIENCE, || {
        joined = client.join(&share, request()).ok();
        joined.is_some()
    });
    let mut bytes = share.to_bytes();
    let last = bytes.len() - 1;
    bytes.truncate(last);
    assert!(Share::from_bytes(&bytes).is_err());
}

#[test]
fn a_function_that_kills_the_worker_is_told_to_its_caller_and_moves_the_others() {
    let service = Service::start(&["n1", "n2"]);
    let client = service.client();
    let owner = client.acquire(request().cores(2)).unwrap();
    let other = client.join(&owner.share(), request()).unwrap();
    let spin = other.function(&functions(), "spin").unwrap().idempotent(true);
    let beside = spin.submit(&100_000_000u64.to_le_bytes()).unwrap();
    let crash = owner.function(&functions(), "crash").unwrap();
    let error = crash.invoke(b"3").unwrap_err();
    assert!(matches!(error, CallError::Failed(_)), "{error}");
    beside.wait().unwrap();
    for pool in [&owner, &other] {
        assert_eq!(echo(pool).idempotent(true).invoke(b"on").unwrap(), b"on");
    }
    assert_eq!(lease_of(&owner), lease_of(&other), "both have the lease that came after");
}

/// A process that joined a share which it was handed.
struct OtherProcess {
    process: std::process::Child,
}

impl OtherProcess {
    /// Starts this program again; returns when the process has called.
    fn join(service: &Service, share: &Share) -> Self {
        let options = service.options();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "joins_what_it_is_handed", "--ignored", "--nocapture"]);
        command.env("HARVESTER", &options.harvester);
        if let Auth::Munge { socket: Some(socket) } = &options.auth {
            command.env("MUNGE", socket);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut stdin = process.stdin.take().unwrap();
        stdin.write_all(&share.to_bytes()).unwrap();
        drop(stdin);
        let mut said = String::new();
        let mut output = process.stdout.take().unwrap();
        let mut byte = [0];
        while !said.contains("has called") {
            assert_eq!(output.read(&mut byte).unwrap(), 1, "it ended: {said}");
            said.push(char::from(byte[0]));
        }
        process.stdout = Some(output);
        Self { process }
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
#[ignore = "is the other process of a test"]
fn joins_what_it_is_handed() {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).unwrap();
    let share = Share::from_bytes(&bytes).unwrap();
    let munge = std::env::var_os("MUNGE").map(|path| Some(PathBuf::from(path)));
    let auth = munge.map_or(Auth::SingleUser, |socket| Auth::Munge { socket });
    let harvester = std::env::var("HARVESTER").unwrap();
    let options = Options { harvester, auth, ..Options::default() };
    let pool = Client::connect(options).unwrap().join(&share, request()).unwrap();
    assert_eq!(echo(&pool).invoke(b"from elsewhere").unwrap(), b"from elsewhere");
    println!("has called on lease {}", lease_of(&pool));
    thread::sleep(PATIENCE);
}

#[test]
fn a_flood_delays_the_others_by_one_call_a_turn() {
    let service = Service::start(&["n1"]);
    for way in WAYS {
        for quiet in [1, 3] {
            let over = |request: Request| request.transport(Transports::Only(way));
            assert_turns(&served_beside_a_flood(&service, over, quiet));
        }
    }
}
