//! What follows once records are stored, or could not be.
//!
//! What has happened is never dropped because a store fails: its records are tried again, in order, until they are
//! stored. What somebody asked for is answered at once, either way.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use gleaner_lease::{
    clock::{Instance, Stamp},
    issuer::Numbers,
};
use gleaner_proto::ids::NodeName;

use super::{Core, Turn, admin, book::RequestKey};
use crate::{
    effect::{Effect, Need, Reply, ToExecutor},
    event::{CallId, Ticket},
    record::Record,
    refusal::Refusal,
};

/// After a failure, so long until the store is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// So many records that could not be stored are kept; beyond, the oldest that nobody waits for go.
const UNSTORED_MAX: usize = 100_000;

/// What to do once a persist effect has its answer.
#[derive(Debug)]
pub(super) enum Then {
    /// Nothing; try again if it failed.
    Nothing,
    /// Lease ids and epochs may be used.
    Numbers { numbers: Numbers, term: bool },
    /// A request's leases are live.
    Leases(RequestKey),
    /// An executor's event is acknowledged; try again if it failed.
    Ack { node: NodeName, instance: Instance, seq: u64 },
    /// A call is answered, whatever the store says: what it asked for has begun, and needs no record to be true.
    Reply { call: CallId, reply: Reply },
    /// A call is answered if it was stored, and refused if not; what it asked for stays in effect.
    ReplyIfStored { call: CallId, reply: Reply },
    /// The same, but what it asked for begins only now.
    Apply { call: CallId, command: admin::Later },
    /// A call is refused, whatever the store says: the attempt is in the audit trail.
    Refuse { call: CallId, refusal: Refusal },
}

#[derive(Debug)]
struct Waiting {
    then: Then,
    /// Kept if they are to be tried again.
    records: Vec<Record>,
}

/// The store's side of the core.
#[derive(Debug, Default)]
pub(super) struct Store {
    next: u64,
    waiting: BTreeMap<Ticket, Waiting>,
    unstored: VecDeque<Waiting>,
    unstored_records: usize,
    /// Whether this harvester's term is stored.
    pub(super) term_stored: bool,
    numbers_asked: bool,
    retry_at: Stamp,
    /// The last failure, until something is stored.
    pub(super) error: Option<String>,
}

impl Store {
    fn ticket(&mut self, then: Then, records: &[Record]) -> Ticket {
        self.next += 1;
        let ticket = Ticket(self.next);
        let again = matches!(then, Then::Nothing | Then::Ack { .. });
        let records = if again { records.to_vec() } else { Vec::new() };
        self.waiting.insert(ticket, Waiting { then, records });
        ticket
    }

    /// Keeps what is to be tried again. True if something had to go for it.
    fn keep(&mut self, waiting: Waiting) -> bool {
        self.unstored_records += waiting.records.len();
        self.unstored.push_back(waiting);
        let mut dropped = false;
        while self.unstored_records > UNSTORED_MAX {
            let oldest = self.unstored.iter().position(|kept| matches!(kept.then, Then::Nothing));
            let Some(kept) = oldest.and_then(|at| self.unstored.remove(at)) else { break };
            self.unstored_records -= kept.records.len();
            dropped = true;
        }
        dropped
    }
}

impl Core {
    pub(super) fn persist(
        &mut self,
        turn: &mut Turn<'_>,
        records: Vec<Record>,
        need: Need,
        then: Then,
    ) {
        let ticket = self.store.ticket(then, &records);
        turn.effects.push(Effect::Persist { ticket, records, need });
    }

    /// Asks for more lease ids and epochs before they run out; the first time together with the term.
    pub(super) fn want_numbers(&mut self, turn: &mut Turn<'_>) {
        if self.store.numbers_asked || turn.now < self.store.retry_at {
            return;
        }
        let Some(numbers) = self.issuer.numbers_wanted() else { return };
        self.store.numbers_asked = true;
        let term = !self.store.term_stored;
        let mut records = Vec::with_capacity(2);
        if term {
            let (term, grant_ttl, unix_ms) = (self.term, self.grant_ttl_max, turn.wall_ms);
            records.push(Record::Term { term, grant_ttl, unix_ms });
        }
        records.push(Record::Numbers(numbers));
        self.persist(turn, records, Need::Store, Then::Numbers { numbers, term });
    }

    /// Tries again what could not be stored.
    pub(super) fn store_again(&mut self, turn: &mut Turn<'_>) {
        if turn.now < self.store.retry_at {
            return;
        }
        self.store.unstored_records = 0;
        for Waiting { then, records } in std::mem::take(&mut self.store.unstored) {
            self.persist(turn, records, Need::Journal, then);
        }
    }

    pub(super) fn on_persisted(
        &mut self,
        turn: &mut Turn<'_>,
        ticket: Ticket,
        result: Result<(), String>,
    ) {
        let Some(Waiting { then, records }) = self.store.waiting.remove(&ticket) else { return };
        self.store.error = result.as_ref().err().cloned();
        if result.is_err() {
            self.store.retry_at = turn.now.after(RETRY_AFTER);
        }
        match then {
            Then::Nothing | Then::Ack { .. } if result.is_err() => {
                if self.store.keep(Waiting { then, records }) {
                    turn.log(true, format!(
                        "more than {UNSTORED_MAX} records could not be stored: the oldest are lost, and reports will miss them"
                    ));
                }
            }
            Then::Nothing => {}
            Then::Numbers { numbers, term } => {
                self.store.numbers_asked = false;
                if result.is_ok() {
                    self.store.term_stored |= term;
                    self.issuer.numbers_reserved(numbers);
                }
            }
            Then::Leases(key) => self.leases_answered(turn, key, result),
            Then::Ack { node, instance, seq } => self.ack(turn, &node, instance, seq),
            Then::Reply { call, reply } => turn.reply(call, Ok(reply)),
            Then::ReplyIfStored { call, reply } => {
                let forgotten = |error| Refusal::Forgotten { error };
                turn.reply(call, result.map(|()| reply).map_err(forgotten));
            }
            Then::Apply { call, command } => match result {
                Ok(()) => self.apply(turn, call, command),
                Err(error) => turn.reply(call, Err(Refusal::NotStored { error })),
            },
            Then::Refuse { call, refusal } => turn.reply(call, Err(refusal)),
        }
    }

    fn ack(&mut self, turn: &mut Turn<'_>, name: &NodeName, instance: Instance, seq: u64) {
        let Some(node) = self.nodes.get_mut(name) else { return };
        let acks = node.inbox.stored(instance, seq);
        let Some(conn) = node.conn() else { return };
        for seq in acks {
            turn.send(conn, name, ToExecutor::Ack { seq });
        }
    }
}
