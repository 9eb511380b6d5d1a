//! Counted round trips as a figure: what each end took of them, beside the baseline's.

use std::time::Duration;

use anyhow::Result;

use crate::{Compared, Sample, figure::Detailed, raw::Raw, steps::Trip};

/// Functions that are named: those with as many instructions as this, or more.
const NAMED: u64 = 10;

/// What was counted.
pub struct Counted {
    /// Each round trip.
    pub trips: Vec<Trip>,
    /// The functions of a usual trip, the most first: the client's and the worker's.
    pub functions: [Vec<(String, u64)>; 2],
}

impl Counted {
    /// The middle of all trips: what is done once in many calls is not in it.
    pub fn middle(&self, of: impl Fn(Trip) -> u64) -> u64 {
        let mut counts: Vec<u64> = self.trips.iter().map(|trip| of(*trip)).collect();
        counts.sort_unstable();
        counts.get(counts.len() / 2).copied().unwrap_or(0)
    }

    /// Both ends beside the baseline's; the goal is how many more there may be.
    pub fn beside(
        &self,
        raw: &Self,
        baseline: Raw,
        name: String,
        goal: Option<u64>,
    ) -> Result<Detailed> {
        let compared = Compared::once(self.sample()?, raw.sample()?);
        let added = self.middle(Trip::both).saturating_sub(raw.middle(Trip::both));
        let ([client, worker], [caller, peer]) = (self.ends(), raw.ends());
        let figure = Detailed::beside(name, baseline.name(), &compared).counted("instructions");
        let mut figure = figure.note(format!(
            "{added} more than the raw loop; client {client} and worker {worker}, raw {caller} and {peer}"
        ));
        for (end, functions) in ["client", "worker"].into_iter().zip(&self.functions) {
            figure = figure.note(format!("{end}: {}", listed(functions)));
        }
        Ok(match goal {
            Some(goal) => figure.judged(&format!("≤ baseline + {goal}"), added <= goal),
            None => figure,
        })
    }

    fn sample(&self) -> Result<Sample> {
        let mut sample = Sample::new()?;
        for trip in &self.trips {
            sample.record(Duration::from_nanos(trip.both()));
        }
        Ok(sample)
    }

    fn ends(&self) -> [u64; 2] {
        [self.middle(|trip| trip.client), self.middle(|trip| trip.worker)]
    }
}

/// The functions that count, and the rest in one number.
fn listed(functions: &[(String, u64)]) -> String {
    let (large, small): (Vec<_>, Vec<_>) = functions.iter().partition(|(_, count)| *count >= NAMED);
    let named = large.iter().map(|(name, count)| format!("`{name}` {count}"));
    let rest: u64 = small.iter().map(|(_, count)| count).sum();
    format!("{}, smaller ones {rest}", named.collect::<Vec<_>>().join(", "))
}
