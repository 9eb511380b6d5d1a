//! How much goes over RDMA at a time, beside the verbs under it: many small requests, large ones, several workers?
//!
//! Baseline: verbs alone in the same pattern, on the same CPUs. Bandwidth is held against ib_write_bw, which touches nothing of what
//! it moves. Needs an RDMA device, as `rdma_call` does.

use anyhow::Result;
use gleaner_benchmarks::{
    Arguments, Outcome, alternate, effort,
    figure::Detailed,
    link::{self, Waiting},
    peer,
    raw::{Load, Raw, Work},
    reference::perftest,
    rounds::median,
    several::{self, Over, Waits},
    stage::{Cpus, Trips, pin},
};

/// Requests under way at a time.
const DEPTHS: [usize; 3] = [1, 8, 32];
const WORKERS: [usize; 4] = [1, 2, 4, 8];
/// Bytes of the pipelined calls that bandwidth is told of, and how many are under way.
const BANDWIDTH_BYTES: usize = 1 << 20;
const BANDWIDTH_DEPTH: usize = 4;
/// Of what ib_write_bw reaches, the link must reach so much.
const BANDWIDTH_GOAL: f64 = 0.95;
/// This thread and the peer's.
const SPINNING: usize = 2;
const CPUS: Cpus = Cpus { caller: 0, worker: 1 };

fn main() -> Result<()> {
    if peer::play_role()? {
        return Ok(());
    }
    let arguments = Arguments::read();
    let asks = "How much goes over RDMA at a time, beside the verbs under it?";
    let mut outcome = Outcome::begin("rdma_throughput", asks, SPINNING, &arguments);
    outcome.on_rdma()?;
    pin(CPUS.caller)?;
    bandwidth(&arguments, &mut outcome)?;
    pipelined(&arguments, &mut outcome)?;
    workers(&arguments, &mut outcome)?;
    outcome.publish(&arguments)
}

fn pipelined(arguments: &Arguments, outcome: &mut Outcome) -> Result<()> {
    for depth in DEPTHS {
        let load = Load { depth, ..Load::echo(8, CPUS.worker) };
        let (rounds, trips) =
            arguments.pick((effort::ROUNDS, Trips::of(2_000)), (2, Trips::of(100)));
        let compared = alternate(
            rounds,
            |sample| link::round(Waiting::Hot, load, trips, sample),
            |sample| Raw::Verbs.round(load, trips, sample),
        )?;
        let name = format!("rdma link, {depth} under way");
        outcome.push(Detailed::beside(name, Raw::Verbs.name(), &compared));
    }
    Ok(())
}

/// One way: large payloads go to the worker, eight bytes come back. Once nobody touches more of a payload than it takes to know
/// that it has come, as it is with ib_write_bw; once both ends touch every byte.
fn bandwidth(arguments: &Arguments, outcome: &mut Outcome) -> Result<()> {
    for (work, touched) in [(Work::Sample, "left alone"), (Work::Sum, "written and summed up")] {
        let load =
            Load { request: BANDWIDTH_BYTES, work, depth: BANDWIDTH_DEPTH, cpu: CPUS.worker };
        let (rounds, trips) = effort::of(BANDWIDTH_BYTES, arguments);
        let mut tool = Vec::with_capacity(rounds);
        let compared = alternate(
            rounds,
            |sample| several::streamed(Over::Link(Waits::CallerPolls), load, trips, sample),
            |sample| {
                tool.extend(perftest::bandwidth(BANDWIDTH_BYTES, CPUS)?);
                several::streamed(Over::Verbs(Waits::CallerPolls), load, trips, sample)
            },
        )?;
        let size = effort::size(load.request);
        let name = format!("rdma link, {size} one way, {touched}, {BANDWIDTH_DEPTH} under way");
        let figure = Detailed::beside(name, "verbs, worker asleep", &compared);
        outcome.push(beside_tool(figure, work, median(&mut tool)));
    }
    Ok(())
}

/// Rates beside the tool's, which is NaN if it is not there.
fn beside_tool(figure: Detailed, work: Work, tool: f64) -> Detailed {
    let rate = |per_second: f64| per_second * BANDWIDTH_BYTES as f64;
    let ours = rate(figure.figure.throughput);
    let raw = rate(figure.figure.baseline_throughput.unwrap_or(0.0));
    if tool.is_nan() {
        return figure.note("ib_write_bw is not installed");
    }
    let (share, raw) = (ours / tool, raw / tool);
    let figure = figure.note(format!("{share:.3} of what ib_write_bw moves, verbs alone {raw:.3}"));
    if work != Work::Sample {
        return figure;
    }
    let figure =
        figure.judged(&format!("≥ {BANDWIDTH_GOAL} × ib_write_bw"), share >= BANDWIDTH_GOAL);
    match share.max(raw) < BANDWIDTH_GOAL {
        true => figure.note("cannot be reached here: verbs alone miss it too"),
        false => figure,
    }
}

/// One caller, several workers that sleep: one call to each at a time.
fn workers(arguments: &Arguments, outcome: &mut Outcome) -> Result<()> {
    let load = Load::echo(64, CPUS.worker);
    let (rounds, trips) = arguments.pick((effort::ROUNDS, Trips::of(500)), (2, Trips::of(10)));
    for workers in WORKERS {
        let compared = alternate(
            rounds,
            |sample| several::spread(Over::Link(Waits::Sleeping), workers, load, trips, sample),
            |sample| several::spread(Over::Verbs(Waits::Sleeping), workers, load, trips, sample),
        )?;
        let name = format!("rdma link, {workers} workers at once");
        outcome.push(Detailed::beside(name, Raw::VerbsEvents.name(), &compared));
    }
    Ok(())
}
