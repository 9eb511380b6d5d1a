//! How many instructions does the client add to a round trip over TCP?
//!
//! Counted by callgrind, so that no noise of the machine touches them: this program runs itself under valgrind, once calling
//! `echo` and once passing the same bytes over a blocking socket, each with two numbers of round trips; the difference
//! divided by the difference is one round trip's. Warm waiting on both sides, since a spinner's instructions count time.
//! The worker's share is not visible to callgrind: its sandbox admits no valgrind.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use gleaner::{Client, Library, Options, Request, Transport, Transports, Waiting};
use gleaner_benchmarks::{
    Arguments, Compared, Outcome, Sample, Stage, caller::echo_round, figure::Detailed, stage::Trips,
};
use gleaner_config::Config;
use gleaner_testkit::{process::run_bounded, service::Programs};

const PAYLOAD: usize = 64;
/// Round trips of the shorter and the longer run.
const FEW: u64 = 1_000;
const MANY: u64 = 11_000;
/// How long one run may take under valgrind.
const BOUND: Duration = Duration::from_secs(120);
/// The first word of a run under valgrind.
const COUNTED: &str = "counted";

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [COUNTED, "calls", config, trips] => calls(Path::new(config), trips.parse()?),
        [COUNTED, "socket", address, trips] => socket(address, trips.parse()?),
        _ => ask(&Arguments::read()),
    }
}

fn ask(arguments: &Arguments) -> Result<()> {
    let asks = "How many instructions does the client add to a round trip?";
    let mut outcome = Outcome::begin("instructions", asks, 0, arguments);
    outcome.cannot("the worker's share: callgrind cannot look into its sandbox, and hardware counters need a machine that has them (perf stat -e instructions:u -p <worker>)");
    if Command::new("valgrind").arg("--version").output().is_err() {
        outcome.cannot("the client's share: valgrind is not installed");
        return outcome.publish(arguments);
    }
    let stage = Stage::simple()?;
    let config = stage.service.config_path().display().to_string();
    // Once beforehand: the first run brings the library onto the node, which no later one does.
    count("calls", &config, FEW)?;
    let ours = per_trip("calls", &config)?;
    let raw = per_trip("socket", &echo_server()?.to_string())?;
    let mut figure = Detailed::beside(
        format!("client's instructions a round trip, {PAYLOAD} B"),
        "blocking socket",
        &Compared::once(instructions(ours)?, instructions(raw)?),
    );
    figure.figure.unit = "instructions".into();
    figure.figure.throughput = 0.0;
    figure.figure.baseline_throughput = None;
    outcome.push(figure.note(format!("{} more than the socket alone", ours.saturating_sub(raw))));
    outcome.publish(arguments)
}

/// A count in the place of a latency: the figure's unit says so.
fn instructions(count: u64) -> Result<Sample> {
    let mut sample = Sample::new()?;
    sample.record(Duration::from_nanos(count));
    Ok(sample)
}

fn per_trip(what: &str, whereto: &str) -> Result<u64> {
    let (few, many) = (count(what, whereto, FEW)?, count(what, whereto, MANY)?);
    Ok(many.saturating_sub(few) / (MANY - FEW))
}

/// Instructions of a whole run.
fn count(what: &str, whereto: &str, trips: u64) -> Result<u64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    command.arg(std::env::current_exe()?).args([COUNTED, what, whereto, &trips.to_string()]);
    let output = run_bounded(command, BOUND).context("run valgrind")?;
    let report = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the run under valgrind failed: {report}");
    let collected = report.lines().find_map(|line| line.split_once("Collected : "));
    let (_, count) = collected.with_context(|| format!("valgrind counted nothing: {report}"))?;
    count.trim().parse().context("valgrind's count")
}

/// Under valgrind: calls, checked.
fn calls(config: &Path, trips: u64) -> Result<()> {
    let config = Config::load(config)?.config;
    let client = Client::connect(Options::from(&config))?;
    let over = Transports::Only(Transport::Tcp);
    let request = Request::new().waiting(Waiting::Warm).transport(over);
    let pool = client.acquire(request)?;
    let library: PathBuf = Programs::find()?.test_functions();
    let echo = pool.function(&Library::from_file(library)?, "echo")?;
    echo_round(&echo, PAYLOAD, Trips { warm_up: 0, counted: trips }, &mut Sample::new()?)?;
    Ok(pool.release()?)
}

/// Under valgrind: the same bytes, checked in the same way, without Gleaner.
fn socket(address: &str, trips: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (mut sample, mut input, mut output) = (Sample::new()?, vec![7; PAYLOAD], vec![0; PAYLOAD]);
    for trip in 0..trips {
        input[0] = trip as u8;
        sample.time(|| {
            stream.write_all(&input)?;
            Ok(stream.read_exact(&mut output)?)
        })?;
        if input != output {
            bail!("the echo is not what was sent");
        }
    }
    Ok(())
}

/// Sends back what comes, for as long as this program runs.
fn echo_server() -> Result<std::net::SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut peer in listener.incoming().flatten() {
            let mut bytes = [0; PAYLOAD];
            let _ = peer.set_nodelay(true);
            while peer.read_exact(&mut bytes).and_then(|()| peer.write_all(&bytes)).is_ok() {}
        }
    });
    Ok(address)
}
