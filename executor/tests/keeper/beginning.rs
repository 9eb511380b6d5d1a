//! Where a keeper does not start, and what it does without root.

use std::{fs, os::unix::fs::PermissionsExt};

use gleaner_executor::keeper::ipc::{End, Order, StartRefusal};
use nix::sys::signal::Signal;

use crate::{
    LONG, gone, refused,
    support::{Bench, NOBODY, lives, signal, until},
};

pub(crate) fn second_keeper() {
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

pub(crate) fn open_directory() {
    let bench = Bench::prepare("auto", 0, 1);
    fs::create_dir(bench.node_dir()).unwrap();
    fs::set_permissions(bench.node_dir(), fs::Permissions::from_mode(0o777)).unwrap();
    let keeper = bench.command().output().unwrap();
    assert!(!keeper.status.success());
    assert!(String::from_utf8_lossy(&keeper.stderr).contains("others may write"));
}

pub(crate) fn without_root() {
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
