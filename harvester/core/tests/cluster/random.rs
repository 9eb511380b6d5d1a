//! Any order of events, any answers of the store: what must hold always is checked after each step by a model that shares
//! no code with the core.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use gleaner_harvester_core::{
    Effect, Event, Policy,
    effect::{Reply, ToExecutor},
    event::{AdminCommand, CallId, Conn, ExecutorEvent, Join, Trigger, Usage},
    policy::Mode,
    record::Record,
};
use gleaner_lease::{clock::Instance, state::EndReason};
use gleaner_proto::ids::{Epoch, LeaseId, NodeName};
use proptest::prelude::*;

use crate::world::{Effects, World, name, policy};

/// The last one is not offered.
const NODES: [&str; 4] = ["n1", "n2", "n3", "x1"];
const STATES: [&str; 6] = ["IDLE", "IDLE", "ALLOCATED", "IDLE+DRAIN", "DOWN", "IDLE+PLANNED"];

#[derive(Debug, Clone)]
enum Op {
    Pass(u64),
    Look { before_ms: u64 },
    Slurm { node: usize, state: usize },
    Join { node: usize, resume: bool },
    Beat { node: usize },
    Lost { node: usize },
    Starting { node: usize, job: u32 },
    Ended { node: usize, job: u32 },
    Vacated { node: usize },
    LeaseEnded { pick: usize },
    Acquire { uid: u32, cores: u32, nodes: u32 },
    Repeat,
    Release { pick: usize },
    Drain { node: usize, back: bool },
    Switch { off: bool },
    Mode { enforce: bool },
    Answer { ok: bool },
    Tick,
}

fn op() -> impl Strategy<Value = Op> {
    let node = 0..NODES.len();
    prop_oneof![
        4 => (0..4000_u64).prop_map(Op::Pass),
        6 => prop_oneof![4 => Just(0), 1 => 0..3000_u64].prop_map(|before_ms| Op::Look { before_ms }),
        2 => (node.clone(), 0..STATES.len()).prop_map(|(node, state)| Op::Slurm { node, state }),
        4 => (node.clone(), any::<bool>()).prop_map(|(node, resume)| Op::Join { node, resume }),
        10 => node.clone().prop_map(|node| Op::Beat { node }),
        1 => node.clone().prop_map(|node| Op::Lost { node }),
        2 => (node.clone(), 1..4_u32).prop_map(|(node, job)| Op::Starting { node, job }),
        2 => (node.clone(), 1..4_u32).prop_map(|(node, job)| Op::Ended { node, job }),
        2 => node.clone().prop_map(|node| Op::Vacated { node }),
        2 => any::<usize>().prop_map(|pick| Op::LeaseEnded { pick }),
        10 => (1..4_u32, 1..5_u32, 1..3_u32).prop_map(|(uid, cores, nodes)| Op::Acquire { uid, cores, nodes }),
        1 => Just(Op::Repeat),
        2 => any::<usize>().prop_map(|pick| Op::Release { pick }),
        1 => (node, any::<bool>()).prop_map(|(node, back)| Op::Drain { node, back }),
        1 => prop_oneof![1 => Just(true), 2 => Just(false)].prop_map(|off| Op::Switch { off }),
        1 => prop_oneof![1 => Just(false), 3 => Just(true)].prop_map(|enforce| Op::Mode { enforce }),
        12 => prop_oneof![9 => Just(true), 1 => Just(false)].prop_map(|ok| Op::Answer { ok }),
        2 => Just(Op::Tick),
    ]
}

#[derive(Debug)]
struct ModelHold {
    heard: u64,
    seen: bool,
}

/// What an onlooker knows, from events and effects alone.
#[derive(Default)]
struct Model {
    /// Lease → node, cores, epoch: told to a client and not over by the executor's word or the grant's end.
    leases: BTreeMap<LeaseId, (NodeName, u32, Epoch)>,
    /// All that were ever replied.
    replied: BTreeSet<LeaseId>,
    stored_leases: BTreeSet<LeaseId>,
    holds: BTreeMap<NodeName, BTreeMap<u32, ModelHold>>,
    /// When each node's executor's grant of an epoch ends at the latest, on true time.
    granted_until: BTreeMap<(NodeName, Epoch), u64>,
    beats: BTreeMap<(Conn, u64), u64>,
    /// Slurm's state in the newest picture that the core was shown.
    shown: BTreeMap<NodeName, &'static str>,
    shown_asked: u64,
    state: BTreeMap<NodeName, &'static str>,
    off: bool,
    open: BTreeSet<CallId>,
}

struct Run {
    world: World,
    model: Model,
    requests: Vec<gleaner_harvester_core::event::Acquire>,
    /// Whether this step's event is an executor's word, which may end leases of its node at once.
    word: Option<NodeName>,
    /// Whether this step's event is the store's yes.
    storing: bool,
}

impl Run {
    fn new() -> Self {
        let mut world = World::seen(policy(), &NODES);
        world.nodes.get_mut(&name("x1")).unwrap().partitions = vec!["other".into()];
        world.look();
        world.prompt = false;
        let mut model = Model::default();
        model.state = NODES.iter().map(|node| (name(node), "IDLE")).collect();
        model.shown = model.state.clone();
        model.shown_asked = world.now;
        Self { world, model, requests: Vec::new(), word: None, storing: false }
    }

    fn step(&mut self, op: &Op) {
        (self.word, self.storing) = (None, false);
        let effects = self.act(op);
        self.check(&effects);
        self.check_slices();
    }

    fn act(&mut self, op: &Op) -> Effects {
        match *op {
            Op::Pass(ms) => drop(self.world.pass(Duration::from_millis(ms))),
            Op::Tick => return self.world.tick(),
            Op::Look { before_ms } => return self.look(before_ms),
            Op::Slurm { node, state } => {
                self.world.set(NODES[node], STATES[state]);
                self.model.state.insert(name(NODES[node]), STATES[state]);
            }
            Op::Join { node, resume } => return self.join(NODES[node], resume),
            Op::Beat { node } if self.joined(node) => return self.beat(NODES[node]),
            Op::Lost { node } if self.joined(node) => return self.world.lost(NODES[node]),
            Op::Starting { node, job } if self.joined(node) => {
                return self.starting(NODES[node], job);
            }
            Op::Ended { node, job } if self.joined(node) => return self.ended(NODES[node], job),
            Op::Vacated { node } if self.joined(node) => return self.vacated(NODES[node]),
            Op::LeaseEnded { pick } => return self.lease_ended(pick),
            Op::Acquire { uid, cores, nodes } => {
                let mut request = self.world.request(uid, cores);
                (request.nodes_max, request.partition) = (nodes, String::new());
                self.requests.push(request.clone());
                return self.acquire(request);
            }
            Op::Repeat => return self.repeat(),
            Op::Release { pick } => {
                let Some(id) = nth(self.model.leases.keys(), pick) else { return Vec::new() };
                let call = CallId(1_000_000 + self.world.now);
                self.model.open.insert(call);
                let who = crate::world::user(1 + u32::try_from(pick % 3).unwrap());
                return self.world.tell(Event::Release { call, who, leases: vec![id] });
            }
            Op::Drain { node, back } => {
                let nodelist = NODES[node].to_owned();
                return self
                    .world
                    .admin(
                        0,
                        match back {
                            true => AdminCommand::Resume { nodelist },
                            false => AdminCommand::Drain { nodelist, reason: "r".into() },
                        },
                    )
                    .0;
            }
            Op::Switch { off } => {
                // Once on is asked for, it may begin at any time until it is stored.
                self.model.off = off;
                return self
                    .world
                    .admin(
                        0,
                        match off {
                            true => AdminCommand::SwitchOff { reason: "r".into() },
                            false => AdminCommand::SwitchOn,
                        },
                    )
                    .0;
            }
            Op::Mode { enforce } => {
                let mode = if enforce { Mode::Enforce } else { Mode::Observe };
                return self.world.tell(Event::Reconfigured(Policy { mode, ..policy() }));
            }
            Op::Answer { ok } => return self.answer(ok),
            _ => {}
        }
        Vec::new()
    }

    fn joined(&self, node: usize) -> bool {
        self.world.executors.contains_key(&name(NODES[node]))
    }

    fn look(&mut self, before_ms: u64) -> Effects {
        let asked = self.world.now.saturating_sub(before_ms * 1_000_000);
        if asked >= self.model.shown_asked {
            self.model.shown_asked = asked;
            self.model.shown = self.model.state.clone();
            for (node, holds) in &mut self.model.holds {
                let state = self.model.state[node];
                holds.retain(|_, hold| {
                    let later = asked > hold.heard;
                    let gone = hold.seen || asked >= hold.heard + 60_000_000_000;
                    let keep = !later || state == "ALLOCATED" || !gone;
                    hold.seen |= later && state == "ALLOCATED";
                    keep
                });
            }
        }
        self.world.look_asked(asked)
    }

    fn join(&mut self, node: &str, resume: bool) -> Effects {
        let join = self.world.registration(node);
        let known = self.world.executors.get(&name(node)).cloned();
        self.word = Some(name(node));
        match known.clone().filter(|_| resume) {
            Some(known) => self.world.join_as(Join {
                resume_epoch: known.epoch,
                instance: Instance([known.instance; 16]),
                ..join
            }),
            None => {
                let instance = known.map_or(1, |known| known.instance.wrapping_add(1));
                self.world.join_as(Join { instance: Instance([instance; 16]), ..join })
            }
        }
    }

    fn beat(&mut self, node: &str) -> Effects {
        let executor = &self.world.executors[&name(node)];
        self.model.beats.insert((executor.conn, executor.seq + 1), self.world.now);
        let held: Vec<_> = self
            .model
            .leases
            .iter()
            .filter(|(_, (on, ..))| on.as_str() == node)
            .map(|(id, _)| gleaner_harvester_core::event::LeaseReport {
                lease: *id,
                usage: Usage::default(),
                expires: gleaner_lease::clock::Stamp(0),
            })
            .collect();
        self.word = Some(name(node));
        self.world.beat_with(node, &held)
    }

    fn starting(&mut self, node: &str, job: u32) -> Effects {
        let heard = self.world.now + 1;
        let effects = self.world.starting(node, job);
        if self.current(node) {
            let holds = self.model.holds.entry(name(node)).or_default();
            holds.insert(job, ModelHold { heard, seen: false });
        }
        effects
    }

    fn ended(&mut self, node: &str, job: u32) -> Effects {
        if self.current(node) {
            self.model.holds.entry(name(node)).or_default().remove(&job);
        }
        self.world.ended(node, job)
    }

    fn vacated(&mut self, node: &str) -> Effects {
        self.word = Some(name(node));
        let epoch = std::mem::replace(
            &mut self.world.executors.get_mut(&name(node)).unwrap().epoch,
            Epoch(0),
        );
        self.world.vacated(node, Trigger::Poll, epoch, 0)
    }

    fn lease_ended(&mut self, pick: usize) -> Effects {
        let Some(lease) = nth(self.model.leases.keys(), pick) else { return Vec::new() };
        let node = self.model.leases[&lease].0.clone();
        if !self.world.executors.contains_key(&node) {
            return Vec::new();
        }
        self.word = Some(node.clone());
        let (reason, detail, usage) = (EndReason::Released, String::new(), Usage::default());
        self.world.report(node.as_str(), ExecutorEvent::LeaseEnded { lease, reason, detail, usage })
    }

    /// Whether the core still listens to the stream that this executor uses.
    fn current(&self, node: &str) -> bool {
        let nodes =
            self.world.core.nodes(self.world.now, self.world.wall_ms(), Some(&[name(node)]));
        nodes[0].executor
    }

    fn acquire(&mut self, request: gleaner_harvester_core::event::Acquire) -> Effects {
        self.model.open.insert(request.call);
        self.world.tell(Event::Acquire(request))
    }

    fn repeat(&mut self) -> Effects {
        let Some(mut request) = self.requests.last().cloned() else { return Vec::new() };
        request.call = CallId(2_000_000 + self.world.now);
        self.acquire(request)
    }

    fn answer(&mut self, ok: bool) -> Effects {
        self.world.broken = !ok;
        if let Some((_, records, _)) = self.world.waiting.front().filter(|_| ok) {
            for record in records {
                if let Record::Lease(lease) = record {
                    self.model.stored_leases.insert(lease.lease);
                }
            }
        }
        self.storing = ok;
        let effects = self.world.answer();
        self.world.broken = false;
        effects
    }

    fn check(&mut self, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Send { conn, node, message } => self.check_sent(*conn, node, message),
                Effect::Reply { call, result } => {
                    assert!(
                        call.0 < 1_000_000 || self.model.open.remove(call),
                        "answered twice: {call:?}"
                    );
                    if call.0 < 1_000_000 {
                        self.model.open.remove(call);
                    }
                    if let Ok(Reply::Leases(leases)) = result {
                        for lease in leases {
                            let id = lease.claims.lease;
                            assert!(
                                self.model.stored_leases.contains(&id),
                                "{id} was told before it was stored"
                            );
                            if self.model.replied.insert(id) {
                                self.check_free_for_gleaner(&lease.node, "leased");
                                self.model.leases.insert(
                                    id,
                                    (lease.node.clone(), lease.claims.cores, lease.claims.epoch),
                                );
                            }
                        }
                    }
                }
                Effect::Persist { records, .. } => {
                    records.iter().for_each(|record| self.check_record(record));
                }
                Effect::LookSoon | Effect::Log { .. } => {}
            }
        }
    }

    fn check_sent(&mut self, conn: Conn, node: &NodeName, message: &ToExecutor) {
        match message {
            ToExecutor::Grant { epoch, answers_seq, ttl, cores, .. } => {
                self.check_free_for_gleaner(node, "granted");
                assert!(*cores <= 4);
                let received = self.model.beats[&(conn, *answers_seq)];
                let until = received + u64::try_from(ttl.as_nanos()).unwrap();
                let known = self.model.granted_until.entry((node.clone(), *epoch)).or_default();
                *known = (*known).max(until);
            }
            // No event comes twice in these runs, so only the store's answer may bring one about.
            ToExecutor::Ack { .. } => assert!(self.storing, "acknowledged before it was stored"),
            _ => {}
        }
    }

    /// Offered, idle in the newest picture, not held, not switched off.
    fn check_free_for_gleaner(&self, node: &NodeName, what: &str) {
        assert_ne!(node.as_str(), "x1", "{what} though not offered");
        assert!(!self.model.off, "{node} {what} though switched off");
        let holds = self.model.holds.get(node);
        assert!(holds.is_none_or(BTreeMap::is_empty), "{node} {what} though held: {holds:?}");
        let state = self.model.shown[node];
        assert!(state.starts_with("IDLE") && state != "IDLE+DRAIN", "{node} {what} though {state}");
    }

    fn check_record(&mut self, record: &Record) {
        if let Record::LeaseEnded { lease, .. } = record
            && let Some((node, _, epoch)) = self.model.leases.remove(lease)
        {
            let surely = self.world.now > self.model.granted_until[&(node.clone(), epoch)];
            let word = self.word.as_ref() == Some(&node);
            assert!(word || surely, "{lease} on {node} is over without its executor's word");
        }
    }

    /// No slice has two holders.
    fn check_slices(&self) {
        let mut taken = BTreeMap::<&NodeName, u32>::new();
        for (node, cores, _) in self.model.leases.values() {
            *taken.entry(node).or_default() += cores;
        }
        assert!(taken.values().all(|cores| *cores <= 4), "{taken:?}");
    }

    /// Every call has had its answer once the store has answered.
    fn finish(&mut self) {
        while !self.world.waiting.is_empty() {
            let effects = self.answer(true);
            self.word = None;
            self.check(&effects);
        }
        assert!(self.model.open.is_empty(), "without an answer: {:?}", self.model.open);
    }
}

fn nth<'a>(mut keys: impl ExactSizeIterator<Item = &'a LeaseId>, pick: usize) -> Option<LeaseId> {
    let len = keys.len();
    (len > 0).then(|| keys.nth(pick % len).copied()).flatten()
}

#[test]
fn the_model_sees_leases_at_all() {
    let mut run = Run::new();
    let ops = [
        Op::Join { node: 0, resume: false },
        Op::Beat { node: 0 },
        Op::Acquire { uid: 1, cores: 4, nodes: 1 },
        Op::Answer { ok: true },
        Op::Answer { ok: true },
        Op::Answer { ok: true },
    ];
    ops.iter().for_each(|op| run.step(op));
    assert_eq!(run.model.leases.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn what_must_hold_always_does(ops in prop::collection::vec(op(), 1..100)) {
        let mut run = Run::new();
        // Most runs begin with executors that hold grants, so that there is something to lose.
        for node in 0..NODES.len() {
            run.step(&Op::Join { node, resume: false });
            run.step(&Op::Beat { node });
        }
        ops.iter().for_each(|op| run.step(op));
        run.finish();
    }
}
