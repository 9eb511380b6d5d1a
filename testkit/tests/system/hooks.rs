//! The hook when there is nobody to answer, and what a batch job feels of it: nothing.

use std::{
    fs,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    process::Command,
    time::Duration,
};

use gleaner_proto::hook::{HOOK_LEN, HOOK_SOCKET, HookKind, HookMessage};
use gleaner_testkit::{Service, process::run_bounded, slurm::Cluster};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, listen, send, socket,
};

use crate::support::{
    BOUND, acquire, assert_call_works, assert_slurm_is_well, function, harvested, wait_gone,
};

#[test]
fn no_executor_at_all_is_no_trouble_for_jobs() {
    let hook = gleaner_testkit::service::Programs::find().unwrap().path("gleaner-hook");
    let cluster = Cluster::builder().nodes(2).hook(hook).start().unwrap();
    for _ in 0..3 {
        assert_eq!(cluster.srun(&["-N2", "echo", "ran"]).unwrap(), "ran\nran\n");
    }
    assert_eq!(cluster.states().unwrap().len(), 2);
    for node in cluster.nodes() {
        cluster.wait_idle(node, BOUND);
    }
}

#[test]
fn a_socket_without_a_keeper_or_with_a_deaf_one_costs_no_more_than_the_bound() {
    let directory = tempfile::tempdir().unwrap();
    let node = directory.path().join("n1");
    fs::create_dir(&node).unwrap();
    let path = node.join(HOOK_SOCKET);

    let dead = seqpacket();
    bind(dead.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
    run_hook(directory.path());

    // It listens and never accepts; then its queue is full as well.
    listen(&dead, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    run_hook(directory.path());
    let mut full = Vec::new();
    loop {
        let one = socket_nonblocking();
        match connect(one.as_raw_fd(), &UnixAddr::new(&path).unwrap()) {
            Ok(()) => full.push(one),
            Err(_) => break,
        }
    }
    run_hook(directory.path());
}

#[test]
fn a_message_of_another_version_is_answered_by_nothing_and_harms_nothing() {
    let service = harvested(1);
    let pool = acquire(&service, 1);
    let sum = function(&pool, "sum");
    let message = HookMessage { kind: HookKind::Prolog, job_id: 1, job_uid: 0, bound_ms: 200 };
    let mut bytes = message.encode();
    bytes[6] = 99;
    for bytes in [&bytes[..], &[0; HOOK_LEN][..], &[1][..]] {
        let stream = seqpacket();
        let address = UnixAddr::new(&service.node_dir("n1").join(HOOK_SOCKET)).unwrap();
        connect(stream.as_raw_fd(), &address).unwrap();
        send(stream.as_raw_fd(), bytes, nix::sys::socket::MsgFlags::MSG_NOSIGNAL).unwrap();
    }
    assert_call_works(&sum);
    assert!(!service.leased_workers("n1").is_empty());
    service.cluster.srun(&["-wn1", "--exclusive", "true"]).unwrap();
    assert_slurm_is_well(&service);
}

#[test]
fn jobs_on_many_nodes_at_once_start_while_every_core_is_leased() {
    let service = harvested(4);
    let pool = acquire(&service, 4);
    let spin = function(&pool, "spin").idempotent(true);
    let length = 60_000_000_000u64.to_le_bytes();
    let _running: Vec<_> = (0..4).map(|_| spin.submit(&length).unwrap()).collect();
    let workers: Vec<_> =
        service.cluster.nodes().iter().flat_map(|node| service.leased_workers(node)).collect();
    assert_eq!(workers.len(), 4);
    assert_eq!(
        service.cluster.srun(&["-N4", "--exclusive", "echo", "ran"]).unwrap().lines().count(),
        4
    );
    wait_gone(&workers);
    assert_slurm_is_well(&service);
}

#[test]
fn without_the_hook_the_poll_gives_the_node_back() {
    let cluster = Cluster::builder().nodes(1).start().unwrap();
    let service = Service::on(cluster).start().unwrap();
    service.wait_harvested(1, BOUND);
    let _pool = acquire(&service, 1);
    let workers = service.leased_workers("n1");
    let job = service.cluster.allocate(&["--exclusive", "-wn1", "-t5"]).unwrap();
    wait_gone(&workers);
    service.cluster.scancel(job).unwrap();
    service.wait_harvested(1, BOUND);
}

/// Runs the hook as slurmd would; it must end well and in its bound, whatever it meets.
fn run_hook(run_dir: &Path) {
    let program = gleaner_testkit::service::Programs::find().unwrap().path("gleaner-hook");
    for context in ["prolog_slurmd", "epilog_slurmd"] {
        let mut command = Command::new(&program);
        command.arg("--run-dir").arg(run_dir).env("SLURM_JOB_ID", "7").env("SLURM_JOB_UID", "0");
        command.env("SLURMD_NODENAME", "n1").env("SLURM_SCRIPT_CONTEXT", context);
        let output = run_bounded(command, Duration::from_secs(5)).unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

fn seqpacket() -> OwnedFd {
    socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap()
}

fn socket_nonblocking() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap()
}
