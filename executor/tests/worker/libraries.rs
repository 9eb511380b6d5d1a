//! Libraries that a worker loads, and what it says of those that it does not.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use gleaner_executor::worker::ipc::{Abi, ToWorker};
use gleaner_proto::header::Status;
use gleaner_test_functions::{NATIVE_C, NATIVE_INCLUDE, RFAAS_C, library_path};
use nix::fcntl::SealFlag;

use crate::rig::{Rig, WARM};

fn compile(directory: &Path, source: &str) -> PathBuf {
    let library = directory.join("library.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]);
    if source == RFAAS_C {
        cc.arg("-fvisibility=default");
    }
    let status = cc.args(["-I", NATIVE_INCLUDE, "-o"]).arg(&library).arg(source).status().unwrap();
    assert!(status.success());
    library
}

#[test]
fn a_library_in_rfaas_form_runs_unchanged() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(1);
    let library = rig.library(&compile(directory.path(), RFAAS_C));
    let (reverse, abi) = rig.open(library, "reverse", Abi::Any).unwrap();
    assert_eq!(abi, Abi::Rfaas);
    let (upper, _) = rig.open(library, "upper", Abi::Rfaas).unwrap();
    let (empty, _) = rig.open(library, "empty", Abi::Rfaas).unwrap();
    let mut client = rig.add_link(0, 0, WARM);
    assert_eq!(client.call(reverse, b"desserts").text(), "stressed");
    assert_eq!(client.call(upper, b"harvest").text(), "HARVEST");
    assert_eq!(client.call(empty, &[1, 2, 3, 4, 5, 6]).data, [1, 2, 3, 4]);
    let big = vec![b'a'; 1 << 20];
    assert!(client.call_with(upper, &big, big.len()).data.iter().all(|byte| *byte == b'A'));
    let refused = rig.open(library, "reverse", Abi::Gleaner).unwrap_err();
    assert!(refused.contains("gleaner_fn_reverse"), "{refused}");
}

#[test]
fn a_library_in_our_c_abi_keeps_state_and_knows_its_deadline() {
    let directory = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(1);
    let library = rig.library(&compile(directory.path(), NATIVE_C));
    let (add, abi) = rig.open(library, "add", Abi::Any).unwrap();
    assert_eq!(abi, Abi::Gleaner);
    let (left, _) = rig.open(library, "left", Abi::Gleaner).unwrap();
    let mut client = rig.add_link(0, 0, WARM);
    assert_eq!(client.call(add, &40u64.to_le_bytes()).number(), 40);
    assert_eq!(client.call(add, &2u64.to_le_bytes()).number(), 42);
    let reply = client.call(add, b"short");
    assert_eq!((reply.header.status, reply.header.code), (Status::FunctionError, 22));
    assert_eq!(reply.text(), "5 bytes are not 8");
    assert_eq!(client.call(left, b"").number(), u64::MAX);
    client.change = |header| header.time_ns = 3_600_000_000_000;
    let remaining = client.call(left, b"").number();
    assert!((1..=3_600_000_000_000).contains(&remaining), "{remaining}");
    client.change = |header| header.time_ns = 1;
    assert_eq!(client.call(left, b"").number(), 0);
    // `free` ends the state.
    rig.tell(&ToWorker::Finish, None);
    assert_eq!(rig.ended().code(), Some(0));
    assert_eq!(rig.board.fault(), None, "an orderly end is no fault");
}

#[test]
fn what_is_not_in_the_library_is_named() {
    let mut rig = Rig::start(1);
    let library = rig.library(&library_path().unwrap());
    let why = rig.open(library, "nothing_here", Abi::Any).unwrap_err();
    assert!(why.contains("neither gleaner_fn_nothing_here nor nothing_here"), "{why}");
    for elsewhere in ["exit", "system", "malloc"] {
        let why = rig.open(library, elsewhere, Abi::Rfaas).unwrap_err();
        assert!(
            why.contains("exports no"),
            "{elsewhere} is the C library's, not this one's: {why}"
        );
    }
    assert!(rig.open(77, "echo", Abi::Any).unwrap_err().contains("never sent"));
    assert!(rig.open(library, "echo", Abi::Any).is_ok(), "and the worker goes on");
}

#[test]
fn what_is_no_library_is_refused_and_the_worker_lives() {
    let mut rig = Rig::start(1);
    let whole = std::fs::read(library_path().unwrap()).unwrap();
    let all = SealFlag::all();
    for (bytes, seals, why) in [
        (&b"#!/bin/sh\necho no\n"[..], all, "not an ELF file"),
        (&[][..], all, "not an ELF file"),
        (&whole[..8192], all, "cut short"),
        (&whole[..], all - SealFlag::F_SEAL_WRITE, "not sealed"),
    ] {
        let library = rig.library_bytes(bytes, seals);
        let said = rig.open(library, "echo", Abi::Any).unwrap_err();
        assert!(said.contains(why), "{said}");
    }
    let [echo] = rig.functions(["echo"]);
    assert_eq!(rig.add_link(0, 0, WARM).call(echo, b"alive").text(), "alive");
}
