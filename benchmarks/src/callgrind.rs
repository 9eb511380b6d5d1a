//! Counting instructions and system calls: a question runs itself under valgrind, with fewer and with more round trips.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use gleaner_testkit::process::run_bounded;

use crate::rounds::Sample;

/// The first word of a run under valgrind; the last is the number of round trips.
pub const COUNTED: &str = "counted";
/// How long one run may take under valgrind.
const BOUND: Duration = Duration::from_secs(120);

/// The system call of a pause.
const PAUSING: &str = "nanosleep";

/// Whether there is a valgrind.
pub fn is_installed() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok()
}

/// How often each run is repeated. Waiting, interrupted or for longer, only ever adds instructions: the least counts.
const REPEATS: usize = 3;

/// One round trip's instructions: what the longer run has more than the shorter, divided by the trips that it has more.
pub fn per_trip(words: &[&str], (few, many): (u64, u64)) -> Result<u64> {
    let (less, more) = (least(words, few)?, least(words, many)?);
    Ok(more.saturating_sub(less) / (many - few))
}

/// One round trip's system calls, but for those that pause between its steps.
pub fn system_calls(words: &[&str], (few, many): (u64, u64)) -> Result<u64> {
    let traced = |trips| {
        let report = run(&["--tool=none", "--trace-syscalls=yes"], words, trips)?;
        let calls = report.lines().filter(|line| line.starts_with("SYSCALL["));
        anyhow::Ok(calls.filter(|line| !line.contains(PAUSING)).count() as u64)
    };
    let (less, more) = (traced(few)?, traced(many)?);
    Ok(more.saturating_sub(less) / (many - few))
}

fn least(words: &[&str], trips: u64) -> Result<u64> {
    let mut counts = Vec::with_capacity(REPEATS);
    for _ in 0..REPEATS {
        counts.push(count(words, trips)?);
    }
    counts.into_iter().min().context("nothing was counted")
}

/// Instructions of a whole run of this program.
pub fn count(words: &[&str], trips: u64) -> Result<u64> {
    let report = run(&["--tool=callgrind", "--callgrind-out-file=/dev/null"], words, trips)?;
    let collected = report.lines().find_map(|line| line.split_once("Collected : "));
    let (_, count) = collected.with_context(|| format!("valgrind counted nothing: {report}"))?;
    count.trim().parse().context("valgrind's count")
}

/// This program under valgrind; returns what valgrind wrote.
fn run(tool: &[&str], words: &[&str], trips: u64) -> Result<String> {
    let mut command = Command::new("valgrind");
    command.args(tool).arg(std::env::current_exe()?).arg(COUNTED);
    command.args(words).arg(trips.to_string());
    let output = run_bounded(command, BOUND).context("run valgrind")?;
    let report = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "the run under valgrind failed: {report}");
    Ok(report)
}

/// A count in the place of a latency: the figure's unit says so.
pub fn instructions(count: u64) -> Result<Sample> {
    let mut sample = Sample::new()?;
    sample.record(Duration::from_nanos(count));
    Ok(sample)
}
