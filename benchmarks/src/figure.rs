//! One figure: what was measured, what it is held against, and whether that may be trusted.

use serde::{Deserialize, Serialize};

use crate::{
    goal::Goal,
    reference::{Reference, verdict},
    rounds::{Compared, RatioOf, Sample},
};

/// One figure beside its baseline. This is a line of `summary.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The unit of all times.
    pub unit: String,
    /// The middle.
    pub p50: u64,
    /// One of a hundred is slower.
    pub p99: u64,
    /// One of a thousand is slower.
    pub p999: u64,
    /// How many were measured.
    pub n: u64,
    /// How many a second.
    pub throughput: f64,
    /// What it is held against, in the same run.
    pub baseline: Option<String>,
    /// The baseline's middle.
    pub baseline_p50: Option<u64>,
    /// The baseline's one of a hundred.
    pub baseline_p99: Option<u64>,
    /// The baseline's one of a thousand.
    pub baseline_p999: Option<u64>,
    /// How many a second the baseline did.
    pub baseline_throughput: Option<f64>,
    /// `p50 / baseline_p50`, taken as `ratio_of` says.
    pub ratio: Option<f64>,
    /// Which of two ways was the steadier.
    pub ratio_of: Option<RatioOf>,
    /// Between which two the middle of the rounds' own ratios lies, with 95 % confidence; null of too few rounds.
    pub ratio_between: Option<(f64, f64)>,
    /// What the design asks for.
    pub goal: Option<String>,
    /// Whether it is reached; null where there is no goal, or the ratio is void.
    pub met: Option<bool>,
    /// Why the ratio means nothing; null if it means something.
    pub void: Option<String>,
}

/// A figure and what lies behind it. This is an entry of a question's own file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Detailed {
    /// The figure.
    pub figure: Figure,
    /// Share and nanoseconds.
    pub percentiles: Vec<(f64, u64)>,
    /// The baseline's.
    pub baseline_percentiles: Vec<(f64, u64)>,
    /// The middle of each round: Gleaner's and the baseline's.
    pub rounds: Vec<(u64, u64)>,
    /// What the baseline itself was held against.
    pub references: Vec<Reference>,
    /// Whatever else there is to say.
    pub notes: Vec<String>,
}

impl Detailed {
    /// A figure without a baseline.
    pub fn alone(name: impl Into<String>, measured: &Sample) -> Self {
        let latencies = &measured.latencies;
        let figure = Figure {
            name: name.into(),
            unit: "ns".into(),
            p50: latencies.p50(),
            p99: latencies.quantile(0.99),
            p999: latencies.quantile(0.999),
            n: latencies.count(),
            throughput: measured.throughput(),
            baseline: None,
            baseline_p50: None,
            baseline_p99: None,
            baseline_p999: None,
            baseline_throughput: None,
            ratio: None,
            ratio_of: None,
            ratio_between: None,
            goal: None,
            met: None,
            void: None,
        };
        Self {
            figure,
            percentiles: latencies.percentiles(),
            baseline_percentiles: Vec::new(),
            rounds: Vec::new(),
            references: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// A figure beside its baseline; [`Self::checked`] says whether that is any good.
    pub fn beside(name: impl Into<String>, baseline: &str, compared: &Compared) -> Self {
        let mut new = Self::alone(name, &compared.subject);
        let raw = &compared.raw.latencies;
        let (ratio, ratio_of) = compared.ratio();
        let figure = &mut new.figure;
        figure.baseline = Some(baseline.into());
        figure.baseline_p50 = Some(raw.p50());
        figure.baseline_p99 = Some(raw.quantile(0.99));
        figure.baseline_p999 = Some(raw.quantile(0.999));
        figure.baseline_throughput = Some(compared.raw.throughput());
        (figure.ratio, figure.ratio_of) = (Some(ratio), Some(ratio_of));
        figure.ratio_between = compared.ratio_between();
        new.baseline_percentiles = raw.percentiles();
        new.rounds.clone_from(&compared.rounds);
        new
    }

    /// The baseline was held against these: unless one of them agrees, the ratio is void.
    pub fn checked(mut self, references: Vec<Reference>) -> Self {
        self.figure.void = verdict(self.figure.baseline_p50.unwrap_or(0), &references);
        self.references = references;
        self
    }

    /// Counts, not times: there is no throughput.
    pub fn counted(mut self, unit: &str) -> Self {
        self.figure.unit = unit.into();
        self.figure.throughput = 0.0;
        self.figure.baseline_throughput = None;
        self
    }

    /// The ratio is void for this reason, if for any.
    pub fn voided(mut self, why: Option<String>) -> Self {
        self.figure.void = why;
        self
    }

    /// A goal that the question itself judges.
    pub fn judged(mut self, goal: &str, met: bool) -> Self {
        (self.figure.goal, self.figure.met) = (Some(goal.into()), Some(met));
        self
    }

    /// Sets what the design asks for. Comes last: whether it is met depends on the rest.
    pub fn goal(mut self, goal: Option<Goal>) -> Self {
        self.figure.goal = goal.map(Goal::text);
        self.figure.met = goal.and_then(|goal| goal.is_met(&self.figure));
        self
    }

    /// Says one more thing about it.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}
