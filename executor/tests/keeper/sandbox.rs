//! What a worker may do, and what it may not.

use std::fs;

use crate::support::Bench;

pub(crate) fn the_sandbox_denies() {
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
        "verbs",
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

pub(crate) fn the_sandbox_allows() {
    let bench = Bench::start();
    let worker = bench.leased();
    for verb in ["tgkill-self", "read-limit", "read-open", "dlopen", "print"] {
        assert_eq!(worker.ask(verb), "0", "{verb}");
    }
    assert_eq!(worker.ask("thread"), "ran");
    assert_eq!(worker.ask("allocate 8388608"), (8_388_608 / 4096).to_string());
}

pub(crate) fn forks_are_denied_everywhere() {
    for isolation in ["namespace", "single"] {
        let bench = Bench::start_with(isolation, 0, 1);
        let worker = bench.leased();
        assert_eq!(worker.ask("fork"), "EPERM", "{isolation}");
        assert_eq!(worker.ask("thread"), "ran", "{isolation}");
        assert_eq!(worker.ask("tgkill-self"), "0", "{isolation}");
    }
}
