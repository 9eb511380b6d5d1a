//! The simulated world: true time, every machine's own clock, every process, the network between them.
//!
//! One queue of events, ordered by true time and then by when they were made, so that a seed is a whole history. Roles
//! act through this; they see their own machine's clock alone. After each event `check::after_step` looks at
//! everything, with true time and with what no role can know.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use gleaner_lease::clock::{BootId, DRIFT_PPM, Stamp};
use gleaner_proto::ids::{LeaseId, NodeName};

use crate::{
    Sabotage, Stats, Violation,
    check::Ledger,
    client::Client,
    harvester::{Harvester, Store, StoreOp},
    message::{Input, Who},
    node::Node,
};

/// True time, in nanoseconds from the start.
pub(crate) type Ns = u64;
/// A millisecond of it.
pub(crate) const MS: Ns = 1_000_000;

/// Nodes of the cluster.
pub(crate) const NODES: usize = 3;
/// Clients, each on a machine of its own.
pub(crate) const CLIENTS: usize = 4;
/// Faults, batch jobs and new calls stop here.
pub(crate) const CALM_AT: Ns = 20_000 * MS;
/// By now every call must have ended.
pub(crate) const END_AT: Ns = 36_000 * MS;

/// What is due at a moment.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A message reaches a process, if it still is the one that the message was sent to.
    Deliver { to: Who, life: u32, input: Input },
    /// A process's timer.
    Wake(Who),
    /// A stopped process goes on.
    Continue { who: Who, life: u32 },
    /// A process that was killed is started again.
    Start(Who),
    /// A call's bytes reach a worker.
    Call { node: usize, lease: LeaseId, session: usize, call: usize },
    /// A worker's function returns.
    Return { node: usize, lease: LeaseId, call: usize },
    /// A stopped worker goes on.
    WorkerContinue { node: usize, lease: LeaseId },
    /// A killed worker's process and memory are gone.
    WorkerGone { node: usize, lease: LeaseId },
    /// The database has done what a harvester asked.
    Store { life: u32, op: StoreOp },
    /// A client's program makes its next call.
    NewCall(usize),
    /// The next fault.
    Fault,
    /// Slurm looks for a node for its next job.
    Job,
    /// A hook has waited for half its bound.
    HookHalf { node: usize, job: u32 },
    /// A batch job is over.
    JobEnds { node: usize, job: u32 },
}

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Run {
    Up,
    Stopped,
    Down,
}

/// What the kernel knows of a process.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) life: u32,
    pub(crate) run: Run,
    /// Since when it is up, in true time.
    pub(crate) since: Ns,
    /// What arrived while it was stopped.
    inbox: VecDeque<Input>,
    wake: Option<Ns>,
}

/// One machine's clock: its own start and its own speed, which changes.
#[derive(Debug, Clone, Copy)]
struct Clock {
    true_base: Ns,
    local_base: u64,
    ppm: i64,
}

impl Clock {
    fn local(&self, at: Ns) -> u64 {
        let elapsed =
            i128::from(at - self.true_base) * i128::from(1_000_000 + self.ppm) / 1_000_000;
        self.local_base + elapsed as u64
    }

    fn true_of(&self, stamp: Stamp) -> Ns {
        let ahead = i128::from(stamp.0.saturating_sub(self.local_base));
        self.true_base + (ahead * 1_000_000 / i128::from(1_000_000 + self.ppm)) as Ns + 2
    }
}

/// A connection between a client and an executor: the control stream and its lanes.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: usize,
    pub(crate) client_life: u32,
    pub(crate) node: usize,
    pub(crate) agent_life: u32,
    pub(crate) cut: bool,
    /// When the last byte of each direction arrives: a stream keeps its order.
    last: [Ns; 2],
}

/// Everything there is.
pub(crate) struct World {
    pub(crate) rng: fastrand::Rng,
    pub(crate) now: Ns,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) trace: bool,
    queue: BTreeMap<(Ns, u64), Event>,
    made: u64,
    clocks: Vec<Clock>,
    processes: Vec<Process>,
    pub(crate) harvester: Option<Harvester>,
    pub(crate) store: Store,
    pub(crate) nodes: Vec<Node>,
    pub(crate) clients: Vec<Option<Client>>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) cut_off: [bool; NODES],
    pub(crate) ledger: Ledger,
    pub(crate) stats: Stats,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>, trace: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let clocks = (0..1 + NODES + CLIENTS)
            .map(|_| Clock { true_base: 0, local_base: rng.u64(1..1 << 50), ppm: drift(&mut rng) })
            .collect();
        let down =
            || Process { life: 0, run: Run::Down, since: 0, inbox: VecDeque::new(), wake: None };
        let nodes = (0..NODES).map(|_| Node::new(BootId(rng_bytes(&mut rng)))).collect();
        let mut world = Self {
            rng,
            now: 0,
            sabotage,
            trace,
            queue: BTreeMap::new(),
            made: 0,
            clocks,
            processes: (0..1 + 2 * NODES + CLIENTS).map(|_| down()).collect(),
            harvester: None,
            store: Store::default(),
            nodes,
            clients: (0..CLIENTS).map(|_| None).collect(),
            sessions: Vec::new(),
            cut_off: [false; NODES],
            ledger: Ledger::default(),
            stats: Stats::default(),
        };
        world.start_all();
        world
    }

    fn start_all(&mut self) {
        self.at(0, Event::Start(Who::Harvester));
        for node in 0..NODES {
            self.at(MS, Event::Start(Who::Keeper(node)));
        }
        for client in 0..CLIENTS {
            self.at(2 * MS, Event::Start(Who::Client(client)));
            self.after(100, 600, Event::NewCall(client));
        }
        self.after(300, 1500, Event::Fault);
        self.after(300, 1500, Event::Job);
    }

    /// Runs to the end, or to the first violation.
    pub(crate) fn run(mut self) -> Result<Stats, Violation> {
        while let Some(((at, _), event)) = self.queue.pop_first() {
            if at > END_AT {
                break;
            }
            self.now = at;
            self.stats.steps += 1;
            if self.trace {
                eprintln!("{:>12.6} ms  {event:?}", at as f64 / MS as f64);
            }
            self.step(event);
            if let Some(violation) = self.check_step() {
                return Err(violation);
            }
        }
        self.check_end()
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Deliver { to, life, input } => self.deliver(to, life, input),
            Event::Wake(who) => self.wake(who),
            Event::Continue { who, life } => self.proceed(who, life),
            Event::Start(who) => self.start(who),
            Event::Call { node, lease, session, call } => {
                self.call_arrives(node, lease, session, call)
            }
            Event::Return { node, lease, call } => self.call_returns(node, lease, call),
            Event::WorkerContinue { node, lease } => self.worker_continues(node, lease),
            Event::WorkerGone { node, lease } => self.worker_gone(node, lease),
            Event::Store { life, op } => self.store_done(life, op),
            Event::NewCall(client) => self.new_call(client),
            Event::Fault => self.fault(),
            Event::Job => self.job_arrives(),
            Event::HookHalf { node, job } => self.hook_half(node, job),
            Event::JobEnds { node, job } => self.job_ends(node, job),
        }
    }

    /// Whether faults are over.
    pub(crate) fn calm(&self) -> bool {
        self.now >= CALM_AT
    }

    // Time.

    pub(crate) fn at(&mut self, when: Ns, event: Event) {
        self.made += 1;
        self.queue.insert((when.max(self.now), self.made), event);
    }

    /// Some time from now, between two bounds in milliseconds.
    pub(crate) fn after(&mut self, min_ms: u64, max_ms: u64, event: Event) {
        let delay = self.rng.u64(min_ms * MS..=max_ms * MS);
        self.at(self.now + delay, event);
    }

    /// The clock of a process's machine.
    pub(crate) fn clock(&self, who: Who) -> Stamp {
        Stamp(self.clocks[who.machine()].local(self.now))
    }

    /// The clock of a node.
    pub(crate) fn node_clock(&self, node: usize) -> Stamp {
        self.clock(Who::Agent(node))
    }

    /// A machine's clock changes its speed; timers on it follow.
    pub(crate) fn change_drift(&mut self) {
        let machine = self.rng.usize(0..self.clocks.len());
        let ppm = drift(&mut self.rng);
        let clock = &mut self.clocks[machine];
        *clock = Clock { true_base: self.now, local_base: clock.local(self.now), ppm };
        for who in Who::all().filter(|who| who.machine() == machine) {
            self.rearm(who);
        }
    }

    // Processes.

    pub(crate) fn process(&self, who: Who) -> &Process {
        &self.processes[who.index()]
    }

    pub(crate) fn is_up(&self, who: Who) -> bool {
        self.process(who).run == Run::Up
    }

    fn deliver(&mut self, to: Who, life: u32, input: Input) {
        let process = &mut self.processes[to.index()];
        if process.life != life {
            return;
        }
        match process.run {
            Run::Down => {}
            Run::Stopped => process.inbox.push_back(input),
            Run::Up => self.handle(to, Some(input)),
        }
    }

    fn wake(&mut self, who: Who) {
        let process = &self.processes[who.index()];
        if process.run == Run::Up && process.wake == Some(self.now) {
            self.processes[who.index()].wake = None;
            self.handle(who, None);
        }
    }

    /// Lets a process act on one input, or on its timers alone, and sets its timer anew.
    fn handle(&mut self, who: Who, input: Option<Input>) {
        match who {
            Who::Harvester => {
                if let Some(mut harvester) = self.harvester.take() {
                    harvester.on(self, input);
                    self.harvester = Some(harvester);
                }
            }
            Who::Agent(node) => {
                if let Some(mut agent) = self.nodes[node].agent.take() {
                    agent.on(self, input);
                    self.nodes[node].agent = Some(agent);
                }
            }
            Who::Keeper(node) => {
                if let Some(mut keeper) = self.nodes[node].keeper.take() {
                    keeper.on(self, input);
                    self.nodes[node].keeper = Some(keeper);
                }
            }
            Who::Client(client) => {
                if let Some(mut state) = self.clients[client].take() {
                    state.on(self, input);
                    self.clients[client] = Some(state);
                }
            }
        }
        self.rearm(who);
    }

    fn rearm(&mut self, who: Who) {
        let wanted = match who {
            Who::Harvester => self.harvester.as_ref().and_then(Harvester::next_wake),
            Who::Agent(node) => self.nodes[node].agent.as_ref().and_then(|agent| agent.next_wake()),
            Who::Keeper(node) => {
                self.nodes[node].keeper.as_ref().and_then(|keeper| keeper.next_wake())
            }
            Who::Client(client) => self.clients[client].as_ref().and_then(Client::next_wake),
        };
        let late = self.rng.u64(0..MS);
        let when =
            wanted.map(|stamp| self.clocks[who.machine()].true_of(stamp).max(self.now) + late);
        self.processes[who.index()].wake = when;
        if let Some(when) = when {
            self.at(when, Event::Wake(who));
        }
    }

    /// Starts a process that is down.
    pub(crate) fn start(&mut self, who: Who) {
        if matches!(who, Who::Agent(node) if !self.nodes[node].may_start_agent()) {
            return;
        }
        let process = &mut self.processes[who.index()];
        if process.run != Run::Down {
            return;
        }
        process.life += 1;
        process.run = Run::Up;
        process.since = self.now;
        process.inbox.clear();
        let life = process.life;
        match who {
            Who::Harvester => self.harvester = Some(Harvester::start(self, life)),
            Who::Agent(node) => self.start_agent(node, life),
            Who::Keeper(node) => self.start_keeper(node),
            Who::Client(client) => self.clients[client] = Some(Client::start(client, life)),
        }
        self.handle(who, None);
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, who: Who) {
        let process = &mut self.processes[who.index()];
        if process.run == Run::Down {
            return;
        }
        process.run = Run::Down;
        process.wake = None;
        process.inbox.clear();
        match who {
            Who::Harvester => self.harvester = None,
            Who::Agent(node) => self.agent_died(node),
            Who::Keeper(node) => self.keeper_died(node),
            Who::Client(client) => {
                self.clients[client] = None;
                self.ledger.client_died(client);
            }
        }
        let ended: Vec<usize> =
            (0..self.sessions.len()).filter(|s| self.session_of(*s, who)).collect();
        ended.into_iter().for_each(|session| self.cut(session));
    }

    fn session_of(&self, session: usize, who: Who) -> bool {
        let session = &self.sessions[session];
        !session.cut && (who == Who::Client(session.client) || who == Who::Agent(session.node))
    }

    /// SIGSTOP, and SIGCONT some time later.
    pub(crate) fn stop(&mut self, who: Who, for_ms: u64) {
        let process = &mut self.processes[who.index()];
        if process.run == Run::Up {
            process.run = Run::Stopped;
            let life = process.life;
            self.at(self.now + for_ms * MS, Event::Continue { who, life });
        }
    }

    /// A process goes on: its timers first, then what is most urgent of what came meanwhile, as each role orders it.
    fn proceed(&mut self, who: Who, life: u32) {
        let process = &mut self.processes[who.index()];
        if process.life != life || process.run != Run::Stopped {
            return;
        }
        process.run = Run::Up;
        process.since = self.now;
        let mut inbox: Vec<Input> = std::mem::take(&mut process.inbox).into();
        inbox.sort_by_key(|input| !input.is_of_a_hook());
        self.handle(who, None);
        inbox.into_iter().for_each(|input| self.handle(who, Some(input)));
    }

    // The network.

    /// Sends over the network: may be lost, late, doubled, or overtaken by what is sent later.
    pub(crate) fn send(&mut self, node: Option<usize>, to: Who, input: Input) {
        let cut_off = node.is_some_and(|node| self.cut_off[node]);
        if cut_off || (!self.calm() && self.rng.u32(0..100) < 3) {
            return;
        }
        let copies = if !self.calm() && self.rng.u32(0..100) < 3 { 2 } else { 1 };
        let life = self.process(to).life;
        for _ in 0..copies {
            let delay = self.delay();
            self.at(self.now + delay, Event::Deliver { to, life, input: input.clone() });
        }
    }

    fn delay(&mut self) -> Ns {
        let late = !self.calm() && self.rng.u32(0..100) < 4;
        if late { self.rng.u64(5 * MS..1500 * MS) } else { self.rng.u64(MS / 20..3 * MS) }
    }

    /// A local pipe between two processes of one node: in order, and nothing is lost while both live.
    pub(crate) fn pipe(&mut self, to: Who, input: Input) {
        let life = self.process(to).life;
        self.at(self.now + MS / 20, Event::Deliver { to, life, input });
    }

    /// Opens a session between a client and the agent that lives now.
    pub(crate) fn open_session(&mut self, client: usize, node: usize) -> usize {
        let client_life = self.process(Who::Client(client)).life;
        let agent_life = self.process(Who::Agent(node)).life;
        let cut = false;
        self.sessions.push(Session { client, client_life, node, agent_life, cut, last: [0; 2] });
        self.sessions.len() - 1
    }

    /// When the next bytes of a session's direction arrive; `None` if the session breaks instead.
    pub(crate) fn stream(&mut self, session: usize, to_node: bool) -> Option<Ns> {
        let breaks = !self.calm() && self.rng.u32(0..1000) < 8;
        if self.sessions[session].cut {
            return None;
        }
        if breaks || self.cut_off[self.sessions[session].node] {
            self.cut(session);
            return None;
        }
        let arrives = self.now + self.delay();
        let last = &mut self.sessions[session].last[usize::from(to_node)];
        *last = arrives.max(*last + 1);
        Some(*last)
    }

    /// Sends to the agent's end of a session.
    pub(crate) fn send_agent(&mut self, session: usize, input: Input) {
        let Session { node, agent_life: life, .. } = self.sessions[session];
        if let Some(at) = self.stream(session, true) {
            self.at(at, Event::Deliver { to: Who::Agent(node), life, input });
        }
    }

    /// Sends to the client's end of a session.
    pub(crate) fn send_client(&mut self, session: usize, input: Input) {
        let Session { client, client_life: life, .. } = self.sessions[session];
        if let Some(at) = self.stream(session, false) {
            self.at(at, Event::Deliver { to: Who::Client(client), life, input });
        }
    }

    /// A session's connection breaks: each end learns it in its own time.
    pub(crate) fn cut(&mut self, session: usize) {
        self.sessions[session].cut = true;
        let Session { client, client_life, node, agent_life, .. } = self.sessions[session];
        for (to, life) in [(Who::Client(client), client_life), (Who::Agent(node), agent_life)] {
            let event = Event::Deliver { to, life, input: Input::SessionCut { session } };
            self.after(1, 800, event);
        }
    }

    // Small things that several roles need.

    pub(crate) fn chance(&mut self, percent: u32) -> bool {
        self.rng.u32(0..100) < percent
    }

    pub(crate) fn bytes(&mut self) -> [u8; 16] {
        rng_bytes(&mut self.rng)
    }

    pub(crate) fn sabotaged(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }
}

/// A node's name.
pub(crate) fn node_name(node: usize) -> NodeName {
    NodeName::new(&format!("n{node}")).expect("a letter and a number make a node's name")
}

/// Milliseconds as a duration.
pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn drift(rng: &mut fastrand::Rng) -> i64 {
    let most = DRIFT_PPM as i64;
    rng.i64(-most..=most)
}

fn rng_bytes(rng: &mut fastrand::Rng) -> [u8; 16] {
    rng.u128(..).to_le_bytes()
}
