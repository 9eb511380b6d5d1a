//! The benchmarks: one program a question, and a report over all that were ever asked.

#[path = "../../benchmarks/src/report/questions.rs"]
mod questions;

use std::process::Command;

use anyhow::bail;

use self::questions::QUESTIONS;
use crate::{
    run::{cargo, root, run, target_dir},
    setup::{packages, tools},
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
    let mut report = program("report");
    report.args(["--directory", directory]);
    if !quick {
        report.args(["--book", "docs/src/benchmarks.md"]);
    }
    run(report)
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
