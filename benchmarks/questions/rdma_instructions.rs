//! How many instructions does a call over RDMA take beyond verbs alone, client and worker together? And how many of them the link?
//!
//! Calls are counted by stepping both ends, as they run for everybody, through the same round trips (see
//! [`gleaner_benchmarks::steps`]), and so is the raw loop. It is seen that an end has posted by the system call that tells the device:
//! so this works with Soft-RoCE alone.
//!
//! The link alone is counted by callgrind, on any device: this program runs itself under valgrind, once over the link and once over
//! verbs alone, each with two numbers of round trips; the difference divided by the difference is one round trip's. The provider's own
//! instructions are in all of them.

use anyhow::Result;
use gleaner_benchmarks::{
    Arguments, Compared, Outcome, Stage,
    callgrind::{self, instructions},
    counted,
    figure::Detailed,
    peer,
    raw::{Load, Raw},
    stepped::{self, Over},
    steps,
};
use gleaner_fabric::rdma::Device;
use gleaner_testkit::Service;

const PAYLOADS: [usize; 3] = [1, 64, 4096];
/// Round trips that are stepped through: each takes about a second in User-Mode Linux, and the middle of a hundred is the same.
const STEPPED_TRIPS: usize = 12;
/// Round trips of the shorter and the longer run: whole rounds of completions and of receives.
const FEW: u64 = 256;
const MANY: u64 = 1280;
/// What both ends of a call may take beyond verbs alone.
const GOAL: u64 = 600;

fn main() -> Result<()> {
    if peer::play_role()? || stepped::play_caller()? {
        return Ok(());
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [callgrind::COUNTED, over, payload, trips] => {
            let (load, trips) = (Load::echo(payload.parse()?, 0), trips.parse()?);
            if over == "link" {
                counted::over_link(load, trips)
            } else {
                counted::over_verbs(load, trips)
            }
        }
        _ => ask(&Arguments::read()),
    }
}

fn ask(arguments: &Arguments) -> Result<()> {
    let asks = "How many instructions does a call over RDMA take beyond verbs alone?";
    let mut outcome = Outcome::begin("rdma_instructions", asks, 0, arguments);
    let (device, _) = Device::open_active()?;
    if steps::are_counted_here() && device.name().starts_with("rxe") {
        ask_calls(arguments, &mut outcome)?;
    } else {
        outcome.cannot("whole calls: stepping knows Soft-RoCE on x86-64 alone");
    }
    if callgrind::is_installed() {
        ask_link(arguments, &mut outcome)?;
    } else {
        outcome.cannot("the link's share: valgrind is not installed");
    }
    outcome.publish(arguments)
}

/// Client, link and worker.
fn ask_calls(arguments: &Arguments, outcome: &mut Outcome) -> Result<()> {
    let service = Service::with_nodes(1).configure(|config| config.executor.rdma = true).start()?;
    let stage = Stage::on(service, 1)?;
    for payload in PAYLOADS {
        let trips = arguments.pick(STEPPED_TRIPS, 10);
        let ours = stepped::count_calls(&stage, Over::Verbs, payload, trips)?;
        let raw = stepped::count_raw(Over::Verbs, payload, trips)?;
        let name = format!("instructions an RDMA call, both ends, {payload} B");
        outcome.push(ours.beside(&raw, Raw::Verbs, name, Some(GOAL))?);
    }
    Ok(())
}

/// The link's two ends alone.
fn ask_link(arguments: &Arguments, outcome: &mut Outcome) -> Result<()> {
    for payload in PAYLOADS {
        let per_trip = |over: &str| {
            callgrind::per_trip(
                &[over, &payload.to_string()],
                arguments.pick((FEW, MANY), (32, 64)),
            )
        };
        let (ours, raw) = (per_trip("link")?, per_trip("verbs")?);
        let figure = Detailed::beside(
            format!("instructions of the link in a round trip, both ends, {payload} B"),
            Raw::Verbs.name(),
            &Compared::once(instructions(ours)?, instructions(raw)?),
        );
        let calls = |over: &str| {
            callgrind::system_calls(&[over, &payload.to_string()], arguments.pick((8, 72), (2, 4)))
        };
        let (calls, verbs) = (calls("link")?, calls("verbs")?);
        let added = ours.saturating_sub(raw);
        let figure = figure.counted("instructions").note(format!("{added} more than verbs alone"));
        outcome.push(figure.note(format!("{calls} system calls, verbs alone {verbs}")));
    }
    Ok(())
}
