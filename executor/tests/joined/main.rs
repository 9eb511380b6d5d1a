//! The whole service between two machines: the executor on one, the client on the other, joined by a wire that has a device
//! at each end. Which transport is chosen, what is left of a lease, and what a client is told when something goes away.
//!
//! ```text
//! guest 1: host::serves ── Service ◀──── control streams, verbs ────▶ client's tests :guest 2
//!               └◀───────────── Host: orders, one line each ─────────────────┘
//! ```
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

mod choice;
mod departures;
mod doomed;
mod host;
#[path = "../service/mod.rs"]
mod service;

use std::{process::Command, time::Duration};

use gleaner_testkit::guest::{Guest, Network, unsupported};

/// Where the machine that serves is on the wire.
const HOST: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 97, 0, 1);

/// Runs these tests on one machine while the other serves.
fn pass(tests: &str) {
    if let Some(why) = unsupported() {
        eprintln!("ignored: {why}");
        return;
    }
    // What a test that hangs has said so far is shown with its machine's end.
    let own = |words: &[&str]| {
        let mut own = Command::new(std::env::current_exe().unwrap());
        own.args(words).args(["--ignored", "--test-threads=1", "--nocapture"]);
        own
    };
    let serves = own(&["--exact", "host::serves"]);
    let guest = Guest::new(Network::Wire).bound(Duration::from_secs(240));
    let output = guest.run_served([&serves, &own(&[tests])]).unwrap().expect_success();
    println!("{output}");
    assert!(!output.contains("running 0 tests"), "{output}");
}

#[test]
fn guests_choose_their_transport() {
    pass("choice::");
}

#[test]
fn guests_part() {
    pass("departures::");
}
