//! Runs this folder's tests that need a device in a virtual machine that has one.
#![allow(clippy::unwrap_used)]

use std::{process::Command, time::Duration};

use gleaner_testkit::guest::{Guest, Network, unsupported};

const BOUND: Duration = Duration::from_secs(180);

#[test]
fn guest_passes_what_needs_a_device() {
    if let Some(why) = unsupported() {
        eprintln!("ignored: {why}");
        return;
    }
    let mut own = Command::new(std::env::current_exe().unwrap());
    own.args(["rdma::", "--ignored", "--test-threads=1"]);
    let guest = Guest::new(Network::Loopback).bound(BOUND);
    let output = guest.run(&own).unwrap().expect_success();
    println!("{output}");
    assert!(!output.contains("running 0 tests"), "{output}");
}
