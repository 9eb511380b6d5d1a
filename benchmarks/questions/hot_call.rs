//! What does a hot call cost beside the transport under it?
//!
//! Baseline: two threads, one CPU each, that pass the same payload to and fro over the transport alone, and never sleep.
//! Gleaner: a client on one CPU calls `echo` on a worker pinned to the other, through the whole service on a private Slurm.

use anyhow::Result;
use gleaner::Waiting;
use gleaner_benchmarks::{
    Arguments, Outcome, Stage, alternate,
    caller::echo_round,
    figure::Detailed,
    raw::Load,
    reference,
    stage::Trips,
    transport::{TRANSPORTS, Transport},
};

/// Bytes each way.
const PAYLOADS: [usize; 4] = [1, 64, 1024, 4096];
const ROUNDS: usize = 15;
const TRIPS: Trips = Trips::of(5_000);
/// This thread and the worker's, or the peer's.
const SPINNING: usize = 2;

fn main() -> Result<()> {
    let arguments = Arguments::read();
    let asks = "What does a hot call cost beside the transport under it?";
    let mut outcome = Outcome::begin("hot_call", asks, SPINNING, &arguments);
    let stage = Stage::simple()?;
    for transport in TRANSPORTS {
        ask(&stage, transport, &arguments, &mut outcome)?;
    }
    outcome.publish(&arguments)
}

fn ask(
    stage: &Stage,
    transport: &Transport,
    arguments: &Arguments,
    outcome: &mut Outcome,
) -> Result<()> {
    let pool = stage.client()?.acquire(transport.request(Waiting::Hot))?;
    let echo = pool.function(&stage.library, "echo")?;
    let cpus = stage.pin_beside_worker()?;
    let (rounds, trips) = arguments.pick((ROUNDS, TRIPS), (2, Trips::of(50)));
    for payload in PAYLOADS {
        let load = Load::echo(payload, cpus.worker);
        let compared = alternate(
            rounds,
            |sample| echo_round(&echo, payload, trips, sample),
            |sample| transport.hot.round(load, trips, sample),
        )?;
        let name = format!("hot {} call, {payload} B", transport.name);
        let references = reference::of_echo(transport.hot, payload, cpus, arguments.quick)?;
        let figure = Detailed::beside(name, transport.hot.name(), &compared);
        outcome.push(figure.checked(references).goal(Some(transport.hot_goal)));
    }
    Ok(pool.release()?)
}
