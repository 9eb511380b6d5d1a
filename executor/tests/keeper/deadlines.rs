//! Ends of leases and grants, kept by the keeper whoever is stopped.

use std::time::Duration;

use gleaner_executor::{
    keeper::ipc::{End, Notice, Order, StartRefusal},
    sys,
};
use gleaner_proto::vacates::Trigger;
use nix::sys::signal::Signal;

use crate::{
    LONG, SHORT, gone, refused,
    support::{Bench, lives, signal, until},
    vacated,
};

pub(crate) fn deadline_with_a_stopped_agent() {
    let bench = Bench::start();
    bench.grant(1, LONG);
    let worker = bench.lease(1, 1, SHORT);
    signal(bench.agent_pid, Signal::SIGSTOP);
    until("the worker ends", || (!lives(worker.process)).then_some(()));
    signal(bench.agent_pid, Signal::SIGCONT);
    assert_eq!(gone(&bench, 1), End::Deadline);
}

pub(crate) fn extended_in_time() {
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

pub(crate) fn grant_end() {
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

pub(crate) fn stopped_keeper() {
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
