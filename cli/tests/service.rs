//! Every verb against a running service: the real harvester and executors on a private Slurm.

use std::{
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use gleaner_testkit::{process::run_bounded, service::Service};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(20);
/// A build of the client from nothing, on a machine that does much else.
const BUILD_BOUND: Duration = Duration::from_secs(600);

fn run(command: Command) -> Output {
    run_bounded(command, BOUND).expect("the command starts and ends")
}

fn gleaner(service: &Service, arguments: &[&str]) -> Output {
    run(service.command(arguments))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What a verb prints for people; it must succeed.
fn told(service: &Service, arguments: &[&str]) -> String {
    let output = gleaner(service, arguments);
    assert!(output.status.success(), "{arguments:?}: {}\n{}", text(&output.stderr), service.logs());
    text(&output.stdout)
}

/// The exit code and what was said on standard error.
fn refused(service: &Service, arguments: &[&str]) -> (Option<i32>, String) {
    let output = gleaner(service, arguments);
    (output.status.code(), text(&output.stderr))
}

fn asked(service: &Service, arguments: &[&str]) -> Value {
    service.ask(arguments).unwrap_or_else(|error| panic!("{error}\n{}", service.logs()))
}

/// The library of test functions.
fn functions() -> String {
    let path = gleaner_test_functions::library_path().expect("built with this test");
    path.to_str().expect("a path of ASCII").to_owned()
}

#[test]
fn calls_are_made_and_told() {
    let service = Service::with_nodes(2).start().expect("the service starts");
    service.wait_harvested(2, BOUND);
    let library = functions();

    let output = gleaner(&service, &["invoke", &library, "echo", "--warm", "--data", "hello"]);
    assert_eq!(text(&output.stdout), "hello", "{}\n{}", text(&output.stderr), service.logs());
    assert_eq!(
        asked(&service, &["invoke", &library, "echo", "--warm", "--data", "hi"])["reply_text"],
        "hi"
    );

    let large = service.cluster.dir().join("large");
    std::fs::write(&large, vec![7_u8; 300_000]).expect("written");
    let large = large.to_str().expect("a path of ASCII");
    let copied = gleaner(
        &service,
        &["invoke", &library, "echo", "--warm", "--input", large, "--reply-max", "300000"],
    );
    assert_eq!(copied.stdout.len(), 300_000, "{}", text(&copied.stderr));

    let many = asked(
        &service,
        &[
            "invoke", &library, "echo", "--data", "x", "-n", "20", "--warm", "-N", "1-2", "-c",
            "2", "-t", "1",
        ],
    );
    assert_eq!((&many["ok"], &many["calls"]), (&20.into(), &20.into()), "{many}");
    assert_eq!(many["nodes"].as_array().map(Vec::len), Some(2), "{many}");
    assert!(many["latency"]["p50_ns"].as_u64() <= many["latency"]["p99_ns"].as_u64(), "{many}");
    let pipelined = told(
        &service,
        &["invoke", &library, "echo", "--data", "x", "-n", "20", "--warm", "--depth", "8"],
    );
    assert!(pipelined.contains("20 ok, 0 failed"), "{pipelined}");

    let ended = asked(&service, &["leases", "--ended"]);
    assert!(ended.as_array().is_some_and(|leases| leases.len() >= 4), "{ended}");
    assert!(told(&service, &["leases", "--ended"]).contains("released"));
    assert!(asked(&service, &["report", "--since", "1h"])["calls"].as_u64() >= Some(40));
    assert!(told(&service, &["report"]).contains("coverage"));
}

#[test]
fn what_cannot_be_is_refused_with_its_reason_and_code() {
    let service = Service::with_nodes(1).start().expect("the service starts");
    service.wait_harvested(1, BOUND);
    let library = functions();

    let (code, why) = refused(&service, &["invoke", &library, "echo", "-c", "64"]);
    assert_eq!(code, Some(5), "{why}");
    assert!(why.contains("64 cores"), "{why}");
    let (code, why) = refused(&service, &["invoke", &library, "no_such_function"]);
    assert_eq!(code, Some(6), "{why}");
    assert!(why.contains("no_such_function"), "{why}");
    let (code, why) = refused(&service, &["invoke", &library, "crash"]);
    assert_eq!(code, Some(6), "{why}");
    assert!(why.contains("FAILED"), "{why}");
    let (code, why) = refused(&service, &["drain", "nowhere", "--reason", "a test"]);
    assert_eq!(code, Some(5), "{why}");
    assert!(why.contains("nowhere"), "{why}");
}

#[test]
fn admins_drain_and_switch_off() {
    let service = Service::with_nodes(2).start().expect("the service starts");
    service.wait_harvested(2, BOUND);

    assert_eq!(told(&service, &["drain", "n1", "--reason", "firmware"]), "drained: n1\n");
    service.wait_granted("n1", false, BOUND);
    let table = told(&service, &["nodes"]);
    let row = table.lines().find(|line| line.starts_with("n1")).expect("a row").to_owned();
    assert!(row.contains("firmware"), "{table}");
    assert_eq!(told(&service, &["resume", "n1"]), "resumed: n1\n");
    service.wait_harvested(2, BOUND);

    assert!(told(&service, &["off", "--reason", "a test"]).contains("switched off"));
    service.wait_harvested(0, BOUND);
    assert!(told(&service, &["status"]).contains("switched off"));
    assert_eq!(told(&service, &["on"]), "switched on\n");
    service.wait_harvested(2, BOUND);
}

#[test]
fn doctor_is_content_with_a_service_in_order() {
    let service = Service::with_nodes(1).start().expect("the service starts");
    service.wait_harvested(1, BOUND);
    let mut command = service.command(&["doctor", "--json"]);
    let path = std::env::var("PATH").unwrap_or_default();
    let output = run({
        command.env("PATH", path);
        command
    });
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = value["doctor"].as_array().expect("a list");
    let health = |name: &str| {
        let finding = findings.iter().find(|finding| finding["name"] == name);
        finding.unwrap_or_else(|| panic!("{name} was not looked at: {value}"))["health"].clone()
    };
    for name in [
        "munge",
        "harvester",
        "harvesting",
        "records",
        "slurm commands",
        "policy",
        "executors here",
    ] {
        assert_eq!(health(name), "good", "{value}");
    }
    assert_ne!(health("prolog and epilog"), "bad", "{value}");
}

/// What a user does after reading the tutorial, with this checkout in the release's place.
#[test]
fn a_new_workspace_builds_and_runs() {
    let service = Service::with_nodes(2).start().expect("the service starts");
    let directory = tempfile::tempdir().expect("a directory");
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = service.command(&["new", "my-work", "--path"]);
    command.arg(&checkout).current_dir(directory.path());
    let written = run(command);
    assert!(written.status.success(), "{}", text(&written.stderr));

    let workspace = directory.path().join("my-work");
    // The same versions as this build's: those are here, and nothing has to be fetched.
    std::fs::copy(checkout.join("Cargo.lock"), workspace.join("Cargo.lock")).expect("copied");
    let target = directory.path().join("target");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--offline", "--workspace"]).current_dir(&workspace);
    build.env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", "-D warnings");
    build.env("CARGO_PROFILE_DEV_DEBUG", "0");
    let built = run_bounded(build, BUILD_BOUND).expect("cargo starts and ends");
    assert!(built.status.success(), "{}", text(&built.stderr));

    service.wait_harvested(2, BOUND);
    let library = target.join("debug/libmy_work_functions.so");
    let library = library.to_str().expect("a path of ASCII");
    let shown = told(&service, &["invoke", library, "upper", "--warm", "--data", "hello"]);
    assert_eq!(shown, "HELLO");
    let mut caller = service.cluster.command(target.join("debug/my-work-caller"));
    caller.env("GLEANER_CONFIG", service.config_path()).env("GLEANER_CLIENT_WAITING", "warm");
    let output = run(caller);
    assert!(output.status.success(), "{}\n{}", text(&output.stderr), service.logs());
    let (all, lines) = (text(&output.stdout), ["HELLO", "cbf43926"]);
    assert!(all.lines().take(2).eq(lines), "{all}");
    assert!(all.contains("1000 calls, "), "{all}");
}
