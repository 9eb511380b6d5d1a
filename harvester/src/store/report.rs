//! A period's report from what is stored: pure arithmetic over stretches of time, no SQL.
//!
//! [`super::Store::report`] feeds it. The definitions are those of `harvester/core/src/record.rs`: a transition lasts
//! until the node's next one of the same term or that term's end; idle and grantable count only while Slurm was
//! watched; what was not watched is a gap, with its cause. Executed time is what usage samples of the period add to
//! the last sample before it.

use gleaner_harvester_core::{
    event::{StepTimes, Trigger},
    record::CoreCounts,
};
use gleaner_proto::ids::{Epoch, JobId, NodeName, Term};

/// Some cores of a node, for some time of one harvester's term.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretch {
    pub(super) term: Term,
    pub(super) begins: i64,
    pub(super) ends: i64,
    pub(super) cores: CoreCounts,
}

/// Slurm was seen from then on, or not, and why.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct WatchRow {
    pub(super) term: Term,
    pub(super) unix_ms: i64,
    pub(super) gap: Option<String>,
    pub(super) term_ends: i64,
}

/// What leases used in the period.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct UsageTotals {
    pub(super) cpu_s: f64,
    pub(super) executing_s: f64,
    pub(super) polling_s: f64,
    pub(super) calls: u64,
    pub(super) leases: u64,
}

/// A vacate, and what its job waited in the hook.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct StoredVacate {
    pub unix_ms: i64,
    pub node: NodeName,
    pub trigger: Option<Trigger>,
    pub job: JobId,
    pub leases: u32,
    pub processes: u32,
    pub steps: StepTimes,
    pub epoch: Epoch,
    pub hook_us: u64,
}

/// A stretch in which Slurm was not watched.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Gap {
    pub from_unix_ms: i64,
    pub until_unix_ms: i64,
    pub why: String,
}

/// One period in figures. Core-seconds throughout.
#[derive(Debug, Clone, PartialEq, Default)]
#[allow(missing_docs)]
pub struct Report {
    pub since_unix_ms: i64,
    pub until_unix_ms: i64,
    pub coverage: f64,
    pub total_s: f64,
    pub idle_s: f64,
    pub grantable_s: f64,
    pub harvested_s: f64,
    pub leased_s: f64,
    pub executed_s: f64,
    pub executing_s: f64,
    pub polling_s: f64,
    pub calls: u64,
    pub leases: u64,
    pub vacates: Vec<StoredVacate>,
    pub gaps: Vec<Gap>,
}

const NOT_RUNNING: &str = "no harvester was running";

/// Adds up a period, stretch by stretch, in any order.
#[derive(Debug)]
pub(super) struct Sum {
    report: Report,
    /// Watched intervals with their term, in order, apart from each other within a term.
    watched: Vec<(Term, i64, i64)>,
}

impl Sum {
    /// Begins with the period and its watches, ordered by term and time.
    pub(super) fn new(since: i64, until: i64, watches: &[WatchRow]) -> Self {
        let (watched, unwatched) = intervals(since, until, watches);
        let gaps = gaps(since, until, &watched, &unwatched);
        let uncovered: i64 = gaps.iter().map(|gap| gap.until_unix_ms - gap.from_unix_ms).sum();
        let length = until - since;
        let coverage = if length > 0 { 1.0 - uncovered as f64 / length as f64 } else { 0.0 };
        let report = Report {
            since_unix_ms: since,
            until_unix_ms: until,
            coverage,
            gaps,
            ..Report::default()
        };
        Self { report, watched }
    }

    pub(super) fn add(&mut self, stretch: Stretch) {
        let Stretch { term, begins, ends, cores } = stretch;
        let report = &mut self.report;
        let (begins, ends) = (begins.max(report.since_unix_ms), ends.min(report.until_unix_ms));
        if begins >= ends {
            return;
        }
        let seconds = (ends - begins) as f64 / 1e3;
        report.total_s += f64::from(cores.total) * seconds;
        report.harvested_s += f64::from(cores.granted) * seconds;
        report.leased_s += f64::from(cores.leased) * seconds;
        let first = self.watched.partition_point(|(of, _, to)| (*of, *to) <= (term, begins));
        let touching =
            self.watched[first..].iter().take_while(|(of, from, _)| *of == term && *from < ends);
        let seen: i64 = touching.map(|(_, from, to)| ends.min(*to) - begins.max(*from)).sum();
        report.idle_s += f64::from(cores.idle) * seen as f64 / 1e3;
        report.grantable_s += f64::from(cores.grantable) * seen as f64 / 1e3;
    }

    /// The workers' claims are cut to the kernel's figure.
    pub(super) fn finish(mut self, usage: UsageTotals, vacates: Vec<StoredVacate>) -> Report {
        let report = &mut self.report;
        report.executed_s = usage.cpu_s;
        report.executing_s = usage.executing_s.min(usage.cpu_s);
        report.polling_s = usage.polling_s.min(usage.cpu_s - report.executing_s);
        (report.calls, report.leases) = (usage.calls, usage.leases);
        report.vacates = vacates;
        self.report
    }
}

type Watched = Vec<(Term, i64, i64)>;
type Unwatched = Vec<(i64, i64, String)>;

/// Cuts the watches into watched and unwatched intervals of the period.
fn intervals(since: i64, until: i64, watches: &[WatchRow]) -> (Watched, Unwatched) {
    let (mut watched, mut unwatched) = (Vec::new(), Vec::new());
    for (index, watch) in watches.iter().enumerate() {
        let next = watches.get(index + 1).filter(|next| next.term == watch.term);
        let ends = next.map_or(watch.term_ends, |next| next.unix_ms).min(until);
        let begins = watch.unix_ms.max(since);
        if begins >= ends {
            continue;
        }
        match &watch.gap {
            None => watched.push((watch.term, begins, ends)),
            Some(why) => unwatched.push((begins, ends, why.clone())),
        }
    }
    (watched, unwatched)
}

/// The complement of what was watched, with the cause where one is known.
fn gaps(since: i64, until: i64, watched: &Watched, unwatched: &Unwatched) -> Vec<Gap> {
    let mut seen: Vec<(i64, i64)> = watched.iter().map(|(_, from, to)| (*from, *to)).collect();
    seen.sort_unstable();
    let mut gaps = Vec::new();
    let mut at = since;
    for (from, to) in seen.into_iter().chain([(until, until)]) {
        if from > at {
            explain(at, from, unwatched, &mut gaps);
        }
        at = at.max(to);
    }
    gaps
}

fn explain(from: i64, to: i64, unwatched: &Unwatched, gaps: &mut Vec<Gap>) {
    let mut push = |from, until, why: &str| {
        if from < until {
            gaps.push(Gap { from_unix_ms: from, until_unix_ms: until, why: why.into() });
        }
    };
    let mut at = from;
    for (begins, ends, why) in unwatched {
        let (begins, ends) = ((*begins).max(at), (*ends).min(to));
        if begins < ends {
            push(at, begins, NOT_RUNNING);
            push(begins, ends, why);
            at = ends;
        }
    }
    push(at, to, NOT_RUNNING);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(term: u64, unix_ms: i64, gap: Option<&str>, term_ends: i64) -> WatchRow {
        WatchRow { term: Term(term), unix_ms, gap: gap.map(Into::into), term_ends }
    }

    fn gap(from_unix_ms: i64, until_unix_ms: i64, why: &str) -> Gap {
        Gap { from_unix_ms, until_unix_ms, why: why.into() }
    }

    fn stretch(begins: i64, ends: i64) -> Stretch {
        let cores = CoreCounts { total: 8, idle: 4, grantable: 2, granted: 2, leased: 1 };
        Stretch { term: Term(1), begins, ends, cores }
    }

    #[test]
    fn idle_counts_only_while_slurm_was_watched() {
        let watches = [watch(1, 0, None, 9000), watch(1, 4000, Some("slurmctld down"), 9000)];
        let mut sum = Sum::new(1000, 10_000, &watches);
        sum.add(stretch(0, 9000));
        let report = sum.finish(UsageTotals::default(), Vec::new());
        assert_eq!(report.total_s, 64.0);
        assert_eq!(report.idle_s, 12.0);
        assert_eq!(report.grantable_s, 6.0);
        assert_eq!(report.harvested_s, 16.0);
        assert_eq!(report.leased_s, 8.0);
        assert_eq!(
            report.gaps,
            [gap(4000, 9000, "slurmctld down"), gap(9000, 10_000, NOT_RUNNING)]
        );
        assert!((report.coverage - 3.0 / 9.0).abs() < 1e-9);
    }

    #[test]
    fn a_restart_leaves_a_gap() {
        let watches = [watch(1, 0, None, 2000), watch(2, 3000, None, 9000)];
        let report = Sum::new(0, 9000, &watches).finish(UsageTotals::default(), Vec::new());
        assert_eq!(report.gaps, [gap(2000, 3000, NOT_RUNNING)]);
    }

    #[test]
    fn an_unwatched_period_is_one_gap() {
        let report = Sum::new(5, 10, &[]).finish(UsageTotals::default(), Vec::new());
        assert_eq!((report.coverage, report.gaps), (0.0, vec![gap(5, 10, NOT_RUNNING)]));
    }

    #[test]
    fn claims_are_cut_to_cpu_time() {
        let usage =
            UsageTotals { cpu_s: 2.0, executing_s: 1.5, polling_s: 9.0, calls: 1, leases: 1 };
        let report = Sum::new(0, 1, &[]).finish(usage, Vec::new());
        assert_eq!((report.executed_s, report.executing_s, report.polling_s), (2.0, 1.5, 0.5));
    }
}
