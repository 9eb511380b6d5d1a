//! Round trips over shared memory that are counted by stepping: the programs that make them, and where their messages lie.
//!
//! A caller is this program again, started with [`STEPPED`]: it calls without a pause until it is killed. Gleaner's and the
//! baseline's do the same beside it: change a byte of the input, compare the reply.

use std::{
    path::Path,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use gleaner::{Client, Library, Options, Request, Transport, Transports, Waiting};
use gleaner_config::Config;
use gleaner_fabric::{
    Geometry,
    shm::{Direction, Layout},
};
use gleaner_proto::header::HEADER_LEN;
use gleaner_testkit::{poll_until, service::Programs};

use crate::{
    Stage,
    blocks::Blocks,
    raw::{self, Load, Transport as _},
    steps::{LockStep, Places, Trip, mapped, posted, threads},
};

/// The first word of a caller's command line.
pub const STEPPED: &str = "stepped";
/// How long a caller may take to begin.
const BOUND: Duration = Duration::from_secs(30);
/// How long a lease lasts.
const LEASE: Duration = Duration::from_secs(600);
/// Messages before the first that is counted: memory is filled in, and functions are opened.
const WARM_UP: u32 = 1000;
/// Trips in lock step before the first that is counted: the first of all begins in its middle.
const SETTLE: usize = 4;
/// What the calls' lane is.
const GEOMETRY: Geometry = Geometry { window: 16, slot_bytes: 8 << 10, arena_bytes: 0 };
/// Where a line of the link's ring holds its number.
const NUMBER_AT: u64 = HEADER_LEN as u64 - 8;

/// A caller's process. Dropped: killed.
struct Caller(Child);

impl Caller {
    fn start(words: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(STEPPED).args(words);
        Ok(Self(command.spawn().context("start a caller")?))
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Waits until it calls; returns where it has mapped the memory file.
    fn calling(&self, file: &str, requests: impl Fn(u64) -> Places) -> Result<u64> {
        let calls = || {
            let places = requests(mapped(self.pid(), file).ok()?);
            posted(self.pid(), places).ok().filter(|number| *number > WARM_UP)
        };
        ensure!(poll_until(BOUND, || calls().is_some()), "a caller does not begin");
        mapped(self.pid(), file)
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Is the caller, if this process was started as one: true then, once it is over.
pub fn play_caller() -> Result<bool> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [STEPPED, "raw", payload] => call_raw(payload.parse()?)?,
        [STEPPED, config, payload] => call(Path::new(config), payload.parse()?)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn call(config: &Path, payload: usize) -> Result<()> {
    let config = Config::load(config)?.config;
    let client = Client::connect(Options::from(&config))?;
    let Geometry { window, slot_bytes, arena_bytes } = GEOMETRY;
    let over = Transports::Only(Transport::Shm);
    // For longer than stepping takes: it renews when it is on its way, which is slow then.
    let request = Request::new().waiting(Waiting::Hot).transport(over).ttl(LEASE);
    let request = request.window(window).slot_bytes(slot_bytes).arena_bytes(arena_bytes);
    let pool = client.acquire(request)?;
    let library = Library::from_file(Programs::find()?.test_functions())?;
    let echo = pool.function(&library, "echo")?;
    again_and_again(payload, |input, output| {
        echo.invoke_into(input, output)?;
        Ok(())
    })
}

fn call_raw(payload: usize) -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut end = raw::spinning(Load::echo(payload, cpus - 1))?;
    again_and_again(payload, |input, output| {
        end.send(input)?;
        end.receive(output)
    })
}

fn again_and_again(
    payload: usize,
    mut echo: impl FnMut(&[u8], &mut [u8]) -> Result<()>,
) -> Result<()> {
    let (mut input, mut output) = (vec![7u8; payload], vec![0; payload]);
    loop {
        input[0] = input[0].wrapping_add(1);
        echo(&input, &mut output)?;
        ensure!(input == output, "the echo is not what was sent");
    }
}

/// What was counted.
pub struct Counted {
    /// Each round trip.
    pub trips: Vec<Trip>,
    /// The functions of a usual trip, the most first: the client's and the worker's.
    pub functions: [Vec<(String, u64)>; 2],
}

impl Counted {
    /// The middle of all trips: what is done once in many calls is not in it.
    pub fn middle(&self, of: impl Fn(Trip) -> u64) -> u64 {
        let mut counts: Vec<u64> = self.trips.iter().map(|trip| of(*trip)).collect();
        counts.sort_unstable();
        counts.get(counts.len() / 2).copied().unwrap_or(0)
    }
}

/// Round trips of calls, both ends as they run for everybody: the library, and the worker in its sandbox.
pub fn count_calls(stage: &Stage, payload: usize, trips: usize) -> Result<Counted> {
    let config = stage.service.config_path().display().to_string();
    let caller = Caller::start(&[&config, &payload.to_string()])?;
    let layout = Layout::new(GEOMETRY)?;
    let places = |base: u64, direction| Places {
        first: base + layout.half(direction).line(0) as u64 + NUMBER_AT,
        stride: HEADER_LEN as u64,
        count: layout.lines,
    };
    let base = caller.calling("gleaner-link", |base| places(base, Direction::Requests))?;
    let worker = stage.only_worker()?;
    let lane = threads(worker)?.into_iter().find(|(name, _)| name == "lane-0");
    let (_, lane) = lane.context("the worker has no lane")?;
    let client = (caller.pid(), places(base, Direction::Requests));
    let at_worker = (lane, places(base, Direction::Responses));
    count([caller.pid(), worker], client, at_worker, trips)
}

/// Round trips of the baseline.
pub fn count_raw(payload: usize, trips: usize) -> Result<Counted> {
    let caller = Caller::start(&["raw", &payload.to_string()])?;
    let stride = raw::stride(Load::echo(payload, 0)) as u64;
    let places = |first: u64| Places { first, stride, count: 1 };
    let base = caller.calling("baseline", places)?;
    let peer = threads(caller.pid())?.into_iter().find(|(_, thread)| *thread != caller.pid());
    let (_, peer) = peer.context("the baseline has no peer")?;
    let pids = [caller.pid(); 2];
    count(pids, (caller.pid(), places(base)), (peer, places(base + stride)), trips)
}

fn count(
    pids: [i32; 2],
    client: (i32, Places),
    worker: (i32, Places),
    trips: usize,
) -> Result<Counted> {
    let mut step = LockStep::begin(pids[0], client, worker)?;
    for _ in 0..SETTLE {
        step.trip(|_, _| {})?;
    }
    let (mut counted, mut addresses) = (Vec::with_capacity(trips), Vec::with_capacity(trips));
    for _ in 0..trips {
        let mut seen = Vec::new();
        counted.push(step.trip(|client, at| seen.push((client, at)))?);
        addresses.push(seen);
    }
    let mut counted = Counted { trips: counted, functions: Default::default() };
    let usual = counted.middle(Trip::both) as usize;
    addresses.retain(|seen| seen.len() == usual);
    for (end, pid) in pids.into_iter().enumerate() {
        let mut blocks = Blocks::default();
        let all = addresses.iter().flatten().filter(|(client, _)| *client == (end == 0));
        all.for_each(|(_, at)| blocks.see(*at));
        counted.functions[end] = blocks.by_function(pid, addresses.len().max(1) as u64)?;
    }
    Ok(counted)
}
