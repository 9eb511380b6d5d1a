//! Virtual machines with RDMA verbs: preparing them, the tests in them, and any command by hand.

use crate::{
    run::{cargo, find, run},
    setup::packages,
};

/// What all tests that boot a guest have in their names.
const TESTS: &str = "guest";

/// Fetches and makes what guests need, so that no test's time is spent on it.
pub(crate) fn prepare() -> anyhow::Result<()> {
    guest(&[])
}

/// The tests in guests.
pub(crate) fn test() -> anyhow::Result<()> {
    packages()?;
    prepare()?;
    if find("cargo-nextest").is_some() {
        let tests = format!("test(/{TESTS}/)");
        return run(cargo(&["nextest", "run", "--workspace", "--locked", "-E", &tests]));
    }
    run(cargo(&["test", "--workspace", "--locked", "--no-fail-fast", "--", TESTS]))
}

/// A command in a guest, or what `gleaner-guest` says to other arguments.
pub(crate) fn rdma(arguments: &[String]) -> anyhow::Result<()> {
    packages()?;
    guest(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn guest(arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = cargo(&["run", "--quiet", "--locked", "--package", "gleaner-testkit"]);
    command.args(["--bin", "gleaner-guest", "--"]).args(arguments);
    run(command)
}
