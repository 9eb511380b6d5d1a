//! How many instructions does a call take beyond the transport under it?
//!
//! Over shared memory both ends are counted, as they run for everybody, by stepping them through the same round trips (see
//! [`gleaner_benchmarks::steps`]); the raw loop is counted in the same way. Spinning is in neither: each end finds its message at
//! its first look.
//!
//! Over TCP the client's end is counted by callgrind: this program runs itself under valgrind, once calling `echo` and once
//! passing the same bytes over a blocking socket, each with two numbers of round trips; the difference divided by the
//! difference is one round trip's. Warm waiting on both sides, since a spinner's instructions count time.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Result, bail};
use gleaner::{Client, Library, Options, Request, Transport, Transports, Waiting};
use gleaner_benchmarks::{
    Arguments, Compared, Outcome, Sample, Stage,
    caller::echo_round,
    callgrind::{self, COUNTED, count, instructions},
    figure::Detailed,
    raw::Raw,
    stage::Trips,
    stepped::{self, Over},
    steps,
};
use gleaner_config::Config;
use gleaner_testkit::service::Programs;

/// Bytes each way over shared memory.
const PAYLOADS: [usize; 3] = [1, 64, 4096];
/// Round trips that are stepped through.
const STEPPED_TRIPS: usize = 200;
/// What both ends of a call over shared memory may take beyond the raw loop.
const GOAL: u64 = 500;

/// Bytes each way over TCP.
const PAYLOAD: usize = 64;
/// Round trips of the shorter and the longer run.
const FEW: u64 = 1_000;
const MANY: u64 = 11_000;

fn main() -> Result<()> {
    if stepped::play_caller()? {
        return Ok(());
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [COUNTED, "calls", config, trips] => calls(Path::new(config), trips.parse()?),
        [COUNTED, "socket", address, trips] => socket(address, trips.parse()?),
        _ => ask(&Arguments::read()),
    }
}

fn ask(arguments: &Arguments) -> Result<()> {
    let asks = "How many instructions does a call take beyond the transport under it?";
    let mut outcome = Outcome::begin("instructions", asks, 0, arguments);
    let stage = Stage::simple()?;
    if steps::are_counted_here() {
        ask_memory(&stage, arguments, &mut outcome)?;
    } else {
        outcome.cannot("calls over shared memory: stepping knows x86-64 alone");
    }
    outcome.cannot("the worker's share over TCP: callgrind cannot look into its sandbox");
    if callgrind::is_installed() {
        ask_socket(&stage, &mut outcome)?;
    } else {
        outcome.cannot("the client's share over TCP: valgrind is not installed");
    }
    outcome.publish(arguments)
}

/// Both ends over shared memory.
fn ask_memory(stage: &Stage, arguments: &Arguments, outcome: &mut Outcome) -> Result<()> {
    for payload in PAYLOADS {
        let trips = arguments.pick(STEPPED_TRIPS, 10);
        let ours = stepped::count_calls(stage, Over::Memory, payload, trips)?;
        let raw = stepped::count_raw(Over::Memory, payload, trips)?;
        let name = format!("instructions a shm call, both ends, {payload} B");
        outcome.push(ours.beside(&raw, Raw::Shm, name, GOAL)?);
    }
    Ok(())
}

/// The client's end over TCP.
fn ask_socket(stage: &Stage, outcome: &mut Outcome) -> Result<()> {
    let config = stage.service.config_path().display().to_string();
    // Once beforehand: the first run brings the library onto the node, which no later one does.
    count(&["calls", &config], FEW)?;
    let ours = callgrind::per_trip(&["calls", &config], (FEW, MANY))?;
    let address = echo_server()?.to_string();
    let raw = callgrind::per_trip(&["socket", &address], (FEW, MANY))?;
    let figure = Detailed::beside(
        format!("client's instructions a warm tcp call, {PAYLOAD} B"),
        Raw::TcpBlocking.name(),
        &Compared::once(instructions(ours)?, instructions(raw)?),
    );
    let note = format!("{} more than the socket alone", ours.saturating_sub(raw));
    outcome.push(figure.counted("instructions").note(note));
    Ok(())
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
