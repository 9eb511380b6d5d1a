//! A real worker process, with this test in the keeper's and the agent's place, and clients of its links.
#![allow(unsafe_code)] // between fork and exec: two descriptors get their numbers

use std::{
    fs::File,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use gleaner_executor::{
    board::{Board, Place, Shape, SlotState},
    keeper::handover::{Become, Confined},
    sys,
    worker::ipc::{self, Abi, FromWorker, IpcError, ToWorker},
};
use gleaner_fabric::{
    Arena, Geometry, Link, LinkError, Side,
    shm::{Direction, Segment, ShmLink},
    tcp::TcpLink,
};
use gleaner_proto::{
    header::{Header, Kind, Status},
    ids::LeaseId,
};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::memfd::{MFdFlags, memfd_create},
    unistd::{getegid, geteuid},
};

/// A lane that sleeps at once, and one that spins for longer than any test.
pub(crate) const WARM: u64 = 0;
pub(crate) const HOT: u64 = u64::MAX;

/// Longest that anything may take: workers are of the idle class, and a busy machine lets them wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const EPOCH: u64 = 42;
pub(crate) const GEOMETRY: Geometry =
    Geometry { window: 4, slot_bytes: 4096, arena_bytes: (64 << 20) + 4096 };

pub(crate) struct Rig {
    child: Child,
    _keeper: OwnedFd,
    agent: Option<OwnedFd>,
    pub(crate) board: Board,
    libraries: u32,
    functions: u32,
}

pub(crate) struct Client {
    pub(crate) link: Box<dyn Link>,
    requests: Arena,
    replies: Arena,
    slot: u16,
    pub(crate) invocation: u64,
    /// Changes each request before it is sent.
    pub(crate) change: fn(&mut Header),
}

#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) header: Header,
    pub(crate) data: Vec<u8>,
}

impl Reply {
    pub(crate) fn number(&self) -> u64 {
        assert_eq!(self.header.status, Status::Ok, "{}", self.text());
        u64::from_le_bytes(self.data[..8].try_into().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }
}

impl Rig {
    pub(crate) fn start(lanes: u16) -> Self {
        Self::start_with(lanes, 256 << 20, false)
    }

    pub(crate) fn start_with(lanes: u16, memory: u64, limit_self: bool) -> Self {
        let (keeper, keeper_end) = sys::seqpacket_pair().unwrap();
        let (agent, agent_end) = sys::seqpacket_pair().unwrap();
        let child = spawn(&keeper_end, &agent_end);
        drop((keeper_end, agent_end));
        sys::send_with_fd(keeper.as_fd(), &lease(lanes, memory, limit_self).encode(), None)
            .unwrap();
        await_readable(keeper.as_fd());
        let mut answer = [0; 64];
        let (len, _) = sys::recv_with_fd(keeper.as_fd(), &mut answer).unwrap();
        let confined = Confined::decode(&answer[..len]).expect("the worker died in its sandbox");
        assert_eq!(confined.step, 0, "{confined:?}");
        let shape = Shape { sessions: 4, lanes, window: GEOMETRY.window };
        let (board, board_fd) = Board::create(shape, EPOCH).unwrap();
        let (libraries, functions) = (0, 0);
        let rig = Self { child, _keeper: keeper, agent: Some(agent), board, libraries, functions };

        let init = ToWorker::Init { lease: 7, lanes };
        rig.tell(&init, Some(board_fd.as_fd()));
        assert_eq!(rig.answer(), FromWorker::Ready);
        rig
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn tell(&self, record: &ToWorker, fd: Option<BorrowedFd<'_>>) {
        ipc::send(self.agent.as_ref().unwrap(), record, fd).unwrap();
    }

    /// The worker's next record.
    pub(crate) fn answer(&self) -> FromWorker {
        let agent = self.agent.as_ref().unwrap();
        await_readable(agent.as_fd());
        ipc::receive(agent).unwrap().0
    }

    /// True if the worker has closed its end, which its death does.
    pub(crate) fn is_gone(&self) -> bool {
        let agent = self.agent.as_ref().unwrap();
        await_readable(agent.as_fd());
        matches!(ipc::receive::<FromWorker>(agent), Err(IpcError::Gone))
    }

    pub(crate) fn lose_agent(&mut self) {
        self.agent = None;
    }

    pub(crate) fn add_link(&self, session: u16, lane: u16, hot_ns: u64) -> Client {
        let socket = self.add_socket(session, lane, hot_ns);
        Client::new(TcpLink::new(socket, Side::Client, GEOMETRY).unwrap())
    }

    /// A link over shared memory, and its socket once more.
    pub(crate) fn add_shared(&self, session: u16, lane: u16, hot_ns: u64) -> (Client, UnixStream) {
        let file = Segment::create(GEOMETRY).unwrap();
        let (mut client, worker) = UnixStream::pair().unwrap();
        self.tell(&ToWorker::Segment, Some(file.as_fd()));
        let record = ToWorker::AddLink { session, lane, geometry: GEOMETRY, hot_ns };
        self.tell(&record, Some(worker.as_fd()));
        // Its pages are there.
        client.read_exact(&mut [0]).unwrap();
        let segment = Segment::open(file.as_fd(), GEOMETRY).unwrap();
        segment.prefault(Direction::Requests).unwrap();
        let socket = client.try_clone().unwrap();
        (Client::new(ShmLink::new(segment, client.into(), Side::Client)), socket)
    }

    /// The client's end of a link, as a plain socket.
    pub(crate) fn add_socket(&self, session: u16, lane: u16, hot_ns: u64) -> TcpStream {
        self.add_socket_of(GEOMETRY, session, lane, hot_ns)
    }

    /// The same of a link of another geometry.
    pub(crate) fn add_socket_of(
        &self,
        geometry: Geometry,
        session: u16,
        lane: u16,
        hot_ns: u64,
    ) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (worker, _) = listener.accept().unwrap();
        let record = ToWorker::AddLink { session, lane, geometry, hot_ns };
        self.tell(&record, Some(worker.as_fd()));
        client
    }

    /// Sends a library and returns its number.
    pub(crate) fn library(&mut self, path: &Path) -> u32 {
        self.library_bytes(&std::fs::read(path).unwrap(), SealFlag::all())
    }

    pub(crate) fn library_bytes(&mut self, bytes: &[u8], seals: SealFlag) -> u32 {
        let fd = memfd_create(c"library", MFdFlags::MFD_ALLOW_SEALING).unwrap();
        File::from(fd.try_clone().unwrap()).write_all(bytes).unwrap();
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        let library = self.libraries;
        self.libraries += 1;
        self.tell(&ToWorker::Library { library }, Some(fd.as_fd()));
        library
    }

    /// Opens a function: its number and ABI, or the worker's message.
    pub(crate) fn open(
        &mut self,
        library: u32,
        name: &str,
        abi: Abi,
    ) -> Result<(u32, Abi), String> {
        let function = self.functions;
        self.functions += 1;
        self.tell(&ToWorker::OpenFunction { function, library, name: name.into(), abi }, None);
        match self.answer() {
            FromWorker::FunctionOpened { function: opened, abi } => {
                assert_eq!(opened, function);
                Ok((function, abi))
            }
            FromWorker::FunctionFailed { message, .. } => Err(message),
            other => panic!("{other:?}"),
        }
    }

    /// Opens functions of the test library.
    pub(crate) fn functions<const N: usize>(&mut self, names: [&str; N]) -> [u32; N] {
        let path = gleaner_test_functions::library_path().expect("cargo builds the test functions");
        let library = self.library(&path);
        names.map(|name| self.open(library, name, Abi::Any).unwrap().0)
    }

    pub(crate) fn slot(&self, place: Place) -> SlotState {
        self.board.slot(place).unwrap().state()
    }

    /// How the process ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.child.try_wait().unwrap() {
                Some(status) => return status,
                None => assert!(Instant::now() < until, "the worker lives on"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn killed_by(&mut self) -> Option<i32> {
        self.ended().signal()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Client {
    pub(crate) fn new(link: impl Link + 'static) -> Self {
        Self {
            link: Box::new(link),
            requests: Arena::new(GEOMETRY),
            replies: Arena::new(GEOMETRY),
            slot: 0,
            invocation: 0,
            change: |_| {},
        }
    }

    /// Sends a call; returns its slot.
    pub(crate) fn send(&mut self, function: u32, input: &[u8], capacity: usize) -> u16 {
        let slot = self.slot;
        self.slot = (self.slot + 1) % GEOMETRY.window;
        self.invocation += 1;
        let place = |arena: &mut Arena, len: usize| match len as u32 {
            len if len <= GEOMETRY.slot_capacity() => GEOMETRY.slot(slot),
            len => arena.take(len).expect("one large call at a time"),
        };
        let block = place(&mut self.requests, input.len());
        let reply = place(&mut self.replies, capacity);
        for (arena, block) in [(&mut self.requests, block), (&mut self.replies, reply)] {
            if block.offset >= GEOMETRY.arena_offset() {
                // One call at a time uses the arena: free again as soon as it is answered.
                arena.give_back(block);
            }
        }
        let mut header = Header {
            generation: self.invocation as u32,
            slot,
            kind: Kind::Request,
            status: Status::Ok,
            epoch: EPOCH,
            invocation: self.invocation,
            function,
            code: 0,
            payload_len: input.len() as u32,
            block: block.index(),
            reply_block: reply.index(),
            reply_capacity: capacity as u32,
            time_ns: 0,
        };
        (self.change)(&mut header);
        self.link.outgoing(block)[..input.len()].copy_from_slice(input);
        self.link.post(block, &header).unwrap();
        slot
    }

    pub(crate) fn receive(&mut self) -> Result<Reply, LinkError> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(arrival) = self.link.poll()? {
                let data = self.link.incoming(arrival.payload()).to_vec();
                return Ok(Reply { header: arrival.header, data });
            }
            self.link.wait(PATIENCE)?;
            assert!(Instant::now() < until, "no reply");
        }
    }

    pub(crate) fn call(&mut self, function: u32, input: &[u8]) -> Reply {
        self.call_with(function, input, GEOMETRY.slot_capacity() as usize)
    }

    pub(crate) fn call_with(&mut self, function: u32, input: &[u8], capacity: usize) -> Reply {
        let slot = self.send(function, input, capacity);
        let reply = self.receive().unwrap();
        assert_eq!((reply.header.slot, reply.header.invocation), (slot, self.invocation));
        reply
    }
}

fn spawn(keeper: &OwnedFd, agent: &OwnedFd) -> Child {
    // Out of the way of the numbers that the worker expects.
    let high = |fd: &OwnedFd| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(100)).unwrap();
    let ends = [(high(keeper), 3), (high(agent), 4)];
    let mut command = Command::new(env!("CARGO_BIN_EXE_gleaner-executor"));
    command.arg("worker").env_clear();
    // SAFETY: dup2 alone, which may be called between fork and exec.
    unsafe {
        command.pre_exec(move || {
            let moved = ends.iter().all(|(from, to)| libc::dup2(*from, *to) == *to);
            if moved { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    let child = command.spawn().unwrap();
    for (fd, _) in ends {
        nix::unistd::close(fd).unwrap();
    }
    child
}

fn lease(lanes: u16, memory: u64, limit_self: bool) -> Become {
    const NOBODY: u32 = 65534;
    let (uid, gid) = match geteuid().is_root() {
        true => (NOBODY, NOBODY),
        false => (geteuid().as_raw(), getegid().as_raw()),
    };
    let mut lease = Become::new(LeaseId(7), uid, gid, memory, limit_self);
    let cpus = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let mut usable = (0..512u16).filter(|cpu| cpus.is_set(usize::from(*cpu)).unwrap_or(false));
    let first = usable.next().unwrap();
    let second = usable.next().unwrap_or(first);
    for lane in 0..lanes {
        assert!(lease.push_core(if lane % 2 == 0 { first } else { second }));
    }
    lease
}

fn await_readable(fd: BorrowedFd<'_>) {
    let mut sleep = [PollFd::new(fd, PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(PATIENCE).unwrap();
    assert_eq!(poll(&mut sleep, timeout).unwrap(), 1, "the worker says nothing");
}
