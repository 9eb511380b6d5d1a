//! Functions that kill their worker: what stays on the board, and that nothing else is hurt.

use gleaner_executor::board::{Fault, FaultCause, Phase, Place};
use gleaner_proto::header::Status;
use nix::libc;

use crate::rig::{Rig, WARM};

const FIRST: Place = Place { session: 0, lane: 0, slot: 0 };

/// Runs one function after one good call, until the worker is dead; returns the fault and the signal.
fn fatal(name: &str, input: &[u8]) -> (Fault, Option<i32>) {
    let mut rig = Rig::start(2);
    let [echo, function] = rig.functions(["echo", name]);
    let mut other = rig.add_link(1, 1, WARM);
    assert_eq!(other.call(echo, b"x").text(), "x");
    let mut client = rig.add_link(0, 0, WARM);
    client.send(function, input, 64);
    assert!(rig.is_gone());
    let signal = rig.killed_by();
    assert_eq!(rig.slot(FIRST).phase, Phase::Faulted);
    assert_eq!(rig.slot(Place { session: 1, lane: 1, slot: 0 }).phase, Phase::Finished);
    (rig.board.fault().expect("the death was recorded"), signal)
}

fn in_first(cause: FaultCause) -> Fault {
    Fault { cause, call: Some((FIRST, 1)) }
}

#[test]
fn a_crash_is_recorded_with_its_call() {
    for (name, signal) in
        [("crash", libc::SIGSEGV), ("overflow_stack", libc::SIGSEGV), ("abort", libc::SIGABRT)]
    {
        let (fault, killed_by) = fatal(name, b"");
        assert_eq!(fault, in_first(FaultCause::Signal(signal)), "{name}");
        assert_eq!(killed_by, Some(signal), "{name}");
    }
}

#[test]
fn an_exit_is_recorded_with_its_status() {
    let (fault, killed_by) = fatal("exit_it", &[7]);
    assert_eq!(fault, in_first(FaultCause::Exit(7)));
    assert_eq!(fault.cause.to_string(), "the function called exit(7)");
    assert_eq!(killed_by, None);
}

#[test]
fn a_write_past_the_output_is_found_answered_and_ends_the_worker() {
    for (name, input) in [("overrun", [0; 4]), ("rfaas_fill", 80u32.to_le_bytes())] {
        let mut rig = Rig::start(1);
        let [function] = rig.functions([name]);
        let mut client = rig.add_link(0, 0, WARM);
        let reply = client.call_with(function, &input, 64);
        assert_eq!(reply.header.status, Status::Overflow, "{name}");
        assert_eq!(rig.killed_by(), Some(libc::SIGABRT));
        assert_eq!(rig.board.fault(), Some(in_first(FaultCause::Overflow)));
        assert_eq!(rig.slot(FIRST).phase, Phase::Faulted);
    }
}

#[test]
fn filling_the_output_to_its_last_byte_is_allowed() {
    let mut rig = Rig::start(1);
    let [fill] = rig.functions(["rfaas_fill"]);
    let mut client = rig.add_link(0, 0, WARM);
    let reply = client.call_with(fill, &64u32.to_le_bytes(), 64);
    assert_eq!((reply.header.status, reply.data.len()), (Status::Ok, 64));
}

#[test]
fn a_function_starts_no_process_and_reaches_no_network() {
    let mut rig = Rig::start(1);
    let [fork, connect] = rig.functions(["fork_it", "connect_out"]);
    let mut client = rig.add_link(0, 0, WARM);
    for function in [fork, connect] {
        let reply = client.call(function, b"");
        assert_eq!(reply.header.status, Status::FunctionError, "{}", reply.text());
        assert_eq!(reply.header.code, libc::EPERM as u32, "{}", reply.text());
    }
    let tasks = format!("/proc/{pid}/task/{pid}/children", pid = rig.pid());
    if let Ok(children) = std::fs::read_to_string(tasks) {
        assert_eq!(children, "");
    }
}

#[test]
fn memory_beyond_the_lease_is_refused_where_no_cgroup_counts_it() {
    let mut rig = Rig::start_with(1, 128 << 20, true);
    let [eat, echo] = rig.functions(["eat_memory", "echo"]);
    let mut client = rig.add_link(0, 0, WARM);
    let reply = client.call(eat, b"");
    assert_eq!((reply.header.status, reply.header.code), (Status::FunctionError, 12));
    assert_eq!(client.call(echo, b"alive").text(), "alive");
}

#[test]
fn a_loop_leaves_its_state_when_it_is_killed_from_outside() {
    let mut rig = Rig::start(1);
    let [endless] = rig.functions(["loop_forever"]);
    let mut client = rig.add_link(0, 0, WARM);
    client.send(endless, b"", 0);
    let until = std::time::Instant::now() + crate::rig::PATIENCE;
    while rig.slot(FIRST).phase != Phase::Started {
        assert!(std::time::Instant::now() < until, "the call never started");
        std::thread::yield_now();
    }
    let pid = nix::unistd::Pid::from_raw(rig.pid() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(rig.killed_by(), Some(libc::SIGKILL));
    assert_eq!(rig.slot(FIRST).phase, Phase::Started);
    assert_eq!(rig.board.fault(), None);
}

#[test]
fn a_worker_whose_agent_is_gone_ends() {
    let mut rig = Rig::start(1);
    rig.lose_agent();
    assert!(!rig.ended().success());
}
