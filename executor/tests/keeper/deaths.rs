//! Workers, agents and keepers that are stopped, deaf or killed, and what is left of them: nothing.

use std::fs;

use gleaner_executor::keeper::ipc::{End, Order, StartRefusal};
use gleaner_proto::{hook::HookKind, vacates::Trigger};
use nix::sys::signal::Signal;

use crate::{
    LONG, gone, hook, refused,
    support::{Bench, groups, lives, process, signal, until},
};

pub(crate) fn stopped_worker() {
    for isolation in ["auto", "namespace", "single"] {
        let bench = Bench::start_with(isolation, 0, 1);
        let worker = bench.leased();
        signal(worker.process.pid, Signal::SIGSTOP);
        bench.order(Order::Stop { lease_id: 1 });
        assert_eq!(gone(&bench, 1), End::Stopped);
        assert!(!lives(worker.process));
    }
}

pub(crate) fn killed_keeper() {
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

pub(crate) fn killed_agent() {
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

pub(crate) fn deaf_agent() {
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

pub(crate) fn orderly_end() {
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

pub(crate) fn leftovers() {
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
