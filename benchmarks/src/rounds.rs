//! Subject and baseline in rounds that alternate, so that the machine's noise hits both.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::{latencies::Latencies, moment::Moment};

/// Fewer rounds lie between no two bounds with 95 % confidence.
const ROUNDS_MIN: usize = 6;

/// What one side measured, in one round or in all.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Each call's.
    pub latencies: Latencies,
    /// The time that all of them took together.
    pub spent: Duration,
}

/// Both sides, round by round.
#[derive(Debug)]
pub struct Compared {
    /// Gleaner.
    pub subject: Sample,
    /// The baseline.
    pub raw: Sample,
    /// The middle of each round: Gleaner's and the baseline's.
    pub rounds: Vec<(u64, u64)>,
    each: Vec<(Latencies, Latencies)>,
}

/// How a ratio was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RatioOf {
    /// The two sides' medians over all rounds.
    Medians,
    /// The median of the rounds' own ratios.
    Rounds,
}

impl Sample {
    /// Nothing yet.
    pub fn new() -> Result<Self> {
        Ok(Self { latencies: Latencies::new()?, spent: Duration::ZERO })
    }

    /// Times one call that runs alone.
    pub fn time<R>(&mut self, call: impl FnOnce() -> Result<R>) -> Result<R> {
        let began = Moment::now();
        let result = call()?;
        self.record(began.elapsed());
        Ok(result)
    }

    /// Adds one call that ran alone.
    pub fn record(&mut self, took: Duration) {
        self.latencies.record(took);
        self.spent += took;
    }

    /// Calls a second; 0 if nothing was measured.
    pub fn throughput(&self) -> f64 {
        let seconds = self.spent.as_secs_f64();
        if seconds > 0.0 { self.latencies.count() as f64 / seconds } else { 0.0 }
    }

    fn add(&mut self, other: &Self) -> Result<()> {
        self.spent += other.spent;
        self.latencies.add(&other.latencies)
    }
}

/// Runs both sides by turns, `rounds` times.
pub fn alternate(
    rounds: usize,
    mut subject: impl FnMut(&mut Sample) -> Result<()>,
    mut raw: impl FnMut(&mut Sample) -> Result<()>,
) -> Result<Compared> {
    let mut compared = Compared {
        subject: Sample::new()?,
        raw: Sample::new()?,
        rounds: Vec::new(),
        each: Vec::new(),
    };
    for round in 0..rounds {
        let (mut ours, mut theirs) = (Sample::new()?, Sample::new()?);
        // Who comes first changes, so that what a round leaves behind (warm caches, a raised clock) favours nobody.
        if round % 2 == 0 {
            raw(&mut theirs)?;
            subject(&mut ours)?;
        } else {
            subject(&mut ours)?;
            raw(&mut theirs)?;
        }
        ensure!(ours.latencies.count() > 0, "a round measured nothing");
        compared.take(&ours, &theirs)?;
    }
    Ok(compared)
}

impl Compared {
    /// One round of each, that was run by other means.
    pub fn once(subject: Sample, raw: Sample) -> Self {
        let rounds = vec![(subject.latencies.p50(), raw.latencies.p50())];
        let each = vec![(subject.latencies.clone(), raw.latencies.clone())];
        Self { subject, raw, rounds, each }
    }

    /// Gleaner's median beside the baseline's, taken in the steadier of two ways: the one that changes less when any one
    /// round is left out.
    pub fn ratio(&self) -> (f64, RatioOf) {
        let all: Vec<_> = (0..self.rounds.len()).collect();
        let (medians, rounds) = (self.ratio_of_medians(&all), self.ratio_of_rounds(&all));
        let swing = |ratio: &dyn Fn(&[usize]) -> f64, whole: f64| {
            let without = |left: &usize| {
                let rest: Vec<_> = all.iter().copied().filter(|round| round != left).collect();
                (ratio(&rest) - whole).powi(2)
            };
            all.iter().map(without).sum::<f64>()
        };
        let by_rounds = swing(&|these| self.ratio_of_rounds(these), rounds);
        let by_medians = swing(&|these| self.ratio_of_medians(these), medians);
        if all.len() > 1 && by_rounds < by_medians {
            (rounds, RatioOf::Rounds)
        } else {
            (medians, RatioOf::Medians)
        }
    }

    /// Where the middle of the rounds' own ratios lies, with 95 % confidence; `None` of too few rounds to say.
    pub fn ratio_between(&self) -> Option<(f64, f64)> {
        let ratio = |&(ours, theirs): &(u64, u64)| ours as f64 / theirs as f64;
        let mut ratios: Vec<f64> = self.rounds.iter().map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let (low, high) = median_between(ratios.len());
        (ratios.len() >= ROUNDS_MIN).then(|| (ratios[low], ratios[high]))
    }

    fn ratio_of_rounds(&self, these: &[usize]) -> f64 {
        let ratio = |&round: &usize| self.rounds[round].0 as f64 / self.rounds[round].1 as f64;
        let mut ratios: Vec<f64> = these.iter().map(ratio).collect();
        median(&mut ratios)
    }

    fn ratio_of_medians(&self, these: &[usize]) -> f64 {
        let Ok((mut ours, mut theirs)) =
            Latencies::new().and_then(|ours| Ok((ours, Latencies::new()?)))
        else {
            return f64::NAN;
        };
        for &round in these {
            // All histograms have one shape, so that adding them cannot fail.
            let _ = ours.add(&self.each[round].0);
            let _ = theirs.add(&self.each[round].1);
        }
        ours.p50() as f64 / theirs.p50() as f64
    }

    fn take(&mut self, ours: &Sample, theirs: &Sample) -> Result<()> {
        self.subject.add(ours)?;
        self.raw.add(theirs)?;
        self.rounds.push((ours.latencies.p50(), theirs.latencies.p50()));
        self.each.push((ours.latencies.clone(), theirs.latencies.clone()));
        Ok(())
    }
}

/// The places among so many sorted values between which the median of what they were taken from lies, with 95 % confidence.
pub fn median_between(count: usize) -> (usize, usize) {
    let half_width = (1.96 * (count as f64).sqrt() / 2.0).ceil() as usize;
    let last = count.saturating_sub(1);
    ((count / 2).saturating_sub(half_width), (count / 2 + half_width).min(last))
}

/// The middle value; NaN of none.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => f64::midpoint(values[len / 2 - 1], values[len / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steadier_ratio_is_taken() {
        // The machine slows down threefold, and Gleaner is spared that in one round: both medians lie in other rounds then.
        let (mut ours, mut theirs) =
            ([200, 200, 600, 200, 600].iter(), [100, 100, 300, 300, 300].iter());
        let take = |times: &mut std::slice::Iter<'_, u64>, sample: &mut Sample| {
            sample.record(Duration::from_nanos(*times.next().unwrap()));
            Ok(())
        };
        let compared =
            alternate(5, |sample| take(&mut ours, sample), |sample| take(&mut theirs, sample));
        assert_eq!(compared.unwrap().ratio(), (2.0, RatioOf::Rounds));
    }

    #[test]
    fn the_rounds_ratios_say_how_sure_their_middle_is() {
        let between = |rounds: u64| {
            let mut round = 0;
            let ours = |sample: &mut Sample| {
                round += 1;
                sample.record(Duration::from_nanos(1_000 + 10 * round));
                Ok(())
            };
            let raw = |sample: &mut Sample| {
                sample.record(Duration::from_nanos(1_000));
                Ok(())
            };
            alternate(rounds as usize, ours, raw).unwrap().ratio_between()
        };
        assert_eq!(between(5), None);
        let (low, high) = between(25).unwrap();
        // Of 25 values the 8th and the 18th.
        assert!((low - 1.08).abs() < 2e-3 && (high - 1.18).abs() < 2e-3, "{low} to {high}");
    }

    #[test]
    fn throughput_counts_the_time_that_was_spent() {
        let mut sample = Sample::new().unwrap();
        (0..10).for_each(|_| sample.record(Duration::from_millis(1)));
        assert!((sample.throughput() - 1000.0).abs() < 1e-6);
    }
}
