//! Is the baseline any good? Each is held against something that shares no code with it: a tool that others wrote, a second
//! loop, or a floor that was measured before. A baseline that agrees with none of them proves nothing, and nor does a ratio
//! to it.

mod floor;
mod large;
mod mbw;
pub mod perftest;
mod pingpong;
mod sockperf;
mod two_ends;
mod words;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    raw::Raw,
    stage::{Cpus, Trips},
};

/// How far a baseline may lie from a reference.
const TOLERANCE: f64 = 0.1;

/// What a baseline is held against.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// What it is.
    pub name: String,
    /// The least median that it stands for, in nanoseconds.
    pub low: u64,
    /// The greatest.
    pub high: u64,
}

impl Reference {
    fn measured(name: &str, p50: u64) -> Self {
        Self { name: name.into(), low: p50, high: p50 }
    }

    fn agrees(&self, p50: u64) -> bool {
        let (low, high) = (self.low as f64, self.high as f64);
        (low * (1.0 - TOLERANCE)..=high * (1.0 + TOLERANCE)).contains(&(p50 as f64))
    }
}

/// Measures what there is to hold an echo of so many bytes against, on the baseline's own CPUs.
pub fn of_echo(raw: Raw, payload: usize, cpus: Cpus, quick: bool) -> Result<Vec<Reference>> {
    let mut references: Vec<_> = floor::of_echo(raw, payload).into_iter().collect();
    if quick {
        return Ok(references);
    }
    match raw {
        Raw::Shm => references.push(words::spinning(payload, cpus)?),
        Raw::Futex => references.push(words::parking(payload, cpus)?),
        Raw::TcpBusy => references.extend(sockperf::measure(payload, cpus, true)?),
        Raw::TcpBlocking => references.extend(sockperf::measure(payload, cpus, false)?),
        Raw::Verbs => {
            references.extend(perftest::polled(payload, cpus)?);
            references.extend(perftest::sent(payload, cpus)?);
        }
        Raw::VerbsEvents => {
            references.extend(perftest::slept(payload, cpus)?);
            references.extend(pingpong::slept(payload, cpus)?);
        }
    }
    Ok(references)
}

/// Measures what there is to hold the sum of so many bytes, sent to the peer, against.
pub fn of_sum(
    raw: Raw,
    bytes: usize,
    trips: Trips,
    cpus: Cpus,
    quick: bool,
) -> Result<Vec<Reference>> {
    if quick {
        return Ok(Vec::new());
    }
    let measured = match raw {
        Raw::Shm | Raw::Futex => large::memory(bytes, trips, cpus),
        Raw::TcpBusy | Raw::TcpBlocking => large::socket(bytes, trips, cpus),
        Raw::Verbs | Raw::VerbsEvents => return Ok(Vec::new()),
    };
    measured.map(|reference| vec![reference])
}

/// Measures what there is to hold a copy of so many bytes against.
pub fn of_copy(bytes: usize, quick: bool) -> Result<Vec<Reference>> {
    if quick { Ok(Vec::new()) } else { mbw::measure(bytes) }
}

/// Why a baseline with this median is void; `None` if a reference agrees with it.
pub fn verdict(p50: u64, references: &[Reference]) -> Option<String> {
    if references.iter().any(|reference| reference.agrees(p50)) {
        return None;
    }
    let one = |reference: &Reference| match (reference.low, reference.high) {
        (low, high) if low == high => format!("{} {low} ns", reference.name),
        (low, high) => format!("{} {low} to {high} ns", reference.name),
    };
    let all: Vec<_> = references.iter().map(one).collect();
    Some(match all.is_empty() {
        true => "nothing was there to hold the baseline against".into(),
        false => format!("the baseline's {p50} ns are more than 10 % off: {}", all.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reference_that_agrees_is_enough() {
        let references = [Reference::measured("a", 100), Reference::measured("b", 200)];
        assert_eq!(verdict(109, &references), None);
        assert_eq!(verdict(181, &references), None);
        let void = verdict(150, &references).unwrap();
        assert!(void.contains("150 ns") && void.contains("a 100 ns"), "{void}");
        assert!(verdict(150, &[]).is_some());
    }
}
