//! The keeper, its workers' sandbox and every way in which they end: real processes, as root and as a plain user.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

mod support;

use std::{
    fs,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use gleaner_executor::{
    keeper::{
        SWITCH_FILE,
        ipc::{End, Notice, Order, StartRefusal},
    },
    sys,
};
use gleaner_proto::{
    hook::{HookAnswer, HookKind, HookMessage},
    vacates::Trigger,
};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::{
    sys::{signal::Signal, socket},
    unistd::geteuid,
};
use support::{Bench, NOBODY, groups, lives, process, signal, until};

const LONG: Duration = Duration::from_secs(600);
const SHORT: Duration = Duration::from_millis(300);
/// The bound that the hook's messages name.
const BOUND_MS: u32 = 1000;

fn main() {
    support::play_role();
    // As another user than root a part only can be tried: the list in CONTRIBUTING says where the rest runs.
    let root: &[(&str, fn())] = &[
        ("a_lease_starts_and_stops", a_lease_starts_and_stops),
        ("the_sandbox_denies", the_sandbox_denies),
        ("the_sandbox_allows", the_sandbox_allows),
        ("a_forked_process_is_denied_on_every_kind_of_machine", forks_are_denied_everywhere),
        ("memory_is_bounded", memory_is_bounded),
        ("ends_are_told_apart", ends_are_told_apart),
        ("starts_are_refused_for_their_reasons", starts_are_refused),
        ("a_deadline_holds_while_the_agent_is_stopped", deadline_with_a_stopped_agent),
        ("a_deadline_moves_only_forward_and_only_in_time", extended_in_time),
        ("a_grants_end_clears_the_node", grant_end),
        ("a_keeper_that_was_stopped_kills_before_it_starts", stopped_keeper),
        ("a_stopped_worker_dies", stopped_worker),
        ("a_killed_keeper_takes_all_with_it", killed_keeper),
        ("a_killed_agent_ends_its_leases", killed_agent),
        ("an_agent_that_does_not_read_is_replaced", deaf_agent),
        ("a_prolog_clears_and_holds_until_the_epilog", prolog_and_epilog),
        ("a_busy_node_does_not_keep_the_dead_waiting", busy_node),
        ("a_dying_worker_that_is_interrupted_does_not_stop_the_keeper", interrupted_deaths),
        ("a_newer_grant_ends_a_hold", newer_grant),
        ("hostile_hook_peers_are_closed", hostile_peers),
        ("a_waiting_worker_that_dies_is_replaced", dead_pool),
        ("a_burst_of_leases_is_served", burst),
        ("the_end_leaves_nothing", orderly_end),
        ("one_keeper_a_node", second_keeper),
        ("leftovers_are_swept_and_recorded", leftovers),
        ("a_directory_that_others_may_write_is_refused", open_directory),
        ("without_root_it_serves_its_own_user", without_root),
    ];
    let trials = root.iter().map(|&(name, test)| {
        let trial = Trial::test(name, move || {
            test();
            Ok::<(), Failed>(())
        });
        trial.with_ignored_flag(!geteuid().is_root())
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn gone(bench: &Bench, lease: u64) -> End {
    bench.find(|notice| match *notice {
        Notice::Gone { lease_id, end, .. } if lease_id == lease => Some(end),
        _ => None,
    })
}

fn vacated(bench: &Bench) -> gleaner_proto::vacates::VacateRecord {
    bench.find(|notice| match *notice {
        Notice::Vacated(record) => Some(record),
        _ => None,
    })
}

fn refused(bench: &Bench, order: Order) -> StartRefusal {
    bench.order(order);
    bench.find(|notice| match *notice {
        Notice::StartFailed { refusal, .. } => Some(refusal),
        Notice::Started { .. } => panic!("started"),
        _ => None,
    })
}

/// The hook's message, sent as the hook does.
fn hook(bench: &Bench, kind: HookKind, job_id: u32) -> HookAnswer {
    let peer = connect(bench);
    let message = HookMessage { kind, job_id, job_uid: 1000, bound_ms: BOUND_MS };
    sys::send_with_fd(peer.as_fd(), &message.encode(), None).unwrap();
    let mut bytes = [0; 64];
    let len = until("the keeper answers", || sys::recv_with_fd(peer.as_fd(), &mut bytes).ok());
    HookAnswer::decode(&bytes[..len.0]).unwrap()
}

fn connect(bench: &Bench) -> std::os::fd::OwnedFd {
    let path = bench.node_dir().join("hook.sock");
    let flags = socket::SockFlag::SOCK_CLOEXEC;
    let family = socket::AddressFamily::Unix;
    let peer = socket::socket(family, socket::SockType::SeqPacket, flags, None).unwrap();
    let address = socket::UnixAddr::new(&path).unwrap();
    socket::connect(std::os::fd::AsRawFd::as_raw_fd(&peer), &address).unwrap();
    peer
}

fn a_lease_starts_and_stops() {
    for isolation in ["auto", "namespace", "single"] {
        let bench = Bench::start_with(isolation, 0, 1);
        let worker = bench.leased();
        let ids = worker.ask("ids");
        assert!(ids.contains("Uid: 65534 65534 65534 65534"), "{ids}");
        assert!(ids.contains("Gid: 65534 65534 65534 65534"), "{ids}");
        assert!(ids.contains("CapEff: 0000000000000000"), "{ids}");
        assert!(ids.contains("NoNewPrivs: 1") && ids.contains("Seccomp: 2"), "{ids}");
        assert_eq!(worker.ask("environment"), "0");
        worker.ask("spin");
        until("it spends time", || (cpu_ticks(worker.process.pid) > 2).then_some(()));
        bench.order(Order::Stop { lease_id: 1 });
        let (end, cpu_ns, peak) = bench.find(|notice| match *notice {
            Notice::Gone { end, cpu_ns, memory_peak_bytes, .. } => {
                Some((end, cpu_ns, memory_peak_bytes))
            }
            _ => None,
        });
        assert_eq!(end, End::Stopped);
        assert!(cpu_ns > 0 && peak > 0, "{cpu_ns} {peak}");
        assert!(!lives(worker.process));
    }
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(')').next().unwrap().split(' ').nth(12).unwrap().parse().unwrap()
}

fn the_sandbox_denies() {
    let bench = Bench::start();
    let worker = bench.leased();
    let own = std::process::id();
    let denied = [
        "fork",
        "vfork-like",
        "namespace",
        "exec",
        "socket",
        "socketpair",
        "ptrace",
        "setuid",
        "deathsig",
        "dumpable",
        "priority",
        "class",
        "affinity",
        "raise-limit",
        "create",
        "temporary",
        "write-open",
        "unlink",
        "memfd",
        "io-uring",
        "bpf",
        "keyctl",
        "set-owner",
    ];
    for verb in denied {
        assert_eq!(worker.ask(verb), "EPERM", "{verb}");
    }
    for verb in ["kill", "tgkill-other", "process-vm"] {
        assert_eq!(worker.ask(&format!("{verb} {own}")), "EPERM", "{verb}");
    }
    assert_eq!(worker.ask("clone3"), "ENOSYS");
    let fds = fs::read_dir(format!("/proc/{}/fd", worker.process.pid)).unwrap();
    let open: Vec<_> = fds.map(|fd| fs::read_link(fd.unwrap().path()).unwrap()).collect();
    let sockets = open.iter().filter(|path| path.to_string_lossy().starts_with("socket:")).count();
    let nowhere = open.iter().filter(|path| path.as_os_str() == "/dev/null").count();
    assert_eq!((sockets, nowhere, open.len()), (1, 3, 4), "{open:?}");
    let idle = fs::read_to_string(format!("/proc/{}/sched", worker.process.pid)).unwrap();
    let policy = idle.lines().find(|line| line.starts_with("policy")).unwrap();
    assert!(policy.ends_with('5'), "SCHED_IDLE: {policy}");
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", worker.process.pid)).unwrap();
    assert_eq!(score.trim(), "1000");
}

fn the_sandbox_allows() {
    let bench = Bench::start();
    let worker = bench.leased();
    for verb in ["tgkill-self", "read-limit", "read-open", "dlopen", "print"] {
        assert_eq!(worker.ask(verb), "0", "{verb}");
    }
    assert_eq!(worker.ask("thread"), "ran");
    assert_eq!(worker.ask("allocate 8388608"), (8_388_608 / 4096).to_string());
}

fn forks_are_denied_everywhere() {
    for isolation in ["namespace", "single"] {
        let bench = Bench::start_with(isolation, 0, 1);
        let worker = bench.leased();
        assert_eq!(worker.ask("fork"), "EPERM", "{isolation}");
        assert_eq!(worker.ask("thread"), "ran", "{isolation}");
        assert_eq!(worker.ask("tgkill-self"), "0", "{isolation}");
    }
}

fn memory_is_bounded() {
    let bench = Bench::start();
    let worker = bench.leased();
    worker.tell(&format!("allocate {}", 256 << 20));
    assert_eq!(gone(&bench, 1), End::OutOfMemory);
}

fn ends_are_told_apart() {
    let bench = Bench::start();
    let worker = bench.leased();
    worker.tell("exit 7");
    assert_eq!(gone(&bench, 1), End::Exited(7));
    let worker = bench.lease(2, 1, LONG);
    worker.tell("crash");
    assert_eq!(gone(&bench, 2), End::Signalled(libc::SIGABRT));
    let worker = bench.lease(3, 1, LONG);
    signal(worker.process.pid, Signal::SIGKILL);
    assert_eq!(gone(&bench, 3), End::Signalled(libc::SIGKILL));
}

fn starts_are_refused() {
    let bench = Bench::start();
    assert_eq!(refused(&bench, Bench::wanted(1, 1, 0, LONG)), StartRefusal::Epoch, "no grant");
    let _worker = bench.leased();
    let wanted = |lease_id| Bench::wanted(lease_id, 1, NOBODY, LONG);
    let changed = |uid, gid, cores, memory_bytes| match wanted(2) {
        Order::Start { lease_id, epoch, deadline_ns, .. } => {
            Order::Start { lease_id, epoch, uid, gid, cores, memory_bytes, deadline_ns }
        }
        other => other,
    };
    assert_eq!(refused(&bench, wanted(1)), StartRefusal::Duplicate);
    assert_eq!(
        refused(&bench, Bench::wanted(2, 2, NOBODY, LONG)),
        StartRefusal::Epoch,
        "not granted"
    );
    assert_eq!(
        refused(&bench, Bench::wanted(2, 1, NOBODY, Duration::ZERO)),
        StartRefusal::Epoch,
        "over"
    );
    assert_eq!(refused(&bench, changed(2, 2, 1, 1 << 20)), StartRefusal::Identity, "a system user");
    assert_eq!(
        refused(&bench, changed(NOBODY, 0, 1, 1 << 20)),
        StartRefusal::Identity,
        "root's group"
    );
    assert_eq!(
        refused(&bench, changed(NOBODY, NOBODY, 0, 1 << 20)),
        StartRefusal::Shape,
        "no core"
    );
    assert_eq!(
        refused(&bench, changed(NOBODY, NOBODY, 64, 1 << 20)),
        StartRefusal::Shape,
        "one is taken"
    );
    assert_eq!(
        refused(&bench, changed(NOBODY, NOBODY, 1, 8 << 30)),
        StartRefusal::Shape,
        "some is taken"
    );
    let switch = bench.dir.path().join("run").join(SWITCH_FILE);
    fs::write(&switch, "").unwrap();
    assert_eq!(refused(&bench, wanted(2)), StartRefusal::SwitchedOff);
    fs::remove_file(&switch).unwrap();
    bench.lease(2, 1, LONG);
}

fn deadline_with_a_stopped_agent() {
    let bench = Bench::start();
    bench.grant(1, LONG);
    let worker = bench.lease(1, 1, SHORT);
    signal(bench.agent_pid, Signal::SIGSTOP);
    until("the worker ends", || (!lives(worker.process)).then_some(()));
    signal(bench.agent_pid, Signal::SIGCONT);
    assert_eq!(gone(&bench, 1), End::Deadline);
}

fn extended_in_time() {
    let bench = Bench::start();
    bench.grant(1, LONG);
    let worker = bench.lease(1, 1, SHORT);
    let deadline_ns = sys::boottime_ns() + LONG.as_nanos() as u64;
    bench.order(Order::Extend { lease_id: 1, deadline_ns });
    let short = bench.lease(2, 1, SHORT);
    assert_eq!(gone(&bench, 2), End::Deadline);
    bench.order(Order::Extend { lease_id: 2, deadline_ns });
    assert!(!lives(short.process) && lives(worker.process));
}

fn grant_end() {
    let bench = Bench::start_with("auto", 0, 1);
    bench.grant(1, Duration::from_secs(2));
    let worker = bench.lease(1, 1, LONG);
    assert_eq!(gone(&bench, 1), End::Vacated);
    let record = vacated(&bench);
    assert_eq!(
        (record.trigger, record.epoch, record.leases, record.remaining),
        (Trigger::GrantEnd, 1, 1, 0)
    );
    assert!(!lives(worker.process) && bench.table().is_empty(), "the pool goes too");
    assert_eq!(bench.records(), [record]);
    bench.grant(1, LONG);
    assert_eq!(
        refused(&bench, Bench::wanted(2, 1, 0, LONG)),
        StartRefusal::Epoch,
        "an epoch that is over"
    );
    bench.grant(2, LONG);
    bench.lease(3, 2, LONG);
}

fn stopped_keeper() {
    let bench = Bench::start();
    bench.grant(1, LONG);
    let worker = bench.lease(1, 1, SHORT);
    signal(bench.keeper_pid(), Signal::SIGSTOP);
    let over_ns = sys::boottime_ns() + 2 * SHORT.as_nanos() as u64;
    bench.order(Bench::wanted(2, 1, 0, SHORT));
    until("both are over", || (sys::boottime_ns() > over_ns).then_some(()));
    assert!(lives(worker.process));
    signal(bench.keeper_pid(), Signal::SIGCONT);
    let (mut first_gone, mut refused) = (false, false);
    until("both are answered", || {
        match bench.notice().0 {
            Notice::Gone { lease_id: 1, end: End::Deadline, .. } => first_gone = true,
            Notice::StartFailed { lease_id: 2, refusal: StartRefusal::Epoch, .. } => refused = true,
            other => panic!("{other:?}"),
        }
        (first_gone && refused).then_some(())
    });
}

fn stopped_worker() {
    for isolation in ["auto", "namespace", "single"] {
        let bench = Bench::start_with(isolation, 0, 1);
        let worker = bench.leased();
        signal(worker.process.pid, Signal::SIGSTOP);
        bench.order(Order::Stop { lease_id: 1 });
        assert_eq!(gone(&bench, 1), End::Stopped);
        assert!(!lives(worker.process));
    }
}

fn killed_keeper() {
    for isolation in ["auto", "namespace", "single"] {
        let mut bench = Bench::start_with(isolation, 0, 1);
        let worker = bench.leased();
        worker.ask("spin");
        let pool = until("the pool is filled", || {
            bench.table().into_iter().find(|entry| entry.lease_id == 0)
        });
        let agent = process(bench.agent_pid);
        signal(agent.pid, Signal::SIGSTOP);
        signal(bench.keeper_pid(), Signal::SIGKILL);
        bench.keeper_ends();
        for child in [worker.process, pool.process, agent] {
            until("a child of a killed keeper ends", || (!lives(child)).then_some(()));
        }
        bench.restart();
        let record = bench.records()[0];
        assert_eq!((record.trigger, record.leases, record.remaining), (Trigger::KeeperStart, 1, 0));
        bench.stop();
        assert!(groups(&bench.node_dir()).is_empty(), "{:?}", groups(&bench.node_dir()));
    }
}

fn killed_agent() {
    let mut bench = Bench::start();
    let worker = bench.leased();
    signal(bench.agent_pid, Signal::SIGKILL);
    until("its worker ends", || (!lives(worker.process)).then_some(()));
    bench.next_agent();
    let record = bench.records()[0];
    assert_eq!((record.trigger, record.epoch, record.leases), (Trigger::AgentDead, 1, 1));
    bench.grant(1, LONG);
    assert_eq!(
        refused(&bench, Bench::wanted(2, 1, 0, LONG)),
        StartRefusal::Epoch,
        "its epoch is dead"
    );
    bench.grant(2, LONG);
    bench.lease(2, 2, LONG);
}

fn deaf_agent() {
    let mut bench = Bench::start();
    let worker = bench.leased();
    let deaf = process(bench.agent_pid);
    signal(deaf.pid, Signal::SIGSTOP);
    until("notices pile up until it is killed", || {
        let _ = hook(&bench, HookKind::Epilog, 1);
        (!lives(deaf)).then_some(())
    });
    until("its worker ends", || (!lives(worker.process)).then_some(()));
    bench.next_agent();
}

fn prolog_and_epilog() {
    for isolation in ["auto", "namespace", "single"] {
        let bench = Bench::start_with(isolation, 0, 1);
        let worker = bench.leased();
        worker.ask("spin");
        signal(worker.process.pid, Signal::SIGSTOP);
        let answer = hook(&bench, HookKind::Prolog, 77);
        assert!(!lives(worker.process) && bench.table().is_empty());
        assert_eq!((answer.leases, answer.remaining), (1, 0));
        assert!(answer.steps_us.is_sorted() && answer.steps_us[2] > 0, "{:?}", answer.steps_us);
        assert!(matches!(
            bench.notice().0,
            Notice::Fenced { trigger: Trigger::Prolog, epoch: 1, job_id: 77, .. }
        ));
        assert_eq!(gone(&bench, 1), End::Vacated);
        let record = vacated(&bench);
        assert_eq!((record.job_id, record.job_uid, record.leases), (77, 1000, 1));
        assert_eq!(bench.records(), [record]);
        assert!(matches!(bench.notice().0, Notice::JobEvent { ended: false, job_id: 77, .. }));
        assert_eq!(refused(&bench, Bench::wanted(2, 1, 0, LONG)), StartRefusal::Held);
        assert_eq!(hook(&bench, HookKind::Epilog, 77), HookAnswer::default());
        assert!(matches!(bench.notice().0, Notice::JobEvent { ended: true, job_id: 77, .. }));
        assert_eq!(refused(&bench, Bench::wanted(2, 1, 0, LONG)), StartRefusal::Epoch);
        bench.grant(2, LONG);
        bench.lease(2, 2, LONG);
    }
}

/// Killed threads of the idle class must get the CPU from threads that want all of it.
fn busy_node() {
    let bench = Bench::start_with("auto", 0, 4);
    bench.grant(1, LONG);
    let workers: Vec<_> = (1..=8).map(|lease| bench.lease(lease, 1, LONG)).collect();
    workers.iter().for_each(|worker| drop(worker.ask("spin")));
    let over = AtomicBool::new(false);
    let answer = std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let answer = hook(&bench, HookKind::Prolog, 3);
        over.store(true, Ordering::Relaxed);
        answer
    });
    assert_eq!((answer.leases, answer.remaining), (8, 0), "{:?}", answer.steps_us);
}

/// A monitor that looks at `/proc` is interrupted there by the keeper that the workers' end wakes: a keeper that waited for
/// it in its real-time class would spin for seconds, and for a thread that it hurried into that class for ever.
fn interrupted_deaths() {
    let bench = Bench::start_with("auto", 0, 4);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let cpus = std::thread::available_parallelism().unwrap().get();
        for cpu in 0..cpus {
            let over = &over;
            scope.spawn(move || watch_processes(cpu, over));
        }
        let _stop = StopWatching(&over);
        for round in 1..=100 {
            bench.grant(round, LONG);
            let leases = round * 8..round * 8 + 4;
            let workers: Vec<_> = leases.map(|lease| bench.lease(lease, round, LONG)).collect();
            workers.iter().for_each(|worker| drop(worker.ask("spin")));
            let answer = hook(&bench, HookKind::Prolog, round as u32);
            assert_eq!((answer.leases, answer.remaining), (4, 0), "{round}: {:?}", answer.steps_us);
            let answered_us = answer.steps_us[3];
            assert!(answered_us < BOUND_MS * 1000, "{round}: the hook gave up after {BOUND_MS} ms");
            hook(&bench, HookKind::Epilog, round as u32);
            bench.find(|notice| {
                matches!(notice, Notice::JobEvent { ended: true, .. }).then_some(())
            });
        }
    });
}

/// Also when the test fails.
struct StopWatching<'a>(&'a AtomicBool);

impl Drop for StopWatching<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads what there is of all threads, on one CPU.
fn watch_processes(cpu: usize, over: &AtomicBool) {
    let mut own = nix::sched::CpuSet::new();
    own.set(cpu).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &own).unwrap();
    while !over.load(Ordering::Relaxed) {
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let threads = fs::read_dir(process.path().join("task")).into_iter().flatten().flatten();
            threads.for_each(|thread| drop(fs::read(thread.path().join("stat"))));
        }
    }
}

fn newer_grant() {
    let mut bench = Bench::start();
    bench.grant(1, LONG);
    hook(&bench, HookKind::Prolog, 5);
    hook(&bench, HookKind::Prolog, 6);
    signal(bench.keeper_pid(), Signal::SIGKILL);
    bench.keeper_ends();
    bench.keeper = Some(bench.command().spawn().unwrap());
    let welcome = bench.next_agent();
    assert!(matches!(welcome, Notice::Welcome { hold_job_id: 5 | 6, .. }), "{welcome:?}");
    assert_eq!(refused(&bench, Bench::wanted(1, 1, 0, LONG)), StartRefusal::Held);
    bench.grant(2, LONG);
    bench.lease(1, 2, LONG);
}

fn hostile_peers() {
    let bench = Bench::start();
    let worker = bench.leased();
    let silent: Vec<_> = (0..12).map(|_| connect(&bench)).collect();
    let mut other =
        HookMessage { kind: HookKind::Prolog, job_id: 1, job_uid: 0, bound_ms: 100 }.encode();
    other[6] = 9;
    for bytes in [&other[..], &[0; 64], &[1; 3]] {
        let peer = connect(&bench);
        sys::send_with_fd(peer.as_fd(), bytes, None).unwrap();
        let closed =
            until("the peer is closed", || match sys::recv_with_fd(peer.as_fd(), &mut [0; 64]) {
                Ok((len, _)) => Some(len == 0),
                Err(error) => (error.kind() != std::io::ErrorKind::WouldBlock).then_some(true),
            });
        assert!(closed);
    }
    assert!(lives(worker.process));
    let mode = fs::metadata(bench.node_dir().join("hook.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(hook(&bench, HookKind::Prolog, 7).leases, 1, "after all of them");
    drop(silent);
}

fn dead_pool() {
    let bench = Bench::start();
    bench.grant(1, LONG);
    let first = until("the pool is filled", || bench.table().first().copied());
    signal(first.process.pid, Signal::SIGKILL);
    let second = until("it is filled again", || {
        bench.table().into_iter().find(|entry| entry.process != first.process)
    });
    let worker = bench.lease(1, 1, LONG);
    assert_eq!(worker.process, second.process, "the one that waited");
}

fn burst() {
    let bench = Bench::start_with("auto", 0, 1);
    bench.grant(1, LONG);
    const LEASES: u64 = 20;
    (1..=LEASES).for_each(|lease| bench.order(Bench::wanted(lease, 1, 0, LONG)));
    let mut pids = std::collections::BTreeSet::new();
    while pids.len() < LEASES as usize {
        match bench.notice() {
            (Notice::Started { pid, .. }, Some(_)) => assert!(pids.insert(pid)),
            other => panic!("{other:?}"),
        }
    }
    let answer = hook(&bench, HookKind::Prolog, 9);
    assert_eq!((u64::from(answer.leases), answer.remaining), (LEASES, 0));
    assert!(pids.iter().all(|&pid| !lives(process(pid))));
}

fn orderly_end() {
    for isolation in ["auto", "namespace", "single"] {
        let mut bench = Bench::start_with(isolation, 0, 1);
        let worker = bench.leased();
        let agent = process(bench.agent_pid);
        let pool = until("the pool is filled", || {
            bench.table().into_iter().find(|entry| entry.lease_id == 0)
        });
        assert!(bench.stop().success());
        for child in [worker.process, pool.process, agent] {
            assert!(!lives(child));
        }
        assert_eq!(bench.records()[0].trigger, Trigger::Shutdown);
        assert!(groups(&bench.node_dir()).is_empty(), "{:?}", groups(&bench.node_dir()));
        assert!(bench.table().is_empty());
        for name in ["hook.sock", "agent.sock"] {
            assert!(!bench.node_dir().join(name).exists(), "{name}");
        }
    }
}

fn second_keeper() {
    let bench = Bench::start();
    let worker = bench.leased();
    let second = bench.command().output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(
        said.contains("has a keeper already") && said.contains(&bench.keeper_pid().to_string()),
        "{said}"
    );
    assert!(lives(worker.process));
}

fn leftovers() {
    use gleaner_proto::workers::{Entry, Process};
    use std::os::unix::fs::FileExt;
    let mut bench = Bench::start();
    signal(bench.keeper_pid(), Signal::SIGKILL);
    bench.keeper_ends();
    // A worker that outlived its keeper, and a stranger that has a worker's old pid.
    let mut left = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let mut stranger = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    let own = |child: &std::process::Child| process(child.id());
    let reused = Process { start: own(&stranger).start - 1, ..own(&stranger) };
    let table = fs::File::options().write(true).open(bench.node_dir().join("workers")).unwrap();
    for (index, (process, lease_id)) in [(own(&left), 4), (reused, 5)].into_iter().enumerate() {
        table.write_all_at(&Entry { process, lease_id }.encode(), Entry::offset(index)).unwrap();
    }
    bench.restart();
    let record = bench.records()[0];
    let found = (record.trigger, record.leases, record.processes, record.remaining);
    assert_eq!(found, (Trigger::KeeperStart, 2, 1, 0));
    until("the leftover is dead", || left.try_wait().unwrap());
    assert!(stranger.try_wait().unwrap().is_none(), "the pid was another's");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

fn open_directory() {
    let bench = Bench::prepare("auto", 0, 1);
    fs::create_dir(bench.node_dir()).unwrap();
    fs::set_permissions(bench.node_dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let keeper = bench.command().output().unwrap();
    assert!(!keeper.status.success());
    assert!(String::from_utf8_lossy(&keeper.stderr).contains("others may write"));
}

fn without_root() {
    let mut bench = Bench::start_with("auto", NOBODY, 1);
    bench.grant(1, LONG);
    assert_eq!(refused(&bench, Bench::wanted(1, 1, 0, LONG)), StartRefusal::Identity, "not root's");
    assert_eq!(
        refused(&bench, Bench::wanted(1, 1, 1000, LONG)),
        StartRefusal::Identity,
        "not another's"
    );
    let worker = bench.lease(1, 1, LONG);
    assert_eq!(worker.ask("fork"), "EPERM");
    assert_eq!(worker.ask(&format!("reserve {}", 1u64 << 30)), "false", "RLIMIT_DATA");
    assert_eq!(worker.ask(&format!("reserve {}", 40 << 20)), "true");
    bench.order(Order::Stop { lease_id: 1 });
    assert_eq!(gone(&bench, 1), End::Stopped);
    let worker = bench.lease(2, 1, LONG);
    signal(bench.keeper_pid(), Signal::SIGKILL);
    bench.keeper_ends();
    until("its worker ends with it", || (!lives(worker.process)).then_some(()));
}
