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
    thread,
};

use anyhow::{Result, bail};
use gleaner::{Client, Library, Options, Request, Transport, Transports, Waiting};
use gleaner_benchmarks::{
    Arguments, Compared, Outcome, Sample, Stage,
    caller::echo_round,
    callgrind::{self, COUNTED, count, instructions},
    figure::Detailed,
    stage::Trips,
};
use gleaner_config::Config;
use gleaner_testkit::service::Programs;

const PAYLOAD: usize = 64;
/// Round trips of the shorter and the longer run.
const FEW: u64 = 1_000;
const MANY: u64 = 11_000;

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
    if !callgrind::is_installed() {
        outcome.cannot("the client's share: valgrind is not installed");
        return outcome.publish(arguments);
    }
    let stage = Stage::simple()?;
    let config = stage.service.config_path().display().to_string();
    // Once beforehand: the first run brings the library onto the node, which no later one does.
    count(&["calls", &config], FEW)?;
    let ours = callgrind::per_trip(&["calls", &config], (FEW, MANY))?;
    let address = echo_server()?.to_string();
    let raw = callgrind::per_trip(&["socket", &address], (FEW, MANY))?;
    let figure = Detailed::beside(
        format!("client's instructions a round trip, {PAYLOAD} B"),
        "blocking socket",
        &Compared::once(instructions(ours)?, instructions(raw)?),
    );
    let note = format!("{} more than the socket alone", ours.saturating_sub(raw));
    outcome.push(figure.counted("instructions").note(note));
    outcome.publish(arguments)
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
