//! Leases: started, refused, kept apart, and told how they ended.

use std::{fs, time::Duration};

use gleaner_executor::keeper::{
    SWITCH_FILE,
    ipc::{End, Notice, Order, StartRefusal},
};
use gleaner_proto::hook::HookKind;
use nix::sys::signal::Signal;

use crate::{
    LONG, gone, hook, refused,
    support::{Bench, NOBODY, lives, process, signal, until},
};

pub(crate) fn a_lease_starts_and_stops() {
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

pub(crate) fn memory_is_bounded() {
    let bench = Bench::start();
    let worker = bench.leased();
    worker.tell(&format!("allocate {}", 256 << 20));
    assert_eq!(gone(&bench, 1), End::OutOfMemory);
}

pub(crate) fn ends_are_told_apart() {
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

pub(crate) fn starts_are_refused() {
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

pub(crate) fn dead_pool() {
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

pub(crate) fn burst() {
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
