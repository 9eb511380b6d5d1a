//! Is the baseline any good? Each is held against something that shares no code with it: a tool that others wrote, a second
//! loop, or a floor that was measured before. A baseline that agrees with none of them proves nothing, and nor does a ratio
//! to it.
//!
//! What is measured is so in turn with the baseline, right after some of its rounds: what the machine does meanwhile then hits both.

mod floor;
mod large;
mod mbw;
pub mod perftest;
mod pingpong;
mod sockperf;
mod two_ends;
mod words;

use std::fmt;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    raw::Raw,
    rounds::{Sample, median},
    stage::{Cpus, Trips},
};

/// How far a baseline may lie from a reference.
const TOLERANCE: f64 = 0.1;
/// Rounds of the baseline from one in which it is held against the others to the next.
const EVERY: usize = 5;

/// What a baseline is held against.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// What it is.
    pub name: String,
    /// The least median that it stands for, in nanoseconds.
    pub low: u64,
    /// The greatest.
    pub high: u64,
    /// The baseline's median beside that of the same round, the middle of all such; null if it was not measured in this run.
    pub ratio: Option<f64>,
}

impl Reference {
    fn agrees(&self, p50: u64) -> bool {
        let (low, high) = (self.low as f64, self.high as f64);
        let near = |low: f64, value: f64, high: f64| {
            (low * (1.0 - TOLERANCE)..=high * (1.0 + TOLERANCE)).contains(&value)
        };
        match self.ratio {
            Some(ratio) => near(1.0, ratio, 1.0),
            None => near(low, p50 as f64, high),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} to {} ns", self.name, self.low, self.high)?;
        match self.ratio {
            Some(ratio) => write!(f, ", of which the same round's baseline is {ratio:.2}"),
            None => Ok(()),
        }
    }
}

/// All that one baseline is held against.
#[derive(Default)]
pub struct References {
    floor: Option<Reference>,
    measures: Vec<Measure>,
    rounds: usize,
}

/// Another way to measure what the baseline does.
struct Measure {
    name: String,
    /// Its median, in nanoseconds; `None` if there is no such tool here.
    once: Box<dyn Fn() -> Result<Option<u64>>>,
    /// The baseline's median and its own, of each round in which both were measured.
    rounds: Vec<(u64, u64)>,
}

impl References {
    /// Called after each round of the baseline: measures the same by the other means, in some of them.
    pub fn measure(&mut self, baseline: &Sample) -> Result<()> {
        self.rounds += 1;
        if self.rounds % EVERY != 1 {
            return Ok(());
        }
        for measure in &mut self.measures {
            let p50 = (measure.once)()?.filter(|p50| *p50 > 0);
            measure.rounds.extend(p50.map(|p50| (baseline.latencies.p50(), p50)));
        }
        Ok(())
    }

    /// What they told.
    pub fn all(&self) -> Vec<Reference> {
        let measured = self.measures.iter().filter_map(Measure::told);
        self.floor.iter().cloned().chain(measured).collect()
    }

    fn with(
        mut self,
        name: impl Into<String>,
        once: impl Fn() -> Result<Option<u64>> + 'static,
    ) -> Self {
        let (name, once) = (name.into(), Box::new(once));
        self.measures.push(Measure { name, once, rounds: Vec::new() });
        self
    }
}

impl Measure {
    fn told(&self) -> Option<Reference> {
        let p50s = || self.rounds.iter().map(|(_, p50)| *p50);
        let ratio = |&(baseline, p50): &(u64, u64)| baseline as f64 / p50 as f64;
        let mut ratios: Vec<_> = self.rounds.iter().map(ratio).collect();
        let (low, high) = (p50s().min()?, p50s().max()?);
        Some(Reference { name: self.name.clone(), low, high, ratio: Some(median(&mut ratios)) })
    }
}

/// What there is to hold an echo of so many bytes against, on the baseline's own CPUs.
pub fn of_echo(raw: Raw, payload: usize, cpus: Cpus, quick: bool) -> References {
    let new = References { floor: floor::of_echo(raw, payload), ..References::default() };
    if quick {
        return new;
    }
    match raw {
        Raw::Shm => new.with("second loop, turns", move || words::spinning(payload, cpus)),
        Raw::Futex => new.with("second loop, thread::park", move || words::parking(payload, cpus)),
        Raw::TcpBusy => new.with("sockperf", move || sockperf::measure(payload, cpus, true)),
        Raw::TcpBlocking => new.with("sockperf", move || sockperf::measure(payload, cpus, false)),
        Raw::Verbs => new
            .with("ib_write_lat, there and back", move || perftest::polled(payload, cpus))
            .with("ib_send_lat, there and back", move || perftest::sent(payload, cpus)),
        Raw::VerbsEvents => new
            .with("ib_send_lat, there and back", move || perftest::slept(payload, cpus))
            .with("ibv_rc_pingpong, there and back", move || pingpong::slept(payload, cpus)),
    }
}

/// What there is to hold the sum of so many bytes, sent to the peer, against.
pub fn of_sum(raw: Raw, bytes: usize, trips: Trips, cpus: Cpus, quick: bool) -> References {
    let new = References::default();
    match raw {
        _ if quick => new,
        Raw::Shm | Raw::Futex => {
            new.with("second loop, vectors by channel", move || large::memory(bytes, trips, cpus))
        }
        Raw::TcpBusy | Raw::TcpBlocking => {
            new.with("second loop, recv without waiting", move || large::socket(bytes, trips, cpus))
        }
        Raw::Verbs | Raw::VerbsEvents => new,
    }
}

/// What there is to hold a copy of so many bytes against.
pub fn of_copy(bytes: usize, quick: bool) -> References {
    match quick {
        true => References::default(),
        false => References::default().with("mbw", move || mbw::measure(bytes)),
    }
}

/// Why a baseline with this median is void; `None` if a reference agrees with it.
pub fn verdict(p50: u64, references: &[Reference]) -> Option<String> {
    if references.iter().any(|reference| reference.agrees(p50)) {
        return None;
    }
    let all: Vec<_> = references.iter().map(ToString::to_string).collect();
    Some(match all.is_empty() {
        true => "nothing was there to hold the baseline against".into(),
        false => format!("the baseline's {p50} ns are more than 10 % off: {}", all.join("; ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reference_that_agrees_is_enough() {
        let floor =
            |name: &str, p50| Reference { name: name.into(), low: p50, high: p50, ratio: None };
        let references = [floor("a", 100), floor("b", 200)];
        assert_eq!(verdict(109, &references), None);
        assert_eq!(verdict(181, &references), None);
        let void = verdict(150, &references).unwrap();
        assert!(void.contains("150 ns") && void.contains("a 100 to 100 ns"), "{void}");
        assert!(verdict(150, &[]).is_some());
    }

    /// As of 25 rounds; the tool is asked in five of them.
    fn told(
        baseline: impl Fn(usize) -> u64,
        tool: impl Fn(usize) -> u64 + 'static,
    ) -> Vec<Reference> {
        let asked = std::cell::Cell::new(0);
        let once = move || Ok(Some(tool(asked.replace(asked.get() + EVERY))));
        let mut references = References::default().with("tool", once);
        for round in 0..25 {
            let mut sample = Sample::new().unwrap();
            sample.record(std::time::Duration::from_nanos(baseline(round)));
            references.measure(&sample).unwrap();
        }
        references.all()
    }

    #[test]
    fn a_machine_that_changes_its_speed_voids_nothing_and_a_slow_baseline_does() {
        let machine = |round: usize| if round < 12 { 100 } else { 300 };
        let references = told(machine, move |round| machine(round) * 105 / 100);
        assert_eq!((references[0].low, references[0].high), (105, 315));
        assert_eq!(verdict(100, &references), None);
        let references = told(move |round| machine(round) * 12 / 10, machine);
        let void = verdict(300, &references).unwrap();
        assert!(
            void.contains("tool 100 to 300 ns, of which the same round's baseline is 1.20"),
            "{void}"
        );
    }

    #[test]
    fn a_tool_that_is_not_there_says_nothing() {
        let mut references = References::default().with("tool", || Ok(None));
        references.measure(&Sample::new().unwrap()).unwrap();
        assert!(references.all().is_empty());
    }
}
