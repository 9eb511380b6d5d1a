//! The hook: what it clears, on a busy node too, what it holds, and who may not play it.

use std::{
    fs,
    os::fd::AsFd,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use gleaner_executor::{
    keeper::ipc::{End, Notice, StartRefusal},
    sys,
};
use gleaner_proto::{
    hook::{HookAnswer, HookKind, HookMessage},
    vacates::Trigger,
};
use nix::sys::signal::Signal;

use crate::{
    BOUND_MS, LONG, gone, hook, refused,
    support::{Bench, lives, signal, until},
    vacated,
};

pub(crate) fn prolog_and_epilog() {
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
pub(crate) fn busy_node() {
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
        let _over = Over(&over);
        hook(&bench, HookKind::Prolog, 3)
    });
    assert_eq!((answer.leases, answer.remaining), (8, 0), "{:?}", answer.steps_us);
}

/// A monitor that looks at `/proc` is interrupted there by the keeper that the workers' end wakes: a keeper that waited for
/// it in its real-time class would spin for seconds, and for a thread that it hurried into that class for ever.
pub(crate) fn interrupted_deaths() {
    let bench = Bench::start_with("auto", 0, 4);
    // Only beside the hook: workers that start give way to monitors, on every CPU for as long as these look.
    let (over, watching) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let cpus = std::thread::available_parallelism().unwrap().get();
        for cpu in 0..cpus {
            let (over, watching) = (&over, &watching);
            scope.spawn(move || watch_processes(cpu, over, watching));
        }
        let _over = Over(&over);
        for round in 1..=100 {
            bench.grant(round, LONG);
            let leases = round * 8..round * 8 + 4;
            let workers: Vec<_> = leases.map(|lease| bench.lease(lease, round, LONG)).collect();
            workers.iter().for_each(|worker| drop(worker.ask("spin")));
            watching.store(true, Ordering::Relaxed);
            let answer = hook(&bench, HookKind::Prolog, round as u32);
            watching.store(false, Ordering::Relaxed);
            let answered_us = answer.steps_us[3];
            assert_eq!(answer.leases, 4, "{round}: {answer:?}");
            assert!(answered_us < BOUND_MS * 1000, "{round}: the hook gave up after {BOUND_MS} ms");
            hook(&bench, HookKind::Epilog, round as u32);
            // The dying may have to wait for the monitor, which is the hook's to see to: the keeper must not.
            let (mut gone, mut over) = (0, false);
            bench.find(|notice| {
                gone += usize::from(matches!(notice, Notice::Gone { .. }));
                over |= matches!(notice, Notice::JobEvent { ended: true, .. });
                (gone == 4 && over).then_some(())
            });
        }
    });
}

/// Ends what runs beside a test, also when it fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads what there is of all threads, on one CPU, while it is to watch.
fn watch_processes(cpu: usize, over: &AtomicBool, watching: &AtomicBool) {
    let mut own = nix::sched::CpuSet::new();
    own.set(cpu).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &own).unwrap();
    while !over.load(Ordering::Relaxed) {
        if !watching.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_micros(100));
            continue;
        }
        for process in fs::read_dir("/proc").unwrap().flatten() {
            let threads = fs::read_dir(process.path().join("task")).into_iter().flatten().flatten();
            threads.for_each(|thread| drop(fs::read(thread.path().join("stat"))));
        }
    }
}

pub(crate) fn newer_grant() {
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

pub(crate) fn hostile_peers() {
    let bench = Bench::start();
    let worker = bench.leased();
    let silent: Vec<_> = (0..12).map(|_| bench.dial_hook().unwrap()).collect();
    let mut other =
        HookMessage { kind: HookKind::Prolog, job_id: 1, job_uid: 0, bound_ms: 100 }.encode();
    other[6] = 9;
    for bytes in [&other[..], &[0; 64], &[1; 3]] {
        let peer = bench.dial_hook().unwrap();
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
