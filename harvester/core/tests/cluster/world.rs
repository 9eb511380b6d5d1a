//! A driver for the core: a clock that is set, a store that is a list, executors that are told what to say.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use gleaner_harvester_core::{
    Core, Effect, Event, Policy,
    effect::{Leased, Need, Reply, ToExecutor},
    event::{
        Acquire, AdminCommand, CallId, Conn, ExecutorEvent, Heartbeat, Identity, Join, LeaseReport,
        Ticket, Trigger, Vacated,
    },
    picture::{NodeState, NodeView, Picture},
    policy::Mode,
    record::{LeaseRecord, Record, Restored},
    refusal::Refusal,
};
use gleaner_lease::{
    clock::{BootId, Instance, Stamp},
    issuer::Numbers,
};
use gleaner_proto::ids::{Epoch, JobId, LeaseId, NodeName, Term, Uid};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const GIB: u64 = 1 << 30;
/// 14:00 UTC of some day.
pub(crate) const WALL_MS: i64 = 1_800_021_600_000;

/// What one call of the core brought about, with the store's answers if it answers at once.
pub(crate) type Effects = Vec<Effect>;

pub(crate) struct World {
    pub(crate) core: Core,
    pub(crate) now: u64,
    pub(crate) policy: Policy,
    pub(crate) nodes: BTreeMap<NodeName, NodeView>,
    /// Persist effects that have no answer yet.
    pub(crate) waiting: VecDeque<(Ticket, Vec<Record>, Need)>,
    /// What is stored.
    pub(crate) stored: Vec<Record>,
    /// Whether the store answers at once.
    pub(crate) prompt: bool,
    /// Whether it fails.
    pub(crate) broken: bool,
    pub(crate) executors: BTreeMap<NodeName, Executor>,
    calls: u64,
    conns: u64,
}

#[derive(Clone)]
pub(crate) struct Executor {
    pub(crate) conn: Conn,
    pub(crate) seq: u64,
    pub(crate) events: u64,
    pub(crate) epoch: Epoch,
    pub(crate) instance: u8,
}

pub(crate) fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

pub(crate) fn view(node: &str, state: &str) -> NodeView {
    let state = NodeState::parse(state);
    NodeView {
        name: name(node),
        state,
        partitions: vec!["batch".into()],
        features: vec![],
        cpus: 4,
        alloc_cpus: 0,
        real_memory_mb: 8192,
        alloc_memory_mb: 0,
        planned_start_unix_s: None,
    }
}

pub(crate) fn policy() -> Policy {
    Policy { mode: Mode::Enforce, partitions: ["batch".to_owned()].into(), ..Policy::default() }
}

pub(crate) fn user(uid: u32) -> Identity {
    Identity { uid: Uid(uid), gid: 100, user: format!("u{uid}") }
}

impl World {
    /// A cluster of these nodes in partition batch, all idle, seen once, each with an executor that has a grant.
    pub(crate) fn granted(nodes: &[&str]) -> Self {
        let mut world = Self::seen(policy(), nodes);
        for node in nodes {
            world.join(node);
            world.beat(node);
        }
        world
    }

    /// A cluster that has been seen, without executors.
    pub(crate) fn seen(policy: Policy, nodes: &[&str]) -> Self {
        let mut world = Self::blind(policy, Restored::default());
        world.nodes = nodes.iter().map(|node| (name(node), view(node, "IDLE"))).collect();
        world.look();
        world
    }

    /// A harvester that has just started.
    pub(crate) fn blind(policy: Policy, restored: Restored) -> Self {
        let (now, mut effects) = (1_000_000 * MS, Vec::new());
        let core = Core::restore(policy.clone(), restored, now, WALL_MS, &mut effects);
        let mut world = Self {
            core,
            now,
            policy,
            nodes: BTreeMap::new(),
            waiting: VecDeque::new(),
            stored: Vec::new(),
            prompt: true,
            broken: false,
            executors: BTreeMap::new(),
            calls: 0,
            conns: 0,
        };
        world.settle(effects);
        world
    }

    pub(crate) fn wall_ms(&self) -> i64 {
        WALL_MS + i64::try_from(self.now / MS).unwrap() - 1_000_000
    }

    pub(crate) fn pass(&mut self, time: Duration) -> &mut Self {
        self.now += u64::try_from(time.as_nanos()).unwrap();
        self
    }

    /// Tells the core, and the store's answers if it is prompt.
    pub(crate) fn tell(&mut self, event: Event) -> Effects {
        self.now += 1;
        let mut effects = Vec::new();
        self.core.handle(self.now, self.wall_ms(), event, &mut effects);
        self.settle(effects)
    }

    fn settle(&mut self, effects: Effects) -> Effects {
        let mut all = Vec::new();
        for effect in effects {
            if let Effect::Persist { ticket, records, need } = &effect {
                self.waiting.push_back((*ticket, records.clone(), *need));
            }
            all.push(effect);
        }
        while self.prompt && !self.waiting.is_empty() {
            all.extend(self.answer());
        }
        all
    }

    /// The store answers the oldest persist effect.
    pub(crate) fn answer(&mut self) -> Effects {
        let Some((ticket, records, _)) = self.waiting.pop_front() else { return Vec::new() };
        let result = if self.broken { Err("disk full".to_owned()) } else { Ok(()) };
        if result.is_ok() {
            self.stored.extend(records);
        }
        self.tell(Event::Persisted { ticket, result })
    }

    pub(crate) fn tick(&mut self) -> Effects {
        self.tell(Event::Tick)
    }

    /// A picture of the nodes as they are, asked for now.
    pub(crate) fn look(&mut self) -> Effects {
        let asked = self.now;
        self.look_asked(asked)
    }

    pub(crate) fn look_asked(&mut self, asked_ns: u64) -> Effects {
        let nodes = self.nodes.values().cloned().collect();
        self.tell(Event::Picture(Picture { nodes, asked_ns, took_us: 700 }))
    }

    pub(crate) fn set(&mut self, node: &str, state: &str) -> &mut Self {
        let view = self.nodes.get_mut(&name(node)).unwrap();
        view.state = NodeState::parse(state);
        view.alloc_cpus = if matches!(state, "ALLOCATED" | "MIXED") { 4 } else { 0 };
        self
    }

    pub(crate) fn conn(&mut self) -> Conn {
        self.conns += 1;
        Conn(self.conns)
    }

    pub(crate) fn registration(&mut self, node: &str) -> Join {
        Join {
            conn: self.conn(),
            node: name(node),
            caller: Uid(0),
            trusted: true,
            public_key: [7; 32],
            address: format!("{node}:7818"),
            local_socket: String::new(),
            boot: BootId([1; 16]),
            instance: Instance([1; 16]),
            stamp: Stamp(self.now),
            cores: 4,
            memory_bytes: 8 * GIB,
            single_user: None,
            limitations: vec![],
            version: "0.1.0".into(),
            resume_epoch: Epoch(0),
            last_term: Term(0),
            hold_job: JobId(0),
        }
    }

    /// The node's executor joins, as a new life.
    pub(crate) fn join(&mut self, node: &str) -> Effects {
        let join = self.registration(node);
        self.join_as(join)
    }

    pub(crate) fn join_as(&mut self, join: Join) -> Effects {
        self.now += 1;
        let join = Join { stamp: Stamp(self.now), ..join };
        let (conn, node, instance) = (join.conn, join.node.clone(), join.instance.0[0]);
        let old = self.executors.get(&node).filter(|old| old.instance == instance);
        let (seq, events) = old.map_or((0, 0), |old| (old.seq, old.events));
        let effects = self.tell(Event::Joined(join));
        if registered(&effects).is_some() {
            self.executors.insert(node, Executor { conn, seq, events, epoch: Epoch(0), instance });
        }
        effects
    }

    /// The node's executor sends a heartbeat, and takes the grant that answers it.
    pub(crate) fn beat(&mut self, node: &str) -> Effects {
        self.beat_with(node, &[])
    }

    pub(crate) fn beat_with(&mut self, node: &str, leases: &[LeaseReport]) -> Effects {
        self.now += 1;
        let stamp = Stamp(self.now);
        let executor = self.executors.get_mut(&name(node)).unwrap();
        executor.seq += 1;
        let Executor { conn, seq, epoch, .. } = *executor;
        let leases = leases.to_vec();
        let effects = self.tell(Event::Heartbeat(Heartbeat { conn, seq, stamp, epoch, leases }));
        if let Some((epoch, _)) = grant(&effects, node) {
            self.executors.get_mut(&name(node)).unwrap().epoch = epoch;
        }
        effects
    }

    /// The node's executor reports an event.
    pub(crate) fn report(&mut self, node: &str, what: ExecutorEvent) -> Effects {
        let executor = self.executors.get_mut(&name(node)).unwrap();
        executor.events += 1;
        let (conn, seq) = (executor.conn, executor.events);
        self.tell(Event::Executor { conn, seq, what })
    }

    pub(crate) fn starting(&mut self, node: &str, job: u32) -> Effects {
        self.report(
            node,
            ExecutorEvent::JobStarting { job: JobId(job), job_uid: Uid(1), hook_us: 900 },
        )
    }

    pub(crate) fn ended(&mut self, node: &str, job: u32) -> Effects {
        self.report(
            node,
            ExecutorEvent::JobEnded { job: JobId(job), job_uid: Uid(1), hook_us: 100 },
        )
    }

    pub(crate) fn vacated(
        &mut self,
        node: &str,
        trigger: Trigger,
        epoch: Epoch,
        job: u32,
    ) -> Effects {
        let record_id = self.now.to_le_bytes().repeat(2).try_into().unwrap();
        let unix_ms = self.wall_ms();
        self.report(
            node,
            ExecutorEvent::Vacated(Vacated {
                record_id,
                trigger,
                epoch,
                job: JobId(job),
                job_uid: Uid(1),
                leases: 0,
                processes: 0,
                memory_bytes: 0,
                steps: Default::default(),
                stamp: Stamp(self.now),
                unix_ms,
            }),
        )
    }

    pub(crate) fn lost(&mut self, node: &str) -> Effects {
        let conn = self.executors[&name(node)].conn;
        self.tell(Event::ExecutorLost { conn })
    }

    pub(crate) fn request(&mut self, uid: u32, cores: u32) -> Acquire {
        self.calls += 1;
        let mut request_id = [0; 16];
        request_id[..8].copy_from_slice(&self.calls.to_le_bytes());
        Acquire {
            call: CallId(self.calls),
            who: user(uid),
            account: "physics".into(),
            request_id,
            client_key: [9; 32],
            nodes_min: 1,
            nodes_max: 1,
            cores,
            memory_bytes: GIB,
            ttl: Duration::from_secs(600),
            partition: "batch".into(),
            avoid: vec![],
        }
    }

    /// Asks, and returns the one answer.
    pub(crate) fn acquire(&mut self, acquire: Acquire) -> Result<Vec<Leased>, Refusal> {
        let call = acquire.call;
        let effects = self.tell(Event::Acquire(acquire));
        leases(&effects, call)
    }

    pub(crate) fn lease(&mut self, uid: u32, cores: u32) -> Result<Vec<Leased>, Refusal> {
        let request = self.request(uid, cores);
        self.acquire(request)
    }

    pub(crate) fn release(&mut self, uid: u32, ids: &[LeaseId]) -> (Effects, Vec<LeaseId>) {
        self.calls += 1;
        let call = CallId(self.calls);
        let effects = self.tell(Event::Release { call, who: user(uid), leases: ids.to_vec() });
        match answer(&effects, call) {
            Some(Ok(Reply::Released(ids))) => (effects, ids),
            other => panic!("release answered {other:?}"),
        }
    }

    pub(crate) fn admin(
        &mut self,
        uid: u32,
        command: AdminCommand,
    ) -> (Effects, Option<Result<Reply, Refusal>>) {
        self.calls += 1;
        let call = CallId(self.calls);
        let effects = self.tell(Event::Admin { call, who: user(uid), command });
        let answer = answer(&effects, call);
        (effects, answer)
    }

    /// The harvester is killed and starts again on what is stored; its executors have not come back yet.
    pub(crate) fn restart(&mut self) {
        let mut effects = Vec::new();
        self.waiting.clear();
        let restored = restored(&self.stored);
        self.core =
            Core::restore(self.policy.clone(), restored, self.now, self.wall_ms(), &mut effects);
        self.settle(effects);
    }

    pub(crate) fn state(&self, node: &str) -> &'static str {
        self.core.nodes(self.now, self.wall_ms(), Some(&[name(node)]))[0].state
    }
}

/// What a store would hand back of these records.
pub(crate) fn restored(records: &[Record]) -> Restored {
    let mut restored = Restored::default();
    let mut leases = BTreeMap::<LeaseId, LeaseRecord>::new();
    let mut drained = BTreeMap::new();
    for record in records {
        match record.clone() {
            Record::Term { term, grant_ttl, .. } => {
                restored.last_term = restored.last_term.max(term);
                restored.grant_ttl_max = restored.grant_ttl_max.max(grant_ttl);
            }
            Record::Numbers(Numbers { lease, epoch }) => {
                restored.numbers = Numbers { lease, epoch }
            }
            Record::Lease(record) => drop(leases.insert(record.lease, record)),
            Record::LeaseRenewed { lease, expires } => {
                if let Some(lease) = leases.get_mut(&lease) {
                    lease.expires = lease.expires.max(expires);
                }
            }
            Record::LeaseEnding { lease, reason } => {
                if let Some(lease) = leases.get_mut(&lease) {
                    lease.ending = Some(reason);
                }
            }
            Record::LeaseEnded { lease, .. } => drop(leases.remove(&lease)),
            Record::Drain { node, reason, .. } => drop(drained.insert(node, reason)),
            Record::Resume { node } => drop(drained.remove(&node)),
            Record::Switch { off, .. } => restored.switched_off = off,
            Record::Vacate { .. } => restored.vacates += 1,
            _ => {}
        }
    }
    restored.leases = leases.into_values().collect();
    restored.drained = drained.into_iter().collect();
    restored
}

/// The answer to a call; panics if there are two.
pub(crate) fn answer(effects: &[Effect], wanted: CallId) -> Option<Result<Reply, Refusal>> {
    let mut answers = effects.iter().filter_map(|effect| match effect {
        Effect::Reply { call, result } if *call == wanted => Some(result.clone()),
        _ => None,
    });
    let answer = answers.next();
    assert_eq!(answers.next(), None, "two answers");
    answer
}

pub(crate) fn leases(effects: &[Effect], call: CallId) -> Result<Vec<Leased>, Refusal> {
    match answer(effects, call).expect("an answer") {
        Ok(Reply::Leases(leases)) => Ok(leases),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => Err(refusal),
    }
}

pub(crate) fn sent<'a>(
    effects: &'a [Effect],
    to: &'a str,
) -> impl Iterator<Item = ToExecutor> + 'a {
    effects.iter().filter_map(move |effect| match effect {
        Effect::Send { node, message, .. } if node.as_str() == to => Some(*message),
        _ => None,
    })
}

pub(crate) fn grant(effects: &[Effect], node: &str) -> Option<(Epoch, Duration)> {
    sent(effects, node).find_map(|message| match message {
        ToExecutor::Grant { epoch, ttl, .. } => Some((epoch, ttl)),
        _ => None,
    })
}

pub(crate) fn vacate(
    effects: &[Effect],
    node: &str,
) -> Option<(Epoch, gleaner_lease::state::EndReason)> {
    sent(effects, node).find_map(|message| match message {
        ToExecutor::Vacate { epoch, reason } => Some((epoch, reason)),
        _ => None,
    })
}

pub(crate) fn registered(effects: &[Effect]) -> Option<Epoch> {
    effects.iter().find_map(|effect| match effect {
        Effect::Send { message: ToExecutor::Registered { epoch, .. }, .. } => Some(*epoch),
        _ => None,
    })
}
