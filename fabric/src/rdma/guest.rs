//! Runs this folder's tests that need a device where there is one: in virtual machines, alone and between two hosts.
#![allow(clippy::unwrap_used)]

use std::{process::Command, time::Duration};

use gleaner_testkit::guest::{Guest, Network, unsupported};

use super::tests::puppet::{DEVICE, PUPPET};

const BOUND: Duration = Duration::from_secs(400);
/// What the client's host runs, and the other one.
const PLAYS: &str = "rdma::tests::puppet::plays_the_client";
const SUITE: &str = "rdma::tests::apart::";
/// The tests of that suite.
const SUITE_TESTS: usize = 20;

/// This program's ignored tests, by these words.
fn own(words: &[&str]) -> Command {
    let mut own = Command::new(std::env::current_exe().unwrap());
    own.args(words).args(["--ignored", "--test-threads=1"]);
    own
}

fn unsupported_here() -> bool {
    unsupported().inspect(|why| eprintln!("ignored: {why}")).is_some()
}

fn ran_the_suite(output: &str) {
    println!("{output}");
    assert!(output.contains(&format!("test result: ok. {SUITE_TESTS} passed")), "{output}");
}

#[test]
fn guest_passes_what_needs_a_device() {
    if unsupported_here() {
        return;
    }
    let tests = own(&["rdma::", "--skip", SUITE, "--skip", PLAYS]);
    let guest = Guest::new(Network::Loopback).bound(BOUND);
    let output = guest.run(&tests).unwrap().expect_success();
    println!("{output}");
    assert!(!output.contains("running 0 tests"), "{output}");
}

#[test]
fn guest_passes_the_suite_between_two_namespaces() {
    if unsupported_here() {
        return;
    }
    let mut both = Command::new("sh");
    both.args(["-ec", BETWEEN_NAMESPACES]).arg(std::env::current_exe().unwrap());
    both.args([PLAYS, SUITE]).env(PUPPET, "10.98.0.2:7471");
    let guest = Guest::new(Network::Namespaces).bound(BOUND);
    let output = guest.run(&both).unwrap().expect_success();
    ran_the_suite(&output);
    let crossed = output.lines().find_map(|line| line.strip_prefix("crossed "));
    let bytes: u64 = crossed.unwrap().parse().unwrap();
    assert!(bytes > 64 << 20, "{bytes} bytes took the cable: fewer than were sent");
}

/// Given: this program, the puppet's test, the suite's. The puppet has no end of its own.
const BETWEEN_NAMESPACES: &str = "
    in_host() {
        host=$1
        shift
        exec ip netns exec $host env GLEANER_DEVICE=$DEVICE \"$@\" --ignored --test-threads=1
    }
    rdma system | grep -q shared
    DEVICE=rxe1 in_host right \"$0\" --exact \"$1\" &
    (DEVICE=rxe0 in_host left \"$0\" \"$2\")
    kill $!
    echo crossed $(ip netns exec right cat /sys/class/net/right/statistics/tx_bytes)";

#[test]
fn guests_pass_the_suite_between_two_machines() {
    if unsupported_here() {
        return;
    }
    let on = |mut command: Command| {
        command.env(PUPPET, "10.97.0.1:7471").env(DEVICE, "rxe0");
        command
    };
    let (puppet, suite) = (on(own(&["--exact", PLAYS])), on(own(&[SUITE])));
    let guest = Guest::new(Network::Wire).bound(BOUND);
    ran_the_suite(&guest.run_served([&puppet, &suite]).unwrap().expect_success());
}
