//! Does anything grow over many calls: memory, descriptors, latency?
//!
//! After each tenth of the calls the kernel is asked what every process of Gleaner's holds, this client included. The
//! figure is the last tenth beside the first. By default a million calls; `--calls 100000000` for the long run, of which a socket does a tenth.

use std::fs;

use anyhow::{Context, Result};
use gleaner::{Function, Waiting};
use gleaner_benchmarks::{
    Arguments, Compared, Outcome, Sample, Stage,
    caller::echo_round,
    figure::Detailed,
    stage::{NODE, Trips},
    transport::{TRANSPORTS, Transport},
};

const CALLS: u64 = 1_000_000;
const TENTHS: u64 = 10;
const PAYLOAD: usize = 64;
/// This thread and the worker's.
const SPINNING: usize = 2;

/// What one process holds.
struct Held {
    name: &'static str,
    rss_kib: i64,
    descriptors: i64,
}

fn main() -> Result<()> {
    let arguments = Arguments::read();
    let asks = "Does anything grow over many calls?";
    let mut outcome = Outcome::begin("endurance", asks, SPINNING, &arguments);
    let mut stage = Stage::simple()?;
    for transport in TRANSPORTS {
        ask(&mut stage, transport, &arguments, &mut outcome)?;
    }
    outcome.publish(&arguments)
}

fn ask(
    stage: &mut Stage,
    transport: &Transport,
    arguments: &Arguments,
    outcome: &mut Outcome,
) -> Result<()> {
    let pool = stage.client()?.acquire(transport.request(Waiting::Hot))?;
    let echo = pool.function(&stage.library, "echo")?;
    stage.pin_beside_worker()?;
    // The long run is shared memory's; over a socket it would take ten times as long.
    let long = arguments.calls.map(|calls| match transport.wanted {
        gleaner::Transport::Shm => calls,
        _ => calls / 10,
    });
    let calls = long.unwrap_or(arguments.pick(CALLS, 1_000));
    let tenth = Trips { warm_up: 0, counted: calls / TENTHS };
    let first = one_tenth(&echo, tenth)?;
    let held_first = look(stage)?;
    let (mut last, mut middles) = (first.clone(), vec![first.latencies.p50()]);
    for _ in 1..TENTHS {
        last = one_tenth(&echo, tenth)?;
        middles.push(last.latencies.p50());
    }
    let held_last = look(stage)?;
    let compared = Compared::once(last, first);
    let name = format!("{calls} {} calls, last tenth", transport.name);
    let mut figure = Detailed::beside(name, "first tenth", &compared);
    figure = figure.note(format!("p50 of each tenth, ns: {middles:?}"));
    for (then, now) in held_first.iter().zip(&held_last) {
        figure = figure.note(growth(then, now));
    }
    let grown = held_first.iter().zip(&held_last).any(|(then, now)| grows(then, now));
    outcome.push(figure.judged("no process grows", !grown));
    Ok(pool.release()?)
}

fn one_tenth(echo: &Function<'_>, trips: Trips) -> Result<Sample> {
    let mut sample = Sample::new()?;
    echo_round(echo, PAYLOAD, trips, &mut sample)?;
    Ok(sample)
}

/// Growth below which a process is taken for steady: allocators and the records of renewals move a little.
const STEADY_KIB: i64 = 1_024;

fn grows(then: &Held, now: &Held) -> bool {
    now.descriptors > then.descriptors || now.rss_kib > then.rss_kib + STEADY_KIB
}

fn growth(then: &Held, now: &Held) -> String {
    format!(
        "{}: resident {} KiB then {} KiB, descriptors {} then {}",
        now.name, then.rss_kib, now.rss_kib, then.descriptors, now.descriptors
    )
}

fn look(stage: &mut Stage) -> Result<Vec<Held>> {
    let worker = *stage.service.leased_workers(NODE).first().context("the worker is gone")?;
    let agent = stage.service.agent_pid(NODE).context("the agent is gone")?;
    let (keeper, harvester) = (stage.service.keeper(NODE).pid(), stage.service.harvester().pid());
    let own = std::process::id() as i32;
    let all = [
        ("client", own),
        ("worker", worker),
        ("agent", agent),
        ("keeper", keeper),
        ("harvester", harvester),
    ];
    all.into_iter().map(|(name, pid)| held(name, pid)).collect()
}

fn held(name: &'static str, pid: i32) -> Result<Held> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("read what the {name} holds"))?;
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    let rss_kib = rss.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0);
    let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as i64;
    Ok(Held { name, rss_kib, descriptors: open })
}
