//! What does a call over RDMA cost beside the verbs under it?
//!
//! Baseline: a ping-pong of writes with an immediate, written on verbs directly, that touches the same payload on the same CPUs.
//! It is held against ib_write_lat and ib_send_lat, or where both ends sleep against ib_send_lat and ibv_rc_pingpong. Gleaner's link alone
//! stands beside it.
//!
//! Needs an RDMA device: `make bench-rdma` runs it where there is one, or else in a virtual machine with Soft-RoCE, where the
//! ratios mean something and the times nothing.

use anyhow::Result;
use gleaner_benchmarks::{
    Arguments, Goal, Outcome, Sample,
    echo::Beside,
    effort,
    figure::Detailed,
    link::{self, Waiting},
    packets::Packets,
    peer,
    raw::{Load, Raw},
    stage::{Cpus, pin},
};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Bytes each way.
const PAYLOADS: [usize; 7] = [1, 64, KIB, 4 * KIB, 64 * KIB, MIB, 4 * MIB];
const HOT_GOAL: Goal = Goal::Ratio(1.05);
const WARM_GOAL: Goal = Goal::Ratio(1.15);
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
    outcome.on_rdma()?;
    pin(CPUS.caller)?;
    latencies(Waiting::Hot, Raw::Verbs, HOT_GOAL, &arguments, &mut outcome)?;
    latencies(Waiting::Warm, Raw::VerbsEvents, WARM_GOAL, &arguments, &mut outcome)?;
    outcome.publish(&arguments)
}

fn latencies(
    waiting: Waiting,
    raw: Raw,
    goal: Goal,
    arguments: &Arguments,
    outcome: &mut Outcome,
) -> Result<()> {
    let temperature = if waiting == Waiting::Hot { "hot" } else { "warm" };
    for payload in PAYLOADS {
        let name = format!("{temperature} rdma link, {}", effort::size(payload));
        let mut figure = latency(&name, waiting, raw, payload, arguments)?;
        if let Some((ours, verbs)) = packets(waiting, raw, payload)? {
            let note = format!("{ours:.1} packets a round trip, verbs alone {verbs:.1}");
            figure = figure.note(note);
        }
        outcome.push(figure.goal(Some(goal)));
    }
    Ok(())
}

fn latency(
    name: &str,
    waiting: Waiting,
    raw: Raw,
    payload: usize,
    arguments: &Arguments,
) -> Result<Detailed> {
    let (rounds, trips) = effort::of(payload, arguments);
    let beside = Beside { raw, payload, cpus: CPUS, rounds, trips, quick: arguments.quick };
    let load = Load::echo(payload, CPUS.worker);
    beside.measure(name.into(), |sample| link::round(waiting, load, trips, sample))
}

/// What a round trip sends, over the link and over verbs alone; `None` if the device does not count it.
fn packets(waiting: Waiting, raw: Raw, payload: usize) -> Result<Option<(f64, f64)>> {
    let Some(packets) = Packets::find()? else { return Ok(None) };
    let (load, mut unread) = (Load::echo(payload, CPUS.worker), Sample::new()?);
    let ours = packets.per_trip(|trips| link::round(waiting, load, trips, &mut unread))?;
    let verbs = packets.per_trip(|trips| raw.round(load, trips, &mut unread))?;
    Ok(Some((ours, verbs)))
}
