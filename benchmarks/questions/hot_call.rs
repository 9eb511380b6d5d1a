//! What does a hot call over TCP cost beside the socket under it?
//!
//! Baseline: two threads, one CPU each, that pass the same payload to and fro over a busy-polled loopback socket. Gleaner: a
//! client on one CPU calls `echo` on a worker pinned to the other, through the whole service on a private Slurm. Rounds
//! alternate, so that both see the same machine.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use gleaner::{Client, Function, Library, Options, Request, Waiting};
use gleaner_benchmarks::{Figure, latencies, pin, publish, record};
use gleaner_testkit::Service;
use hdrhistogram::Histogram;

/// Bytes each way.
const PAYLOADS: [usize; 4] = [1, 64, 1024, 4000];
/// Rounds of each side, alternating, and round trips in one.
const ROUNDS: usize = 10;
const TRIPS: usize = 3_000;
/// Round trips at the start of each round that are not counted.
const WARM_UP: usize = 300;
/// How long harvesting the node may take.
const HARVEST_BOUND: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let service = Service::with_nodes(1).start()?;
    service.wait_harvested(1, HARVEST_BOUND);
    let client = Client::connect(Options::from(service.config()))?;
    let library = Library::from_file(service.programs().test_functions())?;
    let pool = client.acquire(Request::new().waiting(Waiting::Hot))?;
    let echo = pool.function(&library, "echo")?;
    let (ours, theirs) = cpus(&service)?;
    pin(ours)?;
    let mut figures = Vec::new();
    for payload in PAYLOADS {
        let (mut raw, mut called) = (latencies()?, latencies()?);
        for _ in 0..ROUNDS {
            raw_round(payload, theirs, &mut raw)?;
            call_round(&echo, payload, &mut called)?;
        }
        let name = format!("hot tcp call, {payload} B");
        figures.push(Figure::new(name, &called, "busy-polled socket", &raw));
    }
    pool.release()?;
    publish(&figures, Path::new("target/bench/hot_call.json"))
}

/// This thread's CPU, and the worker's, which the baseline's other end shares.
fn cpus(service: &Service) -> Result<(usize, usize)> {
    let worker = *service.leased_workers("n1").first().context("no worker holds a lease")?;
    let tasks =
        std::fs::read_dir(format!("/proc/{worker}/task")).context("read the worker's threads")?;
    for task in tasks {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        if let Some(Ok(cpu)) = allowed.map(|list| list.trim().parse::<usize>()) {
            return Ok((usize::from(cpu == 0), cpu));
        }
    }
    bail!("no thread of the worker is pinned to one CPU")
}

fn call_round(echo: &Function<'_>, payload: usize, called: &mut Histogram<u64>) -> Result<()> {
    let (input, mut output) = (vec![7; payload], vec![0; payload]);
    for trip in 0..WARM_UP + TRIPS {
        let began = Instant::now();
        echo.invoke_into(&input, &mut output)?;
        if trip >= WARM_UP {
            record(called, began.elapsed());
        }
    }
    Ok(())
}

/// The same bytes over a socket alone; the other end reads all of them before it answers, as a worker does.
fn raw_round(payload: usize, cpu: usize, raw: &mut Histogram<u64>) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen")?;
    let address = listener.local_addr()?;
    let server = thread::spawn(move || -> Result<()> {
        pin(cpu)?;
        let mut peer = ready(listener.accept()?.0)?;
        let mut bytes = vec![0; payload];
        for _ in 0..WARM_UP + TRIPS {
            read_all(&mut peer, &mut bytes)?;
            write_all(&mut peer, &bytes)?;
        }
        Ok(())
    });
    let mut peer = ready(TcpStream::connect(address).context("connect")?)?;
    let (input, mut output) = (vec![7; payload], vec![0; payload]);
    for trip in 0..WARM_UP + TRIPS {
        let began = Instant::now();
        write_all(&mut peer, &input)?;
        read_all(&mut peer, &mut output)?;
        if trip >= WARM_UP {
            record(raw, began.elapsed());
        }
    }
    server.join().map_err(|_| anyhow::anyhow!("the baseline's other end panicked"))?
}

fn ready(stream: TcpStream) -> Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn read_all(peer: &mut TcpStream, mut bytes: &mut [u8]) -> Result<()> {
    while !bytes.is_empty() {
        match peer.read(bytes) {
            Ok(0) => bail!("the baseline's other end closed"),
            Ok(read) => bytes = &mut bytes[read..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn write_all(peer: &mut TcpStream, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match peer.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
