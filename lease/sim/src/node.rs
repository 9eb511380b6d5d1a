//! A node: its keeper with its `Deadlines`, its workers, its batch job and that job's hooks.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use gleaner_lease::{
    clock::{BootId, Stamp},
    deadlines::{Bounds, Deadlines},
};
use gleaner_proto::ids::{Epoch, LeaseId};

use crate::{
    Sabotage,
    agent::{Agent, LEASE_TTL_MAX},
    harvester::GRANT_TTL,
    message::{CallState, Input, Who},
    world::{CALM_AT, Event, MS, NODES, Ns, Run, World},
};

/// Cores of a node.
pub(crate) const CORES: u32 = 2;
/// Memory of a node.
pub(crate) const MEMORY: u64 = 16 << 30;
/// How long a batch job waits for us at most.
pub(crate) const HOOK_BOUND: Ns = 200 * MS;

/// A batch job on a node.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: u32,
    pub(crate) hook_started: Ns,
    /// Its prolog is over.
    pub(crate) running: bool,
    /// The hook has killed by itself and waits for the processes to go.
    alone: bool,
}

/// A lease's worker process.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) epoch: Epoch,
    pub(crate) cores: u32,
    run: Run,
    started: Ns,
    executing: Ns,
    running: Option<(usize, usize, Ns)>,
    queue: VecDeque<(usize, usize)>,
}

/// One node.
pub(crate) struct Node {
    pub(crate) boot: BootId,
    pub(crate) agent: Option<Agent>,
    pub(crate) keeper: Option<Keeper>,
    pub(crate) workers: BTreeMap<LeaseId, Worker>,
    /// Call states, in memory that the agent owns: lease, call, session and state.
    pub(crate) board: BTreeMap<LeaseId, BTreeMap<usize, (usize, CallState)>>,
    /// The epoch that workers compare a call's with.
    pub(crate) board_epoch: Epoch,
    pub(crate) job: Option<Job>,
    /// The journal that hooks write by themselves: which job has the node.
    pub(crate) hold_file: Option<u32>,
    /// Truth for the checker: the stamps of heartbeats, by number.
    beats: BTreeMap<u64, Stamp>,
}

impl Node {
    pub(crate) fn new(boot: BootId) -> Self {
        Self {
            boot,
            agent: None,
            keeper: None,
            workers: BTreeMap::new(),
            board: BTreeMap::new(),
            board_epoch: Epoch(0),
            job: None,
            hold_file: None,
            beats: BTreeMap::new(),
        }
    }

    /// Whether a keeper lives that has swept the node.
    pub(crate) fn may_start_agent(&self) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| !keeper.agent_due)
    }

    /// When a heartbeat was made.
    pub(crate) fn beat_stamp(&self, seq: u64) -> Option<Stamp> {
        self.beats.get(&seq).copied()
    }
}

/// The keeper's process.
pub(crate) struct Keeper {
    node: usize,
    pub(crate) deadlines: Deadlines<8>,
    hook: Option<u32>,
    /// The agent is dead, or not started yet: it starts when no worker is left.
    agent_due: bool,
    deaf: bool,
}

impl World {
    /// A keeper starts: it sweeps what a predecessor left, and only then starts its agent.
    pub(crate) fn start_keeper(&mut self, node: usize) {
        let bounds = Bounds { grant_max: GRANT_TTL, lease_max: LEASE_TTL_MAX };
        let mut deadlines = Deadlines::new(bounds);
        deadlines.hold(self.nodes[node].hold_file.is_some());
        let deaf = self.sabotaged(Sabotage::KeeperIgnoresDeadlines);
        self.nodes[node].keeper =
            Some(Keeper { node, deadlines, hook: None, agent_due: true, deaf });
        self.kill_workers(node);
    }

    /// The keeper is gone, and its agent with it. Its workers may outlive it until the next keeper, or the hook.
    pub(crate) fn keeper_died(&mut self, node: usize) {
        self.nodes[node].keeper = None;
        self.kill(Who::Agent(node));
        if self.chance(50) {
            self.kill_workers(node);
        }
    }

    fn kill_workers(&mut self, node: usize) {
        let workers: Vec<LeaseId> = self.nodes[node].workers.keys().copied().collect();
        workers.into_iter().for_each(|lease| self.kill_worker(node, lease));
    }

    /// SIGKILL: the worker does nothing more; its process and memory go a moment later.
    pub(crate) fn kill_worker(&mut self, node: usize, lease: LeaseId) {
        let now = self.now;
        let Some(worker) = self.nodes[node].workers.get_mut(&lease) else { return };
        if worker.run == Run::Down {
            return;
        }
        worker.run = Run::Down;
        if let Some((_, _, since)) = worker.running.take() {
            worker.executing += now - since;
        }
        let delay = self.rng.u64(MS / 5..3 * MS);
        self.at(now + delay, Event::WorkerGone { node, lease });
    }

    pub(crate) fn worker_gone(&mut self, node: usize, lease: LeaseId) {
        let Some(worker) = self.nodes[node].workers.remove(&lease) else { return };
        let allocated = Duration::from_nanos(self.now - worker.started);
        let executing = Duration::from_nanos(worker.executing);
        self.ledger.worker_gone(lease, allocated, worker.cores);
        self.pipe(Who::Keeper(node), Input::WorkerDied { lease, allocated, executing });
        if self.nodes[node].job.as_ref().is_some_and(|job| job.alone) {
            self.hook_if_empty(node);
        }
    }

    fn spawn_worker(&mut self, node: usize, lease: LeaseId, epoch: Epoch, cores: u32) {
        let (started, run) = (self.now, Run::Up);
        let worker = Worker {
            epoch,
            cores,
            run,
            started,
            executing: 0,
            running: None,
            queue: VecDeque::new(),
        };
        self.nodes[node].workers.insert(lease, worker);
        self.nodes[node].board.insert(lease, BTreeMap::new());
        self.stats.leases_started += 1;
    }

    // Workers.

    pub(crate) fn call_arrives(
        &mut self,
        node: usize,
        lease: LeaseId,
        session: usize,
        call: usize,
    ) {
        if self.sessions[session].cut && self.chance(50) {
            return;
        }
        let Some(worker) = self.nodes[node].workers.get_mut(&lease) else { return };
        if worker.run == Run::Down {
            return;
        }
        worker.queue.push_back((session, call));
        let board = self.nodes[node].board.entry(lease).or_default();
        board.insert(call, (session, CallState::NotStarted));
        self.worker_turns(node, lease);
    }

    /// A worker that is idle and not stopped takes its next call.
    fn worker_turns(&mut self, node: usize, lease: LeaseId) {
        let now = self.now;
        let Some(worker) = self.nodes[node].workers.get_mut(&lease) else { return };
        if worker.run != Run::Up || worker.running.is_some() {
            return;
        }
        let Some((session, call)) = worker.queue.pop_front() else { return };
        let epoch = worker.epoch;
        if epoch != self.nodes[node].board_epoch && !self.sabotaged(Sabotage::SkipEpochCheck) {
            self.send_client(session, Input::Stale { session, call });
            return self.worker_turns(node, lease);
        }
        let Some(worker) = self.nodes[node].workers.get_mut(&lease) else { return };
        worker.running = Some((session, call, now));
        self.mark(node, lease, call, session, CallState::Started);
        self.call_started(node, lease, call);
        if !self.calm() && self.chance(2) {
            self.mark(node, lease, call, session, CallState::Faulted);
            self.ledger.faulted(call);
            return self.kill_worker(node, lease);
        }
        self.after(1, 120, Event::Return { node, lease, call });
    }

    fn mark(&mut self, node: usize, lease: LeaseId, call: usize, session: usize, state: CallState) {
        self.nodes[node].board.entry(lease).or_default().insert(call, (session, state));
    }

    pub(crate) fn call_returns(&mut self, node: usize, lease: LeaseId, call: usize) {
        let now = self.now;
        let Some(worker) = self.nodes[node].workers.get_mut(&lease) else { return };
        let Some((session, running, since)) =
            worker.running.filter(|(_, running, _)| *running == call)
        else {
            return;
        };
        match worker.run {
            Run::Down => return,
            Run::Stopped => return self.after(5, 20, Event::Return { node, lease, call }),
            Run::Up => {}
        }
        worker.running = None;
        worker.executing += now - since;
        self.mark(node, lease, running, session, CallState::Finished);
        self.ledger.finished(call);
        self.send_client(session, Input::Reply { session, call });
        self.worker_turns(node, lease);
    }

    /// SIGSTOP to a worker.
    pub(crate) fn stop_worker(&mut self, node: usize, lease: LeaseId, for_ms: u64) {
        let Some(worker) = self.nodes[node].workers.get_mut(&lease) else { return };
        if worker.run == Run::Up {
            worker.run = Run::Stopped;
            self.at(self.now + for_ms * MS, Event::WorkerContinue { node, lease });
        }
    }

    pub(crate) fn worker_continues(&mut self, node: usize, lease: LeaseId) {
        let Some(worker) = self.nodes[node].workers.get_mut(&lease) else { return };
        if worker.run == Run::Stopped {
            worker.run = Run::Up;
            self.worker_turns(node, lease);
        }
    }

    // Batch jobs and their hooks.

    pub(crate) fn job_arrives(&mut self) {
        if self.now >= CALM_AT {
            return;
        }
        self.after(200, 2500, Event::Job);
        let node = self.rng.usize(0..NODES);
        if self.nodes[node].job.is_some() {
            return;
        }
        self.stats.jobs += 1;
        let id = self.stats.jobs as u32;
        self.nodes[node].job =
            Some(Job { id, hook_started: self.now, running: false, alone: false });
        self.nodes[node].hold_file = Some(id);
        if self.process(Who::Keeper(node)).run == Run::Down {
            return self.hook_alone(node);
        }
        self.pipe(Who::Keeper(node), Input::Prolog { job: id });
        if !self.sabotaged(Sabotage::HookWaits) {
            self.at(self.now + HOOK_BOUND / 2, Event::HookHalf { node, job: id });
        }
    }

    /// No answer after half the bound: the hook kills by itself.
    pub(crate) fn hook_half(&mut self, node: usize, job: u32) {
        if self.nodes[node].job.as_ref().is_some_and(|j| j.id == job && !j.running) {
            self.hook_alone(node);
        }
    }

    fn hook_alone(&mut self, node: usize) {
        if let Some(job) = self.nodes[node].job.as_mut() {
            job.alone = true;
        }
        if self.sabotaged(Sabotage::HookTrustsKeeper) {
            return self.job_starts(node);
        }
        self.kill_workers(node);
        self.hook_if_empty(node);
    }

    fn hook_if_empty(&mut self, node: usize) {
        if self.nodes[node].workers.is_empty() {
            self.job_starts(node);
        }
    }

    fn job_starts(&mut self, node: usize) {
        let Some(job) = self.nodes[node].job.as_mut().filter(|job| !job.running) else { return };
        job.running = true;
        let job = job.id;
        self.after(100, 1800, Event::JobEnds { node, job });
    }

    /// The epilog.
    pub(crate) fn job_ends(&mut self, node: usize, job: u32) {
        self.nodes[node].job = None;
        self.nodes[node].hold_file = None;
        self.pipe(Who::Keeper(node), Input::Epilog { job });
    }

    /// Truth for the checker: a heartbeat was made.
    pub(crate) fn beat_made(&mut self, node: usize, seq: u64, stamp: Stamp) {
        self.nodes[node].beats.insert(seq, stamp);
    }
}

impl Keeper {
    pub(crate) fn next_wake(&self) -> Option<Stamp> {
        self.deadlines.next().filter(|_| !self.deaf)
    }

    /// Kills what is due, before anything else, then takes one message.
    pub(crate) fn on(&mut self, world: &mut World, input: Option<Input>) {
        self.kill_due(world);
        if let Some(input) = input {
            self.input(world, input);
        }
        self.kill_due(world);
        self.settle(world);
    }

    fn kill_due(&mut self, world: &mut World) {
        let now = world.clock(Who::Keeper(self.node));
        while let Some(due) = self.deadlines.tick(now).filter(|_| !self.deaf) {
            world.kill_worker(self.node, due.lease);
        }
    }

    fn input(&mut self, world: &mut World, input: Input) {
        let node = self.node;
        let now = world.clock(Who::Keeper(node));
        match input {
            Input::KeepGrant { epoch, until } => {
                // A refused grant is one that came too late; the agent's own book ends it as well.
                let _ = self.deadlines.grant(now, epoch, until);
            }
            Input::StartWorker { lease, epoch, cores, deadline } => {
                let started = self.deadlines.start(now, lease, epoch, deadline).is_ok();
                if started {
                    world.spawn_worker(node, lease, epoch, cores);
                }
                let answer =
                    if started { Input::Started { lease } } else { Input::StartFailed { lease } };
                world.pipe(Who::Agent(node), answer);
            }
            Input::Extend { lease, deadline } => {
                // A refused renewal finds the lease at its end already, which the agent learns as that.
                let _ = self.deadlines.extend(now, lease, deadline);
            }
            Input::StopWorker { lease } => world.kill_worker(node, lease),
            Input::WorkerDied { lease, allocated, executing } => {
                self.deadlines.gone(lease);
                world.pipe(Who::Agent(node), Input::Gone { lease, allocated, executing });
            }
            Input::AgentDied => {
                self.agent_due = true;
                world.kill_workers(node);
            }
            Input::Prolog { job } => {
                self.hook = Some(job);
                world.ledger.fenced(node);
                if !world.sabotaged(Sabotage::KeeperAsksAgent) {
                    self.deadlines.fence_all();
                    self.deadlines.hold(true);
                    world.kill_workers(node);
                }
                world.pipe(Who::Agent(node), Input::Fenced { job });
            }
            Input::Epilog { job } => {
                self.deadlines.hold(false);
                world.pipe(Who::Agent(node), Input::JobOver { job });
            }
            _ => {}
        }
    }

    /// Once nothing is left, the hook is answered and a dead agent started again.
    fn settle(&mut self, world: &mut World) {
        let node = self.node;
        if !world.nodes[node].workers.is_empty() {
            return;
        }
        if let Some(hook) = self.hook.take()
            && world.nodes[node].job.as_ref().is_some_and(|job| job.id == hook)
        {
            world.job_starts(node);
        }
        if std::mem::take(&mut self.agent_due) {
            world.after(2, 40, Event::Start(Who::Agent(node)));
        }
    }
}
