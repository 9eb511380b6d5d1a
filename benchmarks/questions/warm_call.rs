//! What does a call cost when the worker sleeps between calls, beside the same sleep over the transport alone?
//!
//! Both sides sleep in the kernel at either end, and are woken by every message.

use anyhow::Result;
use gleaner::Waiting;
use gleaner_benchmarks::{
    Arguments, Outcome, Stage, alternate,
    caller::echo_round,
    figure::Detailed,
    raw::Load,
    reference,
    stage::Trips,
    transport::{TRANSPORTS, Transport, WARM_GOAL},
};

/// Bytes each way.
const PAYLOADS: [usize; 4] = [1, 64, 1024, 4096];
const ROUNDS: usize = 15;
const TRIPS: Trips = Trips::of(1_000);

fn main() -> Result<()> {
    let arguments = Arguments::read();
    let asks = "What does a call cost when the worker sleeps between calls?";
    let mut outcome = Outcome::begin("warm_call", asks, 0, &arguments);
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
    let pool = stage.client()?.acquire(transport.request(Waiting::Warm))?;
    let echo = pool.function(&stage.library, "echo")?;
    let cpus = stage.pin_beside_worker()?;
    let (rounds, trips) = arguments.pick((ROUNDS, TRIPS), (2, Trips::of(50)));
    for payload in PAYLOADS {
        let load = Load::echo(payload, cpus.worker);
        let compared = alternate(
            rounds,
            |sample| echo_round(&echo, payload, trips, sample),
            |sample| transport.warm.round(load, trips, sample),
        )?;
        let name = format!("warm {} call, {payload} B", transport.name);
        let references = reference::of_echo(transport.warm, payload, cpus, arguments.quick)?;
        let figure = Detailed::beside(name, transport.warm.name(), &compared);
        outcome.push(figure.checked(references).goal(Some(WARM_GOAL)));
    }
    Ok(pool.release()?)
}
