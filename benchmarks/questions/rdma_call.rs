//! What does a call over RDMA cost beside the verbs under it?
//!
//! Baseline: a ping-pong of writes with an immediate, written on verbs directly, that touches the same payload on the same CPUs.
//! It is held against ib_write_lat. Gleaner's link alone stands beside it; polled, slept for, with several requests under way, and
//! with several workers. Bandwidth is held against ib_write_bw.
//!
//! Needs an RDMA device: `make bench-rdma` runs it where there is one, or else in a virtual machine with Soft-RoCE, where the
//! ratios mean something and the times nothing.

use anyhow::Result;
use gleaner_benchmarks::{
    Arguments, Goal, Outcome, alternate,
    figure::Detailed,
    link::{self, Waiting},
    peer,
    raw::{Load, Raw, Work},
    reference::{self, perftest},
    several::{self, Over},
    stage::{Cpus, Trips, pin},
};
use gleaner_fabric::rdma::devices;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Bytes each way.
const PAYLOADS: [usize; 7] = [1, 64, KIB, 4 * KIB, 64 * KIB, MIB, 4 * MIB];
/// Requests under way at a time.
const DEPTHS: [usize; 3] = [1, 8, 32];
const WORKERS: [usize; 4] = [1, 2, 4, 8];
/// Bytes of the pipelined calls that bandwidth is told of, and how many are under way.
const BANDWIDTH_BYTES: usize = MIB;
const BANDWIDTH_DEPTH: usize = 4;
/// Of what ib_write_bw reaches, the link must reach so much.
const BANDWIDTH_GOAL: f64 = 0.95;
const HOT_GOAL: Goal = Goal::Ratio(1.05);
const WARM_GOAL: Goal = Goal::Ratio(1.15);
const ROUNDS: usize = 9;
const TRIPS: u64 = 2_000;
/// Bytes that one round moves at most.
const ROUND_BYTES: usize = 64 * MIB;
/// This thread and the peer's.
const SPINNING: usize = 2;
const CPUS: Cpus = Cpus { caller: 0, worker: 1 };

fn main() -> Result<()> {
    if peer::play_role()? {
        return Ok(());
    }
    let arguments = Arguments::read();
    let asks = "What does a call over RDMA cost beside the verbs under it?";
    let mut outcome = Outcome::begin("rdma_call", asks, SPINNING, &arguments);
    let devices = devices()?;
    println!("  on {}", devices.join(", "));
    if devices.iter().all(|device| device.starts_with("rxe")) {
        outcome.cannot("times: this device is the kernel's own software (Soft-RoCE), so that only ratios and counts mean something; `make bench-rdma` on a machine with an RDMA device measures them");
    }
    pin(CPUS.caller)?;
    latencies(Waiting::Hot, Raw::Verbs, HOT_GOAL, &arguments, &mut outcome)?;
    latencies(Waiting::Warm, Raw::VerbsEvents, WARM_GOAL, &arguments, &mut outcome)?;
    pipelined(&arguments, &mut outcome)?;
    bandwidth(&arguments, &mut outcome)?;
    workers(&arguments, &mut outcome)?;
    outcome.publish(&arguments)
}

fn latencies(
    waiting: Waiting,
    raw: Raw,
    goal: Goal,
    arguments: &Arguments,
    outcome: &mut Outcome,
) -> Result<()> {
    for payload in PAYLOADS {
        let load = Load::echo(payload, CPUS.worker);
        let (rounds, trips) = effort(payload, arguments);
        let compared = alternate(
            rounds,
            |sample| link::round(waiting, load, trips, sample),
            |sample| raw.round(load, trips, sample),
        )?;
        let temperature = if waiting == Waiting::Hot { "hot" } else { "warm" };
        let name = format!("{temperature} rdma link, {}", size(payload));
        let figure = Detailed::beside(name, raw.name(), &compared);
        // The same loop, asleep, is as sound as it is awake; no tool sleeps for a write.
        let figure = match waiting {
            Waiting::Hot => {
                figure.checked(reference::of_echo(raw, payload, CPUS, arguments.quick)?)
            }
            Waiting::Warm => figure,
        };
        outcome.push(figure.goal(Some(goal)));
    }
    Ok(())
}

/// Rounds and their trips, fewer of large payloads.
fn effort(payload: usize, arguments: &Arguments) -> (usize, Trips) {
    let trips = TRIPS.min((ROUND_BYTES / payload) as u64).max(16);
    arguments.pick((ROUNDS, Trips::of(trips)), (2, Trips::of(10)))
}

fn size(bytes: usize) -> String {
    match bytes {
        small if small < KIB => format!("{small} B"),
        middle if middle < MIB => format!("{} KiB", middle / KIB),
        large => format!("{} MiB", large / MIB),
    }
}

fn pipelined(arguments: &Arguments, outcome: &mut Outcome) -> Result<()> {
    for depth in DEPTHS {
        let load = Load { depth, ..Load::echo(8, CPUS.worker) };
        let (rounds, trips) = arguments.pick((ROUNDS, Trips::of(8_000)), (2, Trips::of(100)));
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

/// The worker sums what comes; the reply is eight bytes.
fn bandwidth(arguments: &Arguments, outcome: &mut Outcome) -> Result<()> {
    let load = Load {
        request: BANDWIDTH_BYTES,
        work: Work::Sum,
        depth: BANDWIDTH_DEPTH,
        cpu: CPUS.worker,
    };
    let (rounds, trips) = effort(BANDWIDTH_BYTES, arguments);
    let compared = alternate(
        rounds,
        |sample| several::streamed(Over::Link(Waiting::Hot), load, trips, sample),
        |sample| several::streamed(Over::Verbs(Waiting::Hot), load, trips, sample),
    )?;
    let name = format!("rdma link, {} one way, {BANDWIDTH_DEPTH} under way", size(load.request));
    let figure = Detailed::beside(name, Raw::Verbs.name(), &compared);
    let rate = |per_second: f64| per_second * load.request as f64 / 1e9;
    let ours = rate(figure.figure.throughput);
    let raw = rate(figure.figure.baseline_throughput.unwrap_or(0.0));
    let figure = figure.note(format!("{ours:.3} GB/s, baseline {raw:.3} GB/s"));
    outcome.push(match perftest::bandwidth(BANDWIDTH_BYTES, CPUS)? {
        Some(tool) => {
            let share = ours * 1e9 / tool;
            let goal = format!("≥ {BANDWIDTH_GOAL} × ib_write_bw");
            let note = format!("ib_write_bw {:.3} GB/s: {share:.3} of it", tool / 1e9);
            figure.note(note).judged(&goal, share >= BANDWIDTH_GOAL)
        }
        None => figure.note("ib_write_bw is not installed"),
    });
    Ok(())
}

/// One caller, several workers that sleep: one call to each at a time.
fn workers(arguments: &Arguments, outcome: &mut Outcome) -> Result<()> {
    let load = Load::echo(64, CPUS.worker);
    let (rounds, trips) = arguments.pick((ROUNDS, Trips::of(1_000)), (2, Trips::of(10)));
    for workers in WORKERS {
        let compared = alternate(
            rounds,
            |sample| several::spread(Over::Link(Waiting::Warm), workers, load, trips, sample),
            |sample| several::spread(Over::Verbs(Waiting::Warm), workers, load, trips, sample),
        )?;
        let name = format!("rdma link, {workers} workers at once");
        outcome.push(Detailed::beside(name, Raw::VerbsEvents.name(), &compared));
    }
    Ok(())
}
