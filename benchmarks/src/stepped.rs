//! Round trips that are counted by stepping: the programs that make them, and where their messages lie in shared memory.
//!
//! A caller is this program again, started with [`STEPPED`]: it calls without a pause until it is killed. Gleaner's and the
//! baseline's do the same beside it: change a byte of the input, compare the reply.

use std::{
    io::{Read, Write},
    os::fd::AsFd,
    path::Path,
    process::{Child, Command, Stdio},
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
use gleaner_testkit::service::Programs;
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use crate::{
    Stage,
    blocks::Blocks,
    raw::{self, Load},
    shares::Counted,
    steps::{LockStep, Places, Trip, mapped, only_child, threads},
};

/// The first word of a caller's command line; and the second, if it is the baseline's.
const STEPPED: &str = "stepped";
const RAW: &str = "raw";
/// How long a caller may take to begin.
const BOUND: Duration = Duration::from_secs(30);
/// How long a lease lasts.
const LEASE: Duration = Duration::from_secs(600);
/// Messages before the first that is counted: memory is filled in, and functions are opened.
const WARM_UP: u64 = 1000;
/// Trips in lock step before the first that is counted: the first of all begins in its middle.
const SETTLE: usize = 4;
/// What the calls' lane is.
const GEOMETRY: Geometry = Geometry { window: 16, slot_bytes: 8 << 10, arena_bytes: 0 };
/// Where a line of the link's ring holds its number.
const NUMBER_AT: u64 = HEADER_LEN as u64 - 8;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Calls over shared memory, and cache lines alone.
    Memory,
    /// Calls over RDMA, and verbs alone.
    Verbs,
    /// Calls over TCP, and a busy socket alone.
    Socket,
}

impl Over {
    fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Verbs => "verbs",
            Self::Socket => "socket",
        }
    }

    fn named(name: &str) -> Result<Self> {
        let known =
            [Self::Memory, Self::Verbs, Self::Socket].into_iter().find(|over| over.name() == name);
        known.context("a caller is not started by hand")
    }
}

/// A caller's process. Dropped: killed.
struct Caller(Child);

impl Caller {
    /// Returns once it calls.
    fn start(words: &[&str]) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(STEPPED).args(words).stdout(Stdio::piped());
        let mut caller = Self(command.spawn().context("start a caller")?);
        let mut says = caller.0.stdout.take().context("the caller's output")?;
        let bound = PollTimeout::try_from(BOUND)?;
        poll(&mut [PollFd::new(says.as_fd(), PollFlags::POLLIN)], bound)?;
        fcntl(&says, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        says.read_exact(&mut [0]).context("a caller does not begin")?;
        Ok(caller)
    }

    fn pid(&self) -> i32 {
        self.0.id() as i32
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
        [STEPPED, RAW, over, payload] => call_raw(Over::named(over)?, payload.parse()?)?,
        [STEPPED, config, over, payload] => {
            call(Path::new(config), Over::named(over)?, payload.parse()?)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn call(config: &Path, over: Over, payload: usize) -> Result<()> {
    let config = Config::load(config)?.config;
    let client = Client::connect(Options::from(&config))?;
    let Geometry { window, slot_bytes, arena_bytes } = GEOMETRY;
    let over = match over {
        Over::Memory => Transports::Only(Transport::Shm),
        Over::Verbs => Transports::Only(Transport::Rdma),
        Over::Socket => Transports::Only(Transport::Tcp),
    };
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

fn call_raw(over: Over, payload: usize) -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let load = Load::echo(payload, cpus - 1);
    match over {
        Over::Memory => call_over(raw::spinning(load)?, payload),
        Over::Verbs => call_over(raw::polled(load)?, payload),
        Over::Socket => call_over(raw::busy(load)?, payload),
    }
}

fn call_over(mut end: impl raw::Transport, payload: usize) -> Result<()> {
    again_and_again(payload, |input, output| {
        end.send(input)?;
        end.receive(output)
    })
}

/// Says so after some calls.
fn again_and_again(
    payload: usize,
    mut echo: impl FnMut(&[u8], &mut [u8]) -> Result<()>,
) -> Result<()> {
    let (mut input, mut output) = (vec![7u8; payload], vec![0; payload]);
    for call in 1u64.. {
        input[0] = input[0].wrapping_add(1);
        echo(&input, &mut output)?;
        ensure!(input == output, "the echo is not what was sent");
        if call == WARM_UP {
            say_so()?;
        }
    }
    Ok(())
}

#[cold]
fn say_so() -> Result<()> {
    let mut output = std::io::stdout();
    output.write_all(b".")?;
    Ok(output.flush()?)
}

/// Round trips of calls, both ends as they run for everybody: the library, and the worker in its sandbox.
pub fn count_calls(stage: &Stage, over: Over, payload: usize, trips: usize) -> Result<Counted> {
    let config = stage.service.config_path().display().to_string();
    let caller = Caller::start(&[&config, over.name(), &payload.to_string()])?;
    let worker = stage.only_worker()?;
    let lane = threads(worker)?.into_iter().find(|(name, _)| name == "lane-0");
    let (_, lane) = lane.context("the worker has no lane")?;
    let pids = [caller.pid(), worker];
    if over != Over::Memory {
        return count(LockStep::by_system_calls(caller.pid(), lane)?, pids, trips);
    }
    let base = mapped(caller.pid(), "gleaner-link")?;
    let layout = Layout::new(GEOMETRY)?;
    let places = |direction| Places {
        first: base + layout.half(direction).line(0) as u64 + NUMBER_AT,
        stride: HEADER_LEN as u64,
        count: layout.lines,
    };
    let client = (caller.pid(), places(Direction::Requests));
    let at_worker = (lane, places(Direction::Responses));
    count(LockStep::over_memory(caller.pid(), client, at_worker)?, pids, trips)
}

/// Round trips of the baseline.
pub fn count_raw(over: Over, payload: usize, trips: usize) -> Result<Counted> {
    let caller = Caller::start(&[RAW, over.name(), &payload.to_string()])?;
    if over == Over::Verbs {
        let pids = [caller.pid(), only_child(caller.pid())?];
        return count(LockStep::by_system_calls(pids[0], pids[1])?, pids, trips);
    }
    let peer = threads(caller.pid())?.into_iter().find(|(_, thread)| *thread != caller.pid());
    let (_, peer) = peer.context("the baseline has no peer")?;
    let pids = [caller.pid(); 2];
    if over == Over::Socket {
        return count(LockStep::by_system_calls(caller.pid(), peer)?, pids, trips);
    }
    let stride = raw::stride(Load::echo(payload, 0)) as u64;
    let base = mapped(caller.pid(), "baseline")?;
    let places = |first: u64| Places { first, stride, count: 1 };
    let (client, worker) = ((caller.pid(), places(base)), (peer, places(base + stride)));
    count(LockStep::over_memory(caller.pid(), client, worker)?, pids, trips)
}

/// The processes are the client's and the worker's, whose functions are named.
fn count(mut step: LockStep, pids: [i32; 2], trips: usize) -> Result<Counted> {
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
