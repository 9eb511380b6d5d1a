//! How many instructions does a call take beyond the transport under it?
//!
//! Both ends are counted, as they run for everybody, by stepping them through the same round trips (see
//! [`gleaner_benchmarks::steps`]); the raw loop is counted in the same way. Spinning is in neither: each end finds its message at
//! its first look. Nor is what the kernel does, of which a socket's messages take most.

use anyhow::Result;
use gleaner_benchmarks::{
    Arguments, Outcome, Stage,
    raw::Raw,
    stepped::{self, Over},
    steps,
};

/// Bytes each way.
const PAYLOADS: [usize; 3] = [1, 64, 4096];
/// Round trips that are stepped through.
const STEPPED_TRIPS: usize = 200;
/// What is counted, its name, and the baseline. What both ends of a call may take beyond it, where that is a goal.
const WAYS: [(Over, &str, Raw, Option<u64>); 2] =
    [(Over::Memory, "shm", Raw::Shm, Some(500)), (Over::Socket, "tcp", Raw::TcpBusy, None)];

fn main() -> Result<()> {
    match stepped::play_caller()? {
        true => Ok(()),
        false => ask(&Arguments::read()),
    }
}

fn ask(arguments: &Arguments) -> Result<()> {
    let asks = "How many instructions does a call take beyond the transport under it?";
    let mut outcome = Outcome::begin("instructions", asks, 0, arguments);
    if !steps::are_counted_here() {
        outcome.cannot("instructions: stepping knows x86-64 alone");
        return outcome.publish(arguments);
    }
    let stage = Stage::simple()?;
    let trips = arguments.pick(STEPPED_TRIPS, 10);
    for (over, word, raw, goal) in WAYS {
        for payload in PAYLOADS {
            let ours = stepped::count_calls(&stage, over, payload, trips)?;
            let alone = stepped::count_raw(over, payload, trips)?;
            let name = format!("instructions a {word} call, both ends, {payload} B");
            outcome.push(ours.beside(&alone, raw, name, goal)?);
        }
    }
    outcome.publish(arguments)
}
