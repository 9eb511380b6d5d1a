//! What does the hook add to a batch job's start on a node with nothing to vacate?
//!
//! Baseline: `/bin/true`, the least that a Prolog can be. Both are started in the same way (posix_spawn) and awaited, by
//! turns, while a keeper without leases serves the node. The epilog's message between two pairs is not timed.

use std::process::{Command, Stdio};

use anyhow::{Result, ensure};
use gleaner_benchmarks::{
    Arguments, Goal, Outcome, Sample, Stage, alternate,
    figure::Detailed,
    hook::{Hook, When},
    rounds::median_between,
    stage::NODE,
};

/// Pairs, after some that are not counted: the first page the programs in.
const PAIRS: usize = 1_000;
const WARM_UP: u32 = 20;
/// The design's bound, nanoseconds.
const GOAL: Goal = Goal::AddedP99(1_000_000);

fn main() -> Result<()> {
    let arguments = Arguments::read();
    let asks = "What does the hook add to a batch job's start with nothing to vacate?";
    let mut outcome = Outcome::begin("hook_idle", asks, 0, &arguments);
    let stage = Stage::simple()?;
    let hook = Hook::new(&stage.service, NODE);
    for job in 1..=WARM_UP {
        hook.start(When::Prolog, job)?.finish()?;
        hook.start(When::Epilog, job)?.finish()?;
        empty()?;
    }
    let mut job = WARM_UP;
    let compared = alternate(
        arguments.pick(PAIRS, 5),
        |sample: &mut Sample| {
            job += 1;
            sample.time(|| hook.start(When::Prolog, job)?.finish())?;
            hook.start(When::Epilog, job)?.finish()
        },
        |sample: &mut Sample| sample.time(empty),
    )?;
    let figure = Detailed::beside("hook with nothing to vacate", "/bin/true", &compared);
    let (low, middle, high) = added(&compared.rounds);
    let note =
        format!("added by pairs: p50 {middle} ns, 95 % of its estimates in {low}..{high} ns");
    outcome.push(figure.note(note).goal(Some(GOAL)));
    outcome.publish(&arguments)
}

fn empty() -> Result<()> {
    let mut command = Command::new("/bin/true");
    let status = command.env_clear().stdin(Stdio::null()).status()?;
    ensure!(status.success(), "/bin/true failed");
    Ok(())
}

/// The median of the pairs' differences and its 95 % confidence interval, by the order statistics around the middle.
fn added(pairs: &[(u64, u64)]) -> (i64, i64, i64) {
    let mut differences: Vec<i64> =
        pairs.iter().map(|(ours, theirs)| *ours as i64 - *theirs as i64).collect();
    differences.sort_unstable();
    let (low, high) = median_between(differences.len());
    let at = |index: usize| differences.get(index).copied().unwrap_or(0);
    (at(low), at(differences.len() / 2), at(high))
}
