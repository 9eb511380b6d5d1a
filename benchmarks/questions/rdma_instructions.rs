//! How many instructions does Gleaner's link add to a round trip over verbs, client and worker together?
//!
//! Counted by callgrind, so that no noise of the machine touches them, and no emulated device: this program runs itself under
//! valgrind, once over the link and once over verbs alone, each with two numbers of round trips; the difference divided by the
//! difference is one round trip's. The provider's own instructions are in both.

use anyhow::Result;
use gleaner_benchmarks::{
    Arguments, Compared, Outcome,
    callgrind::{self, instructions},
    counted,
    figure::Detailed,
    raw::{Load, Raw},
};

const PAYLOADS: [usize; 3] = [1, 64, 4096];
/// Round trips of the shorter and the longer run: whole rounds of completions and of receives.
const FEW: u64 = 256;
const MANY: u64 = 1280;
/// What both ends of a round trip may add together.
const GOAL: u64 = 600;

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [callgrind::COUNTED, over, payload, trips] => {
            let (load, trips) = (Load::echo(payload.parse()?, 0), trips.parse()?);
            if over == "link" {
                counted::over_link(load, trips)
            } else {
                counted::over_verbs(load, trips)
            }
        }
        _ => ask(&Arguments::read()),
    }
}

fn ask(arguments: &Arguments) -> Result<()> {
    let asks =
        "How many instructions does the link add to a round trip over verbs, both ends together?";
    let mut outcome = Outcome::begin("rdma_instructions", asks, 0, arguments);
    if !callgrind::is_installed() {
        outcome.cannot("instructions: valgrind is not installed");
        return outcome.publish(arguments);
    }
    for payload in PAYLOADS {
        let per_trip = |over: &str| {
            callgrind::per_trip(
                &[over, &payload.to_string()],
                arguments.pick((FEW, MANY), (32, 64)),
            )
        };
        let (ours, raw) = (per_trip("link")?, per_trip("verbs")?);
        let compared = Compared::once(instructions(ours)?, instructions(raw)?);
        let figure = Detailed::beside(
            format!("instructions a round trip, both ends, {payload} B"),
            Raw::Verbs.name(),
            &compared,
        );
        let calls = |over: &str| {
            callgrind::system_calls(&[over, &payload.to_string()], arguments.pick((8, 72), (2, 4)))
        };
        let (calls, verbs) = (calls("link")?, calls("verbs")?);
        let added = ours.saturating_sub(raw);
        let figure = figure.counted("instructions").note(format!("{added} more than verbs alone"));
        let figure = figure.note(format!("{calls} system calls, verbs alone {verbs}"));
        outcome.push(figure.judged(&format!("≤ baseline + {GOAL}"), added <= GOAL));
    }
    outcome.publish(arguments)
}
