//! What does it cost to have a large payload worked on elsewhere?
//!
//! The function sums every word of its input where it lies. Held against three things: the same sum over the same bytes sent
//! through the transport alone, one copy of them in memory, and the function called in place, without any transport.

use anyhow::{Result, ensure};
use gleaner::{Function, Waiting};
use gleaner_benchmarks::{
    Arguments, Moment, Outcome, Sample, Stage, alternate,
    figure::Detailed,
    raw::{Load, Work, copy, sum},
    reference,
    stage::Trips,
    transport::{TRANSPORTS, Transport},
};

const MIB: usize = 1 << 20;
/// Bytes of the input.
const PAYLOADS: [usize; 4] = [MIB, 4 * MIB, 16 * MIB, 64 * MIB];
const QUICK_PAYLOADS: [usize; 1] = [MIB];
const ROUNDS: usize = 11;
/// Bytes that one round moves, however many calls that is.
const ROUND_BYTES: usize = 64 * MIB;
/// This thread and the worker's, or the peer's.
const SPINNING: usize = 2;

fn main() -> Result<()> {
    let arguments = Arguments::read();
    let asks = "What does it cost to have a large payload worked on elsewhere?";
    let mut outcome = Outcome::begin("bandwidth", asks, SPINNING, &arguments);
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
    let payloads = arguments.pick(&PAYLOADS[..], &QUICK_PAYLOADS);
    let largest = payloads.iter().copied().max().unwrap_or(MIB) as u64;
    let request = transport.request(Waiting::Hot).payload_max(largest);
    let pool = stage.client()?.acquire(request.memory(4 * largest + (64 << 20)))?;
    let function = pool.function(&stage.library, "sum")?;
    let cpus = stage.pin_beside_worker()?;
    for &bytes in payloads {
        let rounds = arguments.pick(ROUNDS, 2);
        let trips = arguments.pick(Trips::of((ROUND_BYTES / bytes) as u64), Trips::of(2));
        let name = |what: &str| format!("{} MiB over {}{what}", bytes / MIB, transport.name);
        let load = Load { request: bytes, work: Work::Sum, depth: 1, cpu: cpus.worker };
        let mut references = reference::of_sum(transport.hot, bytes, trips, cpus, arguments.quick);
        let over_raw = alternate(
            rounds,
            |sample| sum_round(&function, bytes, trips, sample),
            |sample| {
                transport.hot.round(load, trips, sample)?;
                references.measure(sample)
            },
        )?;
        let figure = Detailed::beside(name(""), transport.hot.name(), &over_raw);
        let figure = rate(figure, bytes).checked(references.all());
        outcome.push(figure.goal(transport.bandwidth_goal));
        for (what, baseline) in [(", beside a copy", copy::NAME), (", beside in place", "in place")]
        {
            let mut references = reference::of_copy(bytes, arguments.quick);
            let raw = |sample: &mut Sample| match baseline {
                copy::NAME => {
                    copy::round(bytes, trips, sample)?;
                    references.measure(sample)
                }
                _ => in_place_round(bytes, trips, sample),
            };
            let ours = |sample: &mut Sample| sum_round(&function, bytes, trips, sample);
            let compared = alternate(rounds, ours, raw)?;
            let figure = rate(Detailed::beside(name(what), baseline, &compared), bytes);
            outcome.push(match baseline {
                copy::NAME => figure.checked(references.all()),
                _ => figure,
            });
        }
    }
    Ok(pool.release()?)
}

fn rate(figure: Detailed, bytes: usize) -> Detailed {
    let gbps = |per_second: f64| per_second * bytes as f64 / 1e9;
    let ours = gbps(figure.figure.throughput);
    let raw = gbps(figure.figure.baseline_throughput.unwrap_or(0.0));
    figure.note(format!("{ours:.2} GB/s, baseline {raw:.2} GB/s"))
}

fn sum_round(
    function: &Function<'_>,
    bytes: usize,
    trips: Trips,
    sample: &mut Sample,
) -> Result<()> {
    let mut input = vec![7u8; bytes];
    let mut output = [0; 8];
    for trip in 0..trips.all() {
        input[0] = trip as u8;
        let expected = sum(&input);
        let began = Moment::now();
        function.invoke_into(&input, &mut output)?;
        let took = began.elapsed();
        ensure!(u64::from_le_bytes(output) == expected, "the sum is wrong");
        if trip >= trips.warm_up {
            sample.record(took);
        }
    }
    Ok(())
}

/// The same function of the same bytes, in this process.
fn in_place_round(bytes: usize, trips: Trips, sample: &mut Sample) -> Result<()> {
    let mut input = vec![7u8; bytes];
    for trip in 0..trips.all() {
        input[0] = trip as u8;
        let began = Moment::now();
        std::hint::black_box(sum(std::hint::black_box(&input)));
        if trip >= trips.warm_up {
            sample.record(began.elapsed());
        }
    }
    Ok(())
}
