//! The worker: one process a lease, the only one that runs foreign code. The keeper starts it, its agent feeds it.
//!
//! ```text
//! keeper ──Become──▶ sandbox: uid, limits, threads, filter          agent ──records, descriptors──▶ main thread
//!                                                                         loads libraries │ mail
//! client ══link══▶ lane 0..n: one pinned thread a leased core ◀───────────────────────────┘
//! ```
//!
//! It holds no credential and no listener, and trusts nobody's bytes: not a client's headers, not its functions. What it
//! knows of calls lies on the [board](crate::board), which the agent owns.

mod call;
mod code;
mod connection;
mod elf;
mod fault;
mod filter;
mod function;
pub mod ipc;
mod lane;
mod lanes;
mod mailbox;
mod meter;
pub mod sandbox;
mod tune;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use gleaner_fabric::{
    Geometry,
    clock::{Calibration, Clock},
    rdma::{self, Adapter, RdmaError, Settings},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::{
    connection::{Carrier, Connection},
    function::{Libraries, Table},
    ipc::{FromWorker, IpcError, ToWorker},
    lanes::Lanes,
    mailbox::{Full, Mail},
};
use crate::board::{Board, BoardError};

/// How long the agent may leave its socket full before the worker gives up on it.
const AGENT_PATIENCE: Duration = Duration::from_secs(5);

/// Why a worker ends without being told to.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It could not be confined, or is not needed.
    #[error(transparent)]
    Sandbox(#[from] sandbox::SandboxError),
    /// The agent broke the order or the format of its records, or is gone.
    #[error(transparent)]
    Ipc(#[from] IpcError),
    /// The agent's first record is not `Init` with a board of this lease's lanes.
    #[error("the agent's first record does not fit this worker: {0}")]
    Init(&'static str),
    /// The board is none.
    #[error(transparent)]
    Board(#[from] BoardError),
    /// A record that needs a descriptor came without one.
    #[error("the agent sent a record without its descriptor")]
    NoDescriptor,
    /// A lane hangs in its function, and its mailbox is full.
    #[error(transparent)]
    LaneStuck(#[from] Full),
    /// The system refused.
    #[error("{step}: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// What all lanes share, for the process's life.
struct Shared {
    board: Board,
    functions: Table,
    clock: Clock,
    agent: OwnedFd,
}

/// Waits until the keeper needs this process, becomes the worker of a lease, and serves it until its agent says that it is
/// over. The process must have one thread. Exit after it returns, whatever it returns: foreign code has run here.
pub fn run(keeper: OwnedFd, agent: OwnedFd, rdma: Option<&Settings>) -> Result<(), WorkerError> {
    let calibration = Calibration::begin();
    if rdma.is_some() {
        // Loads the library and the devices' drivers while nobody waits. Whether there are any, opening one will say.
        let _ = rdma::devices();
    }
    code::forget();
    let confined = sandbox::enter(keeper, rdma, |lease| Lanes::start(lease.cores()))?;
    let served = serve(agent, confined.prepared, calibration.end(), confined.adapter);
    fault::orderly();
    served
}

fn serve(
    agent: OwnedFd,
    lanes: Lanes,
    clock: Clock,
    adapter: Option<Result<Adapter, RdmaError>>,
) -> Result<(), WorkerError> {
    let shared = init(agent, &lanes, clock)?;
    fault::install(&shared.board).map_err(io_step("install the fault handlers"))?;
    fault::use_own_stack().map_err(io_step("set the fault stack"))?;
    lanes.tell_all(|| Mail::Start(shared))?;
    answer(shared, &FromWorker::Ready)?;
    code::forget();
    let mut libraries = Libraries::new();
    let mut carrier = Carrier::Stream;
    loop {
        match receive(&shared.agent)? {
            (ToWorker::Init { .. }, _) => return Err(WorkerError::Init("it came twice")),
            (ToWorker::Segment, file) => {
                carrier = Carrier::Segment(file.ok_or(WorkerError::NoDescriptor)?);
            }
            (ToWorker::Verbs(peer), _) => carrier = Carrier::Verbs(peer),
            (ToWorker::AddLink { session, lane, geometry, hot_ns }, socket) => {
                let socket = socket.ok_or(WorkerError::NoDescriptor)?;
                let carrier = std::mem::replace(&mut carrier, Carrier::Stream);
                let connection = Connection { socket, carrier, adapter: adapter.as_ref() };
                add_link(shared, &lanes, (session, lane), geometry, hot_ns, connection)?;
            }
            (ToWorker::SetHot { session, hot_ns }, _) => {
                let hot = shared.clock.ticks(hot_ns);
                lanes.tell_all(|| Mail::SetHot { session, hot })?;
            }
            (ToWorker::DropSession { session }, _) => {
                lanes.tell_all(|| Mail::Drop { session })?;
            }
            (ToWorker::Library { library }, file) => {
                libraries.add(library, file.ok_or(WorkerError::NoDescriptor)?);
            }
            (ToWorker::OpenFunction { function, library, name, abi }, _) => {
                let opened = shared.functions.open(function, &mut libraries, library, &name, abi);
                answer(
                    shared,
                    &match opened {
                        Ok(abi) => FromWorker::FunctionOpened { function, abi },
                        Err(error) => {
                            FromWorker::FunctionFailed { function, message: error.to_string() }
                        }
                    },
                )?;
            }
            (ToWorker::Finish, _) => {
                lanes.finish();
                return Ok(());
            }
        }
    }
}

/// Takes the first record and makes what all share. It lives as long as the process: foreign threads may outlive any scope.
fn init(agent: OwnedFd, lanes: &Lanes, clock: Clock) -> Result<&'static Shared, WorkerError> {
    let (record, board) = receive(&agent)?;
    let ToWorker::Init { lanes: wanted, .. } = record else {
        return Err(WorkerError::Init("it is not Init"));
    };
    let board = Board::open(board.ok_or(WorkerError::NoDescriptor)?.as_fd())?;
    if wanted != lanes.count() || board.shape().lanes != wanted {
        return Err(WorkerError::Init("its lanes are not this lease's cores"));
    }
    let functions = Table::new();
    Ok(Box::leak(Box::new(Shared { board, functions, clock, agent })))
}

fn add_link(
    shared: &'static Shared,
    lanes: &Lanes,
    (session, lane): (u16, u16),
    geometry: Geometry,
    hot_ns: u64,
    connection: Connection<'_>,
) -> Result<(), WorkerError> {
    let shape = shared.board.shape();
    let fits = session < shape.sessions && lane < shape.lanes && geometry.window <= shape.window;
    let made = match fits {
        true => connection.into_link(geometry),
        false => Err("the board has no room for its session, lane or window".to_owned()),
    };
    match made {
        Ok(link) => {
            let hot = shared.clock.ticks(hot_ns);
            Ok(lanes.tell(lane, Mail::Add { session, hot, link })?)
        }
        Err(message) => answer(shared, &FromWorker::LinkClosed { session, lane, message }),
    }
}

fn receive(agent: &OwnedFd) -> Result<(ToWorker, Option<OwnedFd>), WorkerError> {
    loop {
        match ipc::receive(agent) {
            Err(IpcError::WouldBlock) => {
                let mut sleep = [PollFd::new(agent.as_fd(), PollFlags::POLLIN)];
                match poll(&mut sleep, PollTimeout::NONE) {
                    Ok(_) | Err(nix::Error::EINTR) => {}
                    Err(error) => return Err(io_step("wait for the agent")(error.into())),
                }
            }
            other => return Ok(other?),
        }
    }
}

fn answer(shared: &Shared, record: &FromWorker) -> Result<(), WorkerError> {
    Ok(ipc::send_patiently(&shared.agent, record, AGENT_PATIENCE)?)
}

fn io_step(step: &'static str) -> impl Fn(io::Error) -> WorkerError {
    move |source| WorkerError::Io { step, source }
}
