//! The harvester: an `Issuer`, a database that outlives it, and the simplest policy that grants every node Slurm leaves.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use gleaner_lease::{
    clock::Stamp,
    holder::GrantMessage,
    issuer::{Beat, Ended, Issuer, Join, Lease, Limits, Numbers, Request},
    state::{EndReason, State},
    token::Claims,
};
use gleaner_proto::ids::{LeaseId, Term, Uid};

use crate::{
    Sabotage,
    message::{Input, Report, Who},
    node::{CORES, MEMORY},
    world::{Event, MS, NODES, World, ms, node_name},
};

/// How long a grant lasts.
pub(crate) const GRANT_TTL: Duration = ms_const(2000);
const POLL: Duration = ms_const(250);

const fn ms_const(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// What is on disk.
#[derive(Debug, Default)]
pub(crate) struct Store {
    term: u64,
    numbers: Numbers,
    leases: BTreeMap<LeaseId, Lease>,
    requests: BTreeMap<u64, (usize, Claims)>,
    /// Full or read-only.
    pub(crate) failing: bool,
    /// Writes are done one after the other.
    free_at: u64,
}

/// One write.
#[derive(Debug, Clone)]
pub(crate) enum StoreOp {
    Numbers(Numbers),
    Lease { lease: Box<Lease>, request: u64, client: usize, claims: Box<Claims> },
    Ending { lease: LeaseId, reason: EndReason },
    Ended { lease: LeaseId },
}

impl World {
    /// Asks the database to write; the answer comes as `Input::Stored`.
    fn persist(&mut self, life: u32, op: StoreOp) {
        let start = self.store.free_at.max(self.now);
        self.store.free_at = start + self.rng.u64(MS / 2..8 * MS);
        self.at(self.store.free_at, Event::Store { life, op });
    }

    /// A write reaches the disk, or not: what a killed harvester had asked for may be done or lost.
    pub(crate) fn store_done(&mut self, life: u32, op: StoreOp) {
        let alive = self.process(Who::Harvester).life == life && self.harvester_lives();
        let ok = !self.store.failing && (alive || self.chance(50));
        if ok {
            self.store.apply(op.clone());
        }
        if alive {
            self.pipe(Who::Harvester, Input::Stored { op, ok });
        }
    }

    fn harvester_lives(&self) -> bool {
        self.process(Who::Harvester).run != crate::world::Run::Down
    }
}

impl Store {
    fn apply(&mut self, op: StoreOp) {
        match op {
            StoreOp::Numbers(numbers) => self.numbers = numbers,
            StoreOp::Lease { lease, request, client, claims } => {
                self.requests.insert(request, (client, *claims));
                self.leases.insert(lease.id, *lease);
            }
            StoreOp::Ending { lease, reason } => {
                if let Some(lease) = self.leases.get_mut(&lease) {
                    lease.ending.get_or_insert(reason);
                }
            }
            StoreOp::Ended { lease } => {
                self.leases.remove(&lease);
            }
        }
    }
}

/// What the harvester thinks of a node beyond its leases.
#[derive(Debug, Default)]
struct View {
    conn: u64,
    /// A hook or a picture said that this job has the node.
    hold: Option<u32>,
    /// A picture has shown that job.
    seen: bool,
    ended_jobs: BTreeSet<u32>,
}

/// The harvester's process.
pub(crate) struct Harvester {
    life: u32,
    pub(crate) issuer: Issuer,
    views: Vec<View>,
    requests: BTreeMap<u64, (usize, Claims)>,
    pending: BTreeMap<LeaseId, u64>,
    wanted: Option<Numbers>,
    next_poll: Stamp,
}

impl Harvester {
    pub(crate) fn start(world: &mut World, life: u32) -> Self {
        let now = world.clock(Who::Harvester);
        let forget = world.sabotaged(Sabotage::RestartForgets);
        world.store.term += 1;
        let leases: Vec<Lease> =
            if forget { Vec::new() } else { world.store.leases.values().cloned().collect() };
        let limits = Limits { grant_ttl_max: GRANT_TTL };
        let issuer = Issuer::new(now, Term(world.store.term), limits, world.store.numbers, leases);
        let requests = world.store.requests.clone();
        let views = (0..NODES).map(|_| View::default()).collect();
        Self {
            life,
            issuer,
            views,
            requests,
            pending: BTreeMap::new(),
            wanted: None,
            next_poll: now,
        }
    }

    pub(crate) fn next_wake(&self) -> Option<Stamp> {
        self.issuer.next_deadline().into_iter().chain([self.next_poll]).min()
    }

    pub(crate) fn on(&mut self, world: &mut World, input: Option<Input>) {
        let now = world.clock(Who::Harvester);
        let early = if world.sabotaged(Sabotage::NoDriftWait) { ms(300) } else { Duration::ZERO };
        let ended = self.issuer.tick(now.after(early));
        self.ended(world, &ended);
        if now >= self.next_poll {
            self.next_poll = now.after(POLL);
            self.poll(world);
        }
        if let Some(input) = input {
            self.input(world, now, input);
        }
        if self.wanted.is_none()
            && let Some(numbers) = self.issuer.numbers_wanted()
        {
            self.wanted = Some(numbers);
            world.persist(self.life, StoreOp::Numbers(numbers));
        }
    }

    fn input(&mut self, world: &mut World, now: Stamp, input: Input) {
        match input {
            Input::Register { node, conn, join, hold } => {
                self.register(world, now, node, conn, &join);
                self.hold_by_hook(node, hold);
            }
            Input::Heartbeat { node, conn, instance, seq, stamp, held }
                if self.views[node].conn == conn =>
            {
                let beat = Beat { instance, seq, stamp };
                let ended = self.issuer.heartbeat(now, &node_name(node), &beat, &held);
                self.ended(world, &ended);
                self.grant(world, now, node);
            }
            Input::Report { node, conn, seq, report } => {
                self.report(world, node, report);
                world.send(Some(node), Who::Agent(node), Input::Ack { conn, seq });
            }
            Input::Acquire { client, request, cores, ttl } => {
                self.acquire(world, now, client, request, cores, ttl);
            }
            Input::Release { lease } => self.end(world, lease, EndReason::Released),
            Input::Stored { op, ok } => self.stored(world, now, op, ok),
            _ => {}
        }
    }

    fn register(&mut self, world: &mut World, now: Stamp, node: usize, conn: u64, join: &Join) {
        let Ok(joined) = self.issuer.executor_joined(now, &node_name(node), join) else { return };
        self.views[node].conn = conn;
        self.ended(world, &joined.ended);
        let term = self.issuer.term();
        world.send(
            Some(node),
            Who::Agent(node),
            Input::Registered { conn, epoch: joined.epoch, term },
        );
        for ending in joined.revoke {
            let revoke = Input::Revoke { conn, lease: ending.lease, reason: ending.reason };
            world.send(Some(node), Who::Agent(node), revoke);
        }
    }

    fn grant(&mut self, world: &mut World, now: Stamp, node: usize) {
        if self.views[node].hold.is_some() {
            return;
        }
        let Ok(granted) = self.issuer.grant(now, &node_name(node), CORES, MEMORY, GRANT_TTL) else {
            return;
        };
        let grant = GrantMessage {
            epoch: granted.epoch,
            answers_seq: granted.answers_seq,
            ttl: granted.ttl,
            cores: granted.cores,
            memory_bytes: granted.memory_bytes,
        };
        let conn = self.views[node].conn;
        world.send(Some(node), Who::Agent(node), Input::Grant { conn, grant });
    }

    fn report(&mut self, world: &mut World, node: usize, report: Report) {
        let name = node_name(node);
        match report {
            Report::LeaseEnded { lease, reason, allocated, executing } => {
                world.account(lease, allocated, executing);
                let ended = self.issuer.lease_ended(&name, lease, reason);
                self.ended(world, ended.as_slice());
            }
            Report::LeaseRenewed { lease, expires } => self.issuer.renewed(&name, lease, expires),
            Report::Vacated { epoch } => {
                let ended = self.issuer.vacated(&name, epoch, EndReason::BatchJob);
                self.ended(world, &ended);
            }
            Report::JobStarted { job } => {
                let view = &mut self.views[node];
                if !view.ended_jobs.contains(&job) {
                    view.hold = Some(job);
                    view.seen = false;
                }
            }
            Report::JobEnded { job } => {
                let view = &mut self.views[node];
                view.ended_jobs.insert(job);
                view.hold = view.hold.filter(|held| *held != job);
            }
        }
    }

    /// What the node itself knows of hooks, when it registers: reports may have died with an agent.
    fn hold_by_hook(&mut self, node: usize, hold: Option<u32>) {
        let view = &mut self.views[node];
        if hold.is_some() || !view.seen {
            view.hold = hold;
            view.seen = false;
        }
    }

    /// Looks at Slurm: holds what it has taken, and lets go of what it has taken and left.
    fn poll(&mut self, world: &mut World) {
        for node in 0..NODES {
            let job = world.nodes[node].job.as_ref().map(|job| job.id);
            let view = &mut self.views[node];
            match (job, view.hold) {
                (Some(job), _) => {
                    view.hold = Some(job);
                    view.seen = true;
                    self.vacate(world, node);
                }
                (None, Some(_)) if view.seen => {
                    view.hold = None;
                    view.seen = false;
                }
                _ => {}
            }
        }
    }

    fn vacate(&mut self, world: &mut World, node: usize) {
        let conn = self.views[node].conn;
        if let Some(vacating) = self.issuer.vacate(&node_name(node), EndReason::BatchJob) {
            let vacate = Input::Vacate { conn, epoch: vacating.epoch, reason: EndReason::BatchJob };
            world.send(Some(node), Who::Agent(node), vacate);
        }
    }

    fn acquire(
        &mut self,
        world: &mut World,
        now: Stamp,
        client: usize,
        request: u64,
        cores: u32,
        ttl: Duration,
    ) {
        if self.pending.values().any(|pending| *pending == request) {
            return;
        }
        if let Some((_, claims)) = self.requests.get(&request) {
            let live =
                self.issuer.lease(claims.lease).is_some_and(|lease| lease.state == State::Live);
            let claims = *claims;
            return if live {
                self.reply(world, client, request, claims)
            } else {
                refuse(world, client, request)
            };
        }
        let uid = Uid(1000 + client as u32);
        let client_key = [client as u8; 32];
        let wanted = Request { uid, gid: 100, cores, memory_bytes: 1 << 30, ttl, client_key };
        let first = world.rng.usize(0..NODES);
        let nodes =
            (0..NODES).map(|n| (first + n) % NODES).filter(|n| self.views[*n].hold.is_none());
        let draft =
            nodes.into_iter().find_map(|n| self.issuer.reserve(now, &node_name(n), &wanted).ok());
        let Some(draft) = draft else { return refuse(world, client, request) };
        let lease = draft.lease.id;
        self.pending.insert(lease, request);
        if world.sabotaged(Sabotage::ReplyBeforePersist) {
            self.reply(world, client, request, draft.claims);
        }
        let claims = Box::new(draft.claims);
        world.persist(
            self.life,
            StoreOp::Lease { lease: Box::new(draft.lease), request, client, claims },
        );
    }

    fn stored(&mut self, world: &mut World, now: Stamp, op: StoreOp, ok: bool) {
        match op {
            StoreOp::Numbers(numbers) => {
                self.wanted = None;
                if ok {
                    self.issuer.numbers_reserved(numbers);
                }
            }
            StoreOp::Lease { lease, request, client, claims } => {
                self.pending.remove(&lease.id);
                if !ok {
                    self.issuer.abandon(lease.id);
                    refuse(world, client, request);
                } else if self.issuer.persisted(now, lease.id).is_ok() {
                    self.requests.insert(request, (client, *claims));
                    self.reply(world, client, request, *claims);
                } else {
                    world.persist(self.life, StoreOp::Ended { lease: lease.id });
                    refuse(world, client, request);
                }
            }
            // What could not be stored as over comes back as live after a restart, and ends by the rules again.
            StoreOp::Ending { .. } | StoreOp::Ended { .. } => {}
        }
    }

    fn reply(&mut self, world: &mut World, client: usize, request: u64, claims: Claims) {
        let node = (0..NODES)
            .find(|n| claims.node == gleaner_lease::token::NodeDigest::of(&node_name(*n)));
        let Some(node) = node else { return };
        world.ledger.issued(&claims, node, request);
        world.send(None, Who::Client(client), Input::Leased { request, node, claims });
    }

    fn end(&mut self, world: &mut World, lease: LeaseId, reason: EndReason) {
        if let Some(ending) = self.issuer.end(lease, reason) {
            world.persist(self.life, StoreOp::Ending { lease, reason });
            let node = (0..NODES).find(|n| node_name(*n) == ending.node);
            if let Some(node) = node {
                let conn = self.views[node].conn;
                world.send(Some(node), Who::Agent(node), Input::Revoke { conn, lease, reason });
            }
        }
    }

    fn ended(&mut self, world: &mut World, ended: &[Ended]) {
        for ended in ended {
            world.stats.leases_ended += 1;
            world.persist(self.life, StoreOp::Ended { lease: ended.lease });
        }
    }
}

fn refuse(world: &mut World, client: usize, request: u64) {
    world.send(None, Who::Client(client), Input::Refused { request });
}
