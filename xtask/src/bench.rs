//! The benchmarks: one program a question, and a report over all that were ever asked.

#[path = "../../benchmarks/src/report/questions.rs"]
mod questions;

use std::{ffi::OsString, path::Path, process::Command};

use anyhow::bail;

use self::questions::{QUESTIONS, RDMA_QUESTIONS};
use crate::{
    run::{cargo, root, run, target_dir},
    setup::{packages, rdma_tools, tools},
};

/// Builds everything in release, asks the questions, which use the programs of that same build, and reports.
pub(crate) fn bench(questions: &[String], quick: bool, calls: Option<u64>) -> anyhow::Result<()> {
    let questions = chosen(questions)?;
    packages()?;
    tools();
    run(cargo(&["build", "--release", "--workspace", "--locked"]))?;
    let directory = if quick { "target/bench/quick" } else { "target/bench" };
    for question in questions {
        let mut command = program(&question.replace('_', "-"));
        command.args(["--directory", directory]);
        command.args(quick.then_some("--quick"));
        if let Some(calls) = calls {
            command.args(["--calls", &calls.to_string()]);
        }
        run(command)?;
    }
    report(quick)
}

/// Over all results there are, into the book if they mean something.
fn report(quick: bool) -> anyhow::Result<()> {
    let mut report = program("report");
    report.args(["--directory", if quick { "target/bench/quick" } else { "target/bench" }]);
    if !quick {
        report.args(["--book", "docs/src/benchmarks.md"]);
    }
    run(report)
}

/// The questions on RDMA, and the report over all that were ever asked.
pub(crate) fn bench_rdma(quick: bool) -> anyhow::Result<()> {
    packages()?;
    rdma_tools();
    run(cargo(&["build", "--release", "--workspace", "--locked"]))?;
    let directory = root().join(if quick { "target/bench/quick" } else { "target/bench" });
    std::fs::create_dir_all(&directory)?;
    let has_device = std::fs::read_dir("/sys/class/infiniband")
        .is_ok_and(|mut devices| devices.next().is_some());
    let machine = if has_device { Vec::new() } else { guest(&directory) };
    let shown = if has_device { &*directory } else { Path::new("/run/guest/share") };
    for name in RDMA_QUESTIONS {
        let question = program(&name.replace('_', "-"));
        let mut words = machine.clone();
        words.push(question.get_program().to_owned());
        words.extend(["--directory".into(), shown.into()]);
        words.extend(quick.then(|| "--quick".into()));
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(root());
        run(command)?;
    }
    report(quick)
}

/// What runs a command in User-Mode Linux, or where that cannot be built, on the emulated machine.
fn guest(directory: &Path) -> Vec<OsString> {
    let program = target_dir().join("release/gleaner-guest");
    let mut prepare = Command::new(&program);
    prepare.arg("--user-mode");
    let kind = run(prepare).map(|()| "--user-mode");
    if let Err(error) = &kind {
        eprintln!("on the emulated machine, which is slower: {error}");
    }
    let mut words: Vec<OsString> = vec![program.into()];
    words.extend(kind.ok().map(Into::into));
    words.extend(["--bound", "3600", "--share"].map(Into::into));
    words.extend([directory.into(), "--".into()]);
    words
}

fn program(name: &str) -> Command {
    let mut command = Command::new(target_dir().join(format!("release/bench-{name}")));
    command.current_dir(root());
    command
}

/// The questions that were named, or all.
fn chosen(names: &[String]) -> anyhow::Result<Vec<&'static str>> {
    if names.is_empty() {
        return Ok(QUESTIONS.to_vec());
    }
    let known = |name: &String| {
        let name = name.replace('-', "_");
        match QUESTIONS.iter().find(|question| **question == name) {
            Some(question) => Ok(*question),
            None => bail!("{name} is no question; there are {}", QUESTIONS.join(", ")),
        }
    };
    names.iter().map(known).collect()
}
