//! How many calls a second does one worker do, one at a time and with several under way?
//!
//! Baseline: the same number of messages under way over the transport alone. Its reference is that of the transport's
//! round trip: a baseline that is sound one message at a time runs the same loop here.

use anyhow::Result;
use gleaner::{Pool, Waiting};
use gleaner_benchmarks::{
    Arguments, Outcome, Sample, Stage, alternate,
    caller::{PIPELINED_BYTES, echo_round, pipelined_round},
    figure::Detailed,
    raw::Load,
    reference::{self, Reference},
    stage::{Cpus, Trips},
    transport::{TRANSPORTS, Transport},
};

/// Calls under way at a time.
const DEPTHS: [usize; 3] = [1, 8, 32];
const ROUNDS: usize = 15;
const TRIPS: Trips = Trips::of(20_000);
/// This thread and the worker's, or the peer's.
const SPINNING: usize = 2;

fn main() -> Result<()> {
    let arguments = Arguments::read();
    let asks = "How many calls a second does one worker do?";
    let mut outcome = Outcome::begin("throughput", asks, SPINNING, &arguments);
    let stage = Stage::simple()?;
    for transport in TRANSPORTS {
        let request = transport.request(Waiting::Hot).window(DEPTHS[2] as u16);
        let pool = stage.client()?.acquire(request)?;
        ask(&stage, &pool, transport, &arguments, &mut outcome)?;
        pool.release()?;
    }
    outcome.publish(&arguments)
}

fn ask(
    stage: &Stage,
    pool: &Pool,
    transport: &Transport,
    arguments: &Arguments,
    outcome: &mut Outcome,
) -> Result<()> {
    let echo = pool.function(&stage.library, "echo")?;
    let cpus = stage.pin_beside_worker()?;
    let (rounds, trips) = arguments.pick((ROUNDS, TRIPS), (2, Trips::of(100)));
    let mut alone = None;
    for depth in DEPTHS {
        let load = Load { depth, ..Load::echo(PIPELINED_BYTES, cpus.worker) };
        let ours = |sample: &mut Sample| match depth {
            1 => echo_round(&echo, PIPELINED_BYTES, trips, sample),
            _ => pipelined_round(&echo, depth, trips, sample),
        };
        let compared = alternate(rounds, ours, |sample| transport.hot.round(load, trips, sample))?;
        let name = format!("{} calls, {depth} under way", transport.name);
        let figure = Detailed::beside(name, transport.hot.name(), &compared);
        let raw_p50 = compared.raw.latencies.p50();
        let void = match &alone {
            Some(void) => Option::clone(void),
            None => alone.insert(check(transport, raw_p50, cpus, arguments)?).clone(),
        };
        outcome.push(figure.voided(void).goal((transport.throughput_goal)(depth)));
    }
    Ok(())
}

/// Why the baseline is void, one message at a time.
fn check(
    transport: &Transport,
    p50: u64,
    cpus: Cpus,
    arguments: &Arguments,
) -> Result<Option<String>> {
    let references: Vec<Reference> =
        reference::of_echo(transport.hot, PIPELINED_BYTES, cpus, arguments.quick)?;
    Ok(reference::verdict(p50, &references))
}
