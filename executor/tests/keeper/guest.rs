//! The same tests once more in a guest, whose only cgroups are version 2's: no other machine has all that a keeper can use.

use std::{fs, path::Path, process::Command, time::Duration};

use gleaner_testkit::guest::{Guest, Network, unsupported};

use crate::support::{Bench, groups};

/// What asks how fast the killed are gone, or how a CPU's time is shared: an emulated CPU cannot tell.
const TIMED: [&str; 3] = [
    "a_worker_gives_way_to_every_ordinary_process",
    "a_busy_node_does_not_keep_the_dead_waiting",
    "a_dying_worker_that_is_interrupted_does_not_stop_the_keeper",
];
const BOUND: Duration = Duration::from_secs(200);

/// Whether a test cannot be asked here: timed ones in a guest, and guests on a platform that has none.
pub(crate) fn skips(test: &str) -> bool {
    match Network::inside() {
        Some(_) => TIMED.contains(&test),
        None => test.contains("guest") && unsupported().is_some(),
    }
}

pub(crate) fn passes_the_same() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("--test-threads=1");
    let guest = Guest::new(Network::None).bound(BOUND);
    let output = guest.run(&command).unwrap().expect_success();
    println!("{output}");
    assert!(output.contains(&format!("{} ignored; 0 measured", TIMED.len())), "{output}");
}

/// What the other tests take for granted here: the keeper finds the controllers and uses them.
pub(crate) fn lease_has_its_group() {
    let bench = Bench::start();
    let worker = bench.leased();
    assert!(Path::new("/sys/fs/cgroup/cgroup.controllers").is_file());
    let node = groups(&bench.node_dir());
    assert_eq!(node.len(), 1, "{node:?}");
    assert_eq!(fs::read_to_string(node[0].join("cpu.idle")).unwrap(), "1\n", "idle to the machine");
    let group = fs::read_to_string(format!("/proc/{}/cgroup", worker.process.pid)).unwrap();
    let group = Path::new("/sys/fs/cgroup").join(group.trim().trim_start_matches("0::/"));
    assert!(group.starts_with(&node[0]), "{group:?}");
    let limit: u64 = fs::read_to_string(group.join("memory.max")).unwrap().trim().parse().unwrap();
    assert!(limit >= 64 << 20, "{limit}");
}
