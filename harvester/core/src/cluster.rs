//! The core itself: one struct, one entry, and what all its parts share.
//!
//! Each part handles its own events: [`slurm`] pictures and jobs, [`uplink`] executors' streams, [`reports`] their
//! numbered events, [`acquire`] and [`release`] clients, [`admin`] administrators, [`storing`] the store's answers;
//! [`judge`] says what may be harvested, [`vacating`] acts on it, [`account`] records it, [`views`] shows it.

mod account;
mod acquire;
mod admin;
mod book;
mod hold;
mod judge;
mod node;
mod placement;
mod release;
mod reports;
mod room;
mod slurm;
mod storing;
mod uplink;
mod vacating;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use gleaner_lease::{
    clock::Stamp,
    issuer::{Ended, Issuer, Limits},
};
use gleaner_proto::ids::{NodeName, Term};

use crate::{
    effect::{Effect, Need, Reply, ToExecutor},
    event::{CallId, Conn, Event},
    policy::Policy,
    record::{Record, Restored},
    refusal::Refusal,
};

/// At least this often the core wants [`Event::Tick`].
pub const TICK: Duration = Duration::from_millis(200);
/// The longest grant that a restart reckons with even if nothing is stored.
const GRANT_TTL_MIN: Duration = Duration::from_secs(1);
/// So many vacate records are remembered by their id, so that the status counts none twice.
const VACATES_REMEMBERED: usize = 1024;

/// The cluster as the harvester knows it, and every decision about it.
#[derive(Debug)]
pub struct Core {
    policy: Policy,
    term: Term,
    /// The longest grant that any record promises will have ended.
    grant_ttl_max: Duration,
    /// Who holds which slice.
    issuer: Issuer,
    nodes: BTreeMap<NodeName, node::Node>,
    conns: BTreeMap<Conn, NodeName>,
    book: book::Book,
    slurm: slurm::Slurm,
    drained: BTreeMap<NodeName, admin::Drained>,
    switched_off: Option<admin::Off>,
    /// Counts admins' commands, so that one that is being stored does not undo a later one.
    commands: u64,
    store: storing::Store,
    vacates: u64,
    vacates_seen: VecDeque<[u8; 16]>,
    warnings: Vec<String>,
    account: account::Account,
    /// Nodes whose figures may have changed in this turn.
    touched: BTreeSet<NodeName>,
}

/// One event's turn: when it is, and where effects and records go.
struct Turn<'a> {
    now: Stamp,
    wall_ms: i64,
    effects: &'a mut Vec<Effect>,
    /// What has happened, to be stored at the turn's end, or with the part that takes it.
    records: Vec<Record>,
}

impl Turn<'_> {
    fn send(&mut self, conn: Conn, node: &NodeName, message: ToExecutor) {
        self.effects.push(Effect::Send { conn, node: node.clone(), message });
    }

    fn reply(&mut self, call: CallId, result: Result<Reply, Refusal>) {
        self.effects.push(Effect::Reply { call, result });
    }

    fn log(&mut self, warn: bool, message: String) {
        self.effects.push(Effect::Log { warn, message });
    }
}

impl Core {
    /// A harvester that starts: `restored` is what its store has. Pushes the first effects (its term, its numbers).
    pub fn restore(
        policy: Policy,
        restored: Restored,
        now_ns: u64,
        wall_ms: i64,
        effects: &mut Vec<Effect>,
    ) -> Self {
        let term = Term(restored.last_term.0 + 1);
        let grant_ttl_max = policy.grant_ttl.max(restored.grant_ttl_max).max(GRANT_TTL_MIN);
        let now = Stamp(now_ns);
        let (leases, book) = book::restore(restored.leases);
        let issuer = Issuer::new(now, term, Limits { grant_ttl_max }, restored.numbers, leases);
        let mut core = Self {
            policy,
            term,
            grant_ttl_max,
            issuer,
            nodes: BTreeMap::new(),
            conns: BTreeMap::new(),
            book,
            slurm: slurm::Slurm::default(),
            drained: admin::restore(restored.drained),
            switched_off: restored.switched_off.map(|reason| admin::Off { reason, command: 0 }),
            commands: 0,
            store: storing::Store::default(),
            vacates: restored.vacates,
            vacates_seen: VecDeque::new(),
            warnings: Vec::new(),
            account: account::Account::default(),
            touched: BTreeSet::new(),
        };
        for lease in core.issuer.leases() {
            core.touched.insert(lease.node.clone());
            core.nodes.entry(lease.node.clone()).or_default();
        }
        core.turn(now, wall_ms, effects, Self::keep_watch);
        core
    }

    /// Takes one event. `now_ns` is the harvester's `CLOCK_BOOTTIME` and never goes back; `wall_ms` its wall clock, for
    /// records, plans and sentences only.
    pub fn handle(&mut self, now_ns: u64, wall_ms: i64, event: Event, effects: &mut Vec<Effect>) {
        self.turn(Stamp(now_ns), wall_ms, effects, |core, turn| core.dispatch(turn, event));
    }

    fn turn(
        &mut self,
        now: Stamp,
        wall_ms: i64,
        effects: &mut Vec<Effect>,
        work: impl FnOnce(&mut Self, &mut Turn<'_>),
    ) {
        let mut turn = Turn { now, wall_ms, effects, records: Vec::new() };
        work(self, &mut turn);
        self.record_transitions(&mut turn);
        self.persist_notes(&mut turn);
        self.want_numbers(&mut turn);
    }

    fn dispatch(&mut self, turn: &mut Turn<'_>, event: Event) {
        match event {
            Event::Picture(picture) => self.on_picture(turn, picture),
            Event::PictureFailed { error } => self.on_picture_failed(turn, error),
            Event::Jobs(jobs) => self.on_jobs(turn, &jobs),
            Event::Joined(join) => self.on_joined(turn, join),
            Event::Heartbeat(beat) => self.on_heartbeat(turn, &beat),
            Event::Executor { conn, seq, what } => self.on_report(turn, conn, seq, what),
            Event::ExecutorLost { conn } => self.on_executor_lost(turn, conn),
            Event::Acquire(acquire) => self.on_acquire(turn, acquire),
            Event::Release { call, who, leases } => self.on_release(turn, call, &who, &leases),
            Event::Admin { call, who, command } => self.on_admin(turn, call, who, command),
            Event::Persisted { ticket, result } => self.on_persisted(turn, ticket, result),
            Event::Reconfigured(policy) => self.on_reconfigured(turn, policy),
            Event::Tick => self.on_tick(turn),
        }
    }

    fn on_reconfigured(&mut self, turn: &mut Turn<'_>, policy: Policy) {
        if policy.grant_ttl > self.grant_ttl_max {
            let (new, max) = (policy.grant_ttl, self.grant_ttl_max);
            turn.log(
                true,
                format!(
                    "policy.grant_ttl of {new:?} is cut to {max:?} until the harvester restarts: \
                 what it stored at its start promises that no grant is longer"
                ),
            );
        }
        self.policy = policy;
        for node in self.nodes.values_mut() {
            node.opted_in = node.view.as_ref().is_some_and(|view| self.policy.opts_in(view));
        }
        self.check_names(turn);
        self.reassess(turn);
    }

    fn on_tick(&mut self, turn: &mut Turn<'_>) {
        let ended = self.issuer.tick(turn.now);
        self.record_ended(turn, ended, "");
        self.book.forget(turn.now);
        self.store_again(turn);
        self.keep_watch(turn);
        self.touch_granted();
    }

    /// Leases are over: their slices are free and their end is recorded.
    fn record_ended(&mut self, turn: &mut Turn<'_>, ended: Vec<Ended>, detail: &str) {
        for Ended { lease, node, reason, .. } in ended {
            self.book.ended(lease);
            let (detail, unix_ms) = (detail.to_owned(), turn.wall_ms);
            turn.records.push(Record::LeaseEnded { lease, reason, detail, unix_ms });
            self.touched.insert(node);
        }
    }

    /// Stores what this turn has left to be noted.
    fn persist_notes(&mut self, turn: &mut Turn<'_>) {
        if !turn.records.is_empty() {
            let records = std::mem::take(&mut turn.records);
            self.persist(turn, records, Need::Journal, storing::Then::Nothing);
        }
    }
}
