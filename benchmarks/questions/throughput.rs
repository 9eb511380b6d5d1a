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
    reference,
    stage::Trips,
    transport::{TRANSPORTS, Transport},
};

/// Calls under way at a time.
const DEPTHS: [usize; 3] = [1, 8, 32];
const ROUNDS: usize = 31;
const TRIPS: Trips = Trips::of(10_000);
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
    let mut references = reference::of_echo(transport.hot, PIPELINED_BYTES, cpus, arguments.quick);
    let mut alone = None;
    for depth in DEPTHS {
        let load = Load { depth, ..Load::echo(PIPELINED_BYTES, cpus.worker) };
        let ours = |sample: &mut Sample| match depth {
            1 => echo_round(&echo, PIPELINED_BYTES, trips, sample),
            _ => pipelined_round(&echo, depth, trips, sample),
        };
        let compared = alternate(rounds, ours, |sample| {
            transport.hot.round(load, trips, sample)?;
            if depth == 1 { references.measure(sample) } else { Ok(()) }
        })?;
        let name = format!("{} calls, {depth} under way", transport.name);
        let figure = Detailed::beside(name, transport.hot.name(), &compared);
        let raw_p50 = compared.raw.latencies.p50();
        let void = alone.get_or_insert_with(|| reference::verdict(raw_p50, &references.all()));
        outcome.push(figure.voided(void.clone()).goal((transport.throughput_goal)(depth)));
    }
    Ok(())
}
