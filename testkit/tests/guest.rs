//! The virtual machines themselves: what a command meets there, and that nothing is left of one that fails.
#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use gleaner_testkit::{
    guest::{Guest, GuestError, Network, unsupported},
    process, wait_until,
};
use libtest_mimic::{Arguments, Failed, Trial};

const BOUND: Duration = Duration::from_secs(120);

fn main() {
    let trials: &[(&str, fn())] = &[
        ("guest_returns_status_output_and_share_and_forgets_the_rest", status_output_share),
        ("guest_has_two_devices_on_one_cable", cable),
        ("guests_on_a_wire_reach_each_other", wire),
        ("guest_that_hangs_is_ended_and_leaves_nothing", hang),
        ("guest_of_an_owner_that_is_killed_leaves_nothing", killed_owner),
    ];
    let trials = trials.iter().map(|&(name, test)| {
        let trial = Trial::test(name, move || {
            test();
            Ok::<(), Failed>(())
        });
        trial.with_ignored_flag(unsupported().is_some())
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

fn shell(text: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-ec", text]);
    command
}

fn status_output_share() {
    let share = tempfile::tempdir().unwrap();
    let outside = share.path().join("outside");
    let mut command = shell(
        "echo \"$GREETING\"; echo complaint >&2; cat \"$OUTSIDE\"; echo changed >\"$OUTSIDE\"\n\
         cat \"$OUTSIDE\" >/run/guest/share/inside; exit 7",
    );
    command.env("GREETING", "it's me").env("OUTSIDE", &outside);
    std::fs::write(&outside, "before\n").unwrap();
    let guest = Guest::new(Network::None).bound(BOUND).share(share.path());
    let ended = guest.run(&command).unwrap();
    assert_eq!((ended.status, ended.output.as_str()), (7, "it's me\ncomplaint\nbefore\n"));
    assert_eq!(std::fs::read_to_string(share.path().join("inside")).unwrap(), "changed\n");
    assert_eq!(std::fs::read_to_string(outside).unwrap(), "before\n");
}

/// Bytes sent from one device to the other pass both interfaces.
fn cable() {
    let command = shell(
        "ibv_devinfo\n\
         before=$(cat /sys/class/net/right/statistics/rx_bytes)\n\
         ibv_rc_pingpong -d rxe1 -g 1 -s 4096 -n 100 >/dev/null & \n\
         until ibv_rc_pingpong -d rxe0 -g 1 -s 4096 -n 100 10.98.0.2; do :; done\n\
         wait\n\
         echo crossed $(($(cat /sys/class/net/right/statistics/rx_bytes) - before))",
    );
    let output = Guest::new(Network::Pair).bound(BOUND).run(&command).unwrap().expect_success();
    assert_eq!(output.matches("PORT_ACTIVE").count(), 2, "{output}");
    let crossed = output.lines().find_map(|line| line.strip_prefix("crossed "));
    assert!(crossed.unwrap().parse::<u64>().unwrap() > 100 * 4096, "{output}");
}

fn wire() {
    let serve = shell("ibv_rc_pingpong -d rxe0 -g 1 -n 100");
    let call = shell("until ibv_rc_pingpong -d rxe0 -g 1 -n 100 10.97.0.1; do :; done");
    let both = Guest::new(Network::Wire).bound(BOUND).run_joined([&serve, &call]).unwrap();
    for ended in both {
        assert!(ended.expect_success().contains("100 iters"));
    }
}

fn hang() {
    let mut command = shell("echo begun; sleep 1000");
    let mark = format!("gleaner-guest-test-{}", std::process::id());
    command.env("MARK", &mark);
    let begun = Instant::now();
    let guest = Guest::new(Network::None).bound(Duration::from_secs(20));
    let error = guest.run(&command).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(60));
    assert!(matches!(error, GuestError::Died { .. }), "{error}");
    assert!(error.to_string().contains("begun"), "{error}");
    assert!(machines(std::process::id() as i32).is_empty());
}

/// The developer's program, interrupted as by Ctrl-C and killed outright.
fn killed_owner() {
    for signal in [nix::sys::signal::Signal::SIGINT, nix::sys::signal::Signal::SIGKILL] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gleaner-guest"));
        command.args(["--network", "none", "--", "sleep", "1000"]);
        let mut owner = process::Daemon::start("gleaner-guest", command, None).unwrap();
        let mut found = Vec::new();
        wait_until("the guest has its machine", BOUND, || {
            found = machines(owner.pid());
            !found.is_empty()
        });
        let directory = directory(&process::command_line(found[0]));
        assert!(Path::new(&directory).is_dir());
        owner.signal(signal);
        owner.wait(BOUND).unwrap();
        wait_until("its machine is gone", BOUND, || !process::is_alive(found[0]));
        wait_until("its directory is gone", BOUND, || !Path::new(&directory).exists());
    }
}

/// The virtual machines that a process has started.
fn machines(owner: i32) -> Vec<i32> {
    let children = process::children(owner);
    children.into_iter().filter(|&pid| process::command_line(pid).contains("-initrd")).collect()
}

/// The run directory that qemu's command line names.
fn directory(command_line: &str) -> String {
    let console = command_line.split("file:").nth(1).unwrap();
    console.split_once("/console").unwrap().0.to_owned()
}
