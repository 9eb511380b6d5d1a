//! What does a call over RDMA cost beside the verbs under it?
//!
//! Baseline: a ping-pong of writes with an immediate, written on verbs directly, that touches the same payload on the same CPUs.
//! It is held against ib_write_lat, or where both ends sleep against ib_send_lat. Gleaner's link alone stands beside it.
//!
//! Needs an RDMA device: `make bench-rdma` runs it where there is one, or else in a virtual machine with Soft-RoCE, where the
//! ratios mean something and the times nothing.

use anyhow::Result;
use gleaner_benchmarks::{
    Arguments, Goal, Outcome, Sample, alternate, effort,
    figure::Detailed,
    link::{self, Waiting},
    packets::Packets,
    peer,
    raw::{Load, Raw},
    reference,
    stage::{Cpus, pin},
};
use gleaner_proto::header::HEADER_LEN;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
/// Bytes each way.
const PAYLOADS: [usize; 7] = [1, 64, KIB, 4 * KIB, 64 * KIB, MIB, 4 * MIB];
/// Up to so many times the packets count as the same.
const PACKETS_ALIKE: f64 = 1.1;
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
        let figure = latency(&name, (waiting, payload), (raw, payload), arguments)?;
        let packets = packets(waiting, raw, payload)?;
        let Some((ours, verbs)) = packets else {
            outcome.push(figure.goal(Some(goal)));
            continue;
        };
        let note = format!("{ours:.1} packets a round trip, verbs alone {verbs:.1}");
        outcome.push(figure.note(note).goal(Some(goal)));
        if ours > verbs * PACKETS_ALIKE {
            let name = format!("{name}, beside as many packets");
            let raw = (raw, payload + HEADER_LEN);
            outcome.push(latency(&name, (waiting, payload), raw, arguments)?.goal(Some(goal)));
        }
    }
    Ok(())
}

/// The link with one payload beside verbs alone with another, mostly the same.
fn latency(
    name: &str,
    (waiting, payload): (Waiting, usize),
    (raw, beside): (Raw, usize),
    arguments: &Arguments,
) -> Result<Detailed> {
    let (rounds, trips) = effort::of(payload, arguments);
    let compared = alternate(
        rounds,
        |sample| link::round(waiting, Load::echo(payload, CPUS.worker), trips, sample),
        |sample| raw.round(Load::echo(beside, CPUS.worker), trips, sample),
    )?;
    let figure = Detailed::beside(name, raw.name(), &compared);
    Ok(figure.checked(reference::of_echo(raw, beside, CPUS, arguments.quick)?))
}

/// What a round trip sends, over the link and over verbs alone; `None` if the device does not count it.
fn packets(waiting: Waiting, raw: Raw, payload: usize) -> Result<Option<(f64, f64)>> {
    let Some(packets) = Packets::find()? else { return Ok(None) };
    let (load, mut unread) = (Load::echo(payload, CPUS.worker), Sample::new()?);
    let ours = packets.per_trip(|trips| link::round(waiting, load, trips, &mut unread))?;
    let verbs = packets.per_trip(|trips| raw.round(load, trips, &mut unread))?;
    Ok(Some((ours, verbs)))
}
