//! One question, quickly, and the report over it: whether the benchmarks work, and never how fast anything is.

#![allow(clippy::unwrap_used)] // helpers of tests are tests too

use std::{path::Path, process::Command};

use serde_json::Value;

#[test]
fn a_quick_question_gives_a_summary_that_is_well_formed() {
    let directory = tempfile::tempdir().unwrap();
    run(env!("CARGO_BIN_EXE_bench-hot-call"), directory.path(), &["--quick"]);
    run(env!("CARGO_BIN_EXE_bench-report"), directory.path(), &[]);
    let summary = std::fs::read(directory.path().join("summary.json")).unwrap();
    let figures: Vec<Value> = serde_json::from_slice(&summary).unwrap();
    assert!(figures.len() >= 4, "one for each payload: {figures:#?}");
    figures.iter().for_each(assert_plausible);
    let page = std::fs::read_to_string(directory.path().join("index.html")).unwrap();
    assert!(page.contains("<svg") && !page.contains("src="), "a plot, and nothing from elsewhere");
}

fn assert_plausible(figure: &Value) {
    let number = |field: &str| figure[field].as_f64().unwrap_or_else(|| panic!("{figure:#}"));
    assert!(figure["name"].is_string() && figure["unit"] == "ns", "{figure:#}");
    assert!(number("n") >= 100.0 && number("throughput") > 0.0, "{figure:#}");
    for side in ["", "baseline_"] {
        let [p50, p99, p999] = ["p50", "p99", "p999"].map(|p| number(&format!("{side}{p}")));
        assert!(0.0 < p50 && p50 <= p99 && p99 <= p999, "{figure:#}");
    }
    assert!(number("ratio") > 0.0, "{figure:#}");
    // A void ratio is no ground to judge by.
    assert!(figure["void"].is_null() || figure["met"].is_null(), "{figure:#}");
}

fn run(program: &str, directory: &Path, arguments: &[&str]) {
    let mut command = Command::new(program);
    let output = command.arg("--directory").arg(directory).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
