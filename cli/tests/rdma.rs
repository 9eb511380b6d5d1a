//! `gleaner doctor` on RDMA: on a machine with a device, which is a virtual one, and on this one.
#![allow(clippy::unwrap_used)] // helpers of tests are tests too

use std::{path::Path, process::Command, time::Duration};

use gleaner_testkit::guest::{Guest, Network, unsupported};
use serde_json::Value;

/// What doctor says under this name, of a configuration of its own.
fn found(directory: &Path, text: &str, name: &str, before: &[&str]) -> Vec<Value> {
    let config = directory.join("gleaner.toml");
    std::fs::write(&config, text).unwrap();
    let words: Vec<&str> = before.iter().copied().chain([env!("CARGO_BIN_EXE_gleaner")]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg("--config").arg(&config).args(["--json", "doctor"]);
    let output = command.output().unwrap();
    let value: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let findings = value["doctor"].as_array().unwrap();
    findings.iter().filter(|finding| finding["name"] == name).cloned().collect()
}

fn says(finding: &Value, health: &str, detail: &str, remedy: &str) {
    assert_eq!(finding["health"], health, "{finding}");
    assert!(finding["detail"].as_str().unwrap().contains(detail), "{finding}");
    assert!(finding["remedy"].as_str().unwrap_or_default().contains(remedy), "{finding}");
}

#[test]
fn guest_passes_what_needs_a_device() {
    if let Some(why) = unsupported() {
        eprintln!("ignored: {why}");
        return;
    }
    let mut own = Command::new(std::env::current_exe().unwrap());
    own.args(["--ignored", "--test-threads=1"]);
    let guest = Guest::new(Network::Pair).bound(Duration::from_secs(120));
    let output = guest.run(&own).unwrap().expect_success();
    println!("{output}");
    assert!(!output.contains("running 0 tests"), "{output}");
}

#[test]
fn without_a_device_calls_go_by_tcp_and_who_asked_for_rdma_is_told() {
    if Path::new("/sys/class/infiniband").read_dir().is_ok_and(|mut found| found.next().is_some()) {
        // A machine with one: the tests below look at such.
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let found = |text: &str, name: &str| found(directory.path(), text, name, &[]).remove(0);
    says(&found("", "rdma device"), "absent", "no RDMA device", "");
    says(&found("", "transport"), "good", "else TCP (no RDMA device", "");
    let asked = "[client]\ntransport = \"rdma\"\n";
    says(&found(asked, "rdma device"), "bad", "no RDMA device", "client.transport = \"auto\"");
    says(&found(asked, "transport"), "bad", "cannot be used", "client.transport");
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_device_is_described_and_each_fault_has_its_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let look = |text: &str, name: &str| found(directory.path(), text, name, &[]);
    let devices = look("", "rdma device");
    assert_eq!(devices.len(), 2, "{devices:?}");
    for (device, address) in devices.iter().zip(["RoCE v2 10.98.0.1", "RoCE v2 10.98.0.2"]) {
        says(device, "good", address, "");
        says(device, "good", "packets of 4096 bytes", "");
    }
    says(&look("", "transport")[0], "good", "RDMA from rxe0 port 1 (RoCE v2 10.98.0.1)", "");
    let second = "[rdma]\ndevice = \"rxe1\"\n[executor]\nrdma = true\n";
    says(&look(second, "transport")[0], "good", "RDMA from rxe1", "");
    says(&look(second, "transport")[0], "good", "with this configuration serve it", "");
    says(&look("", "rdma memory")[0], "good", "no limit", "");
    says(&look("", "rdma cgroup")[0], "good", "bounded", "");

    let set = |words: &[&str]| {
        let status = Command::new("ip").args(["link", "set"]).args(words).status().unwrap();
        assert!(status.success());
    };
    let flushed = Command::new("ip").args(["addr", "flush", "dev", "right"]).status().unwrap();
    assert!(flushed.success());
    says(&look("", "rdma device")[1], "warning", "RoCE v2 fe80::", "`ip addr add ADDRESS");
    set(&["left", "mtu", "1500"]);
    says(&look("", "rdma device")[0], "warning", "packets of 1024", "ip link set left mtu 4200");
    set(&["left", "down"]);
    says(&look("", "rdma device")[0], "warning", "down", "`ip link set left up`");
    let forced = "[client]\ntransport = \"rdma\"\n[rdma]\ndevice = \"rxe0\"\n";
    says(&look(forced, "transport")[0], "bad", "has no active port", "");
}

#[test]
#[ignore = "needs an RDMA device"]
fn limits_of_the_user_and_of_the_group_are_found() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    // Another user than root, who may pin 64 KiB.
    let nobody = ["prlimit", "--memlock=65536", "setpriv", "--reuid=65534", "--clear-groups"];
    let memory = found(directory.path(), "", "rdma memory", &nobody);
    says(&memory[0], "warning", "may pin 65536", "limits.d");

    let group = Path::new("/sys/fs/cgroup/doctor");
    std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+rdma").unwrap();
    std::fs::create_dir(group).unwrap();
    std::fs::write(group.join("rdma.max"), "rxe0 hca_handle=0 hca_object=max").unwrap();
    let inside = ["sh", "-c", "echo $$ >/sys/fs/cgroup/doctor/cgroup.procs; exec \"$@\"", "sh"];
    let limited = found(directory.path(), "", "rdma cgroup", &inside);
    says(&limited[0], "warning", "hca_handle=0", "> /sys/fs/cgroup/doctor/rdma.max");
}
