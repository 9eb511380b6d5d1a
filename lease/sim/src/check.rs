//! The invariants I1 to I7, looked at after every event with true time and with what no role can know.
//!
//! The ledger is the truth beside the books: what was issued, granted, renewed, started, finished and told. It is kept
//! apart from the code that it checks: an end is counted here from the heartbeat's own stamp, not from a book's answer.

use std::{collections::BTreeMap, time::Duration};

use gleaner_lease::{clock::Stamp, token::Claims};
use gleaner_proto::ids::{Epoch, LeaseId};

use crate::{
    Stats, Violation,
    message::Who,
    node::{CORES, HOOK_BOUND},
    world::{MS, NODES, Ns, World},
};

/// How long a running keeper may take to kill what is due: its timer's lateness and the death itself.
const KILL_NS: Ns = 6 * MS;

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    Failed,
    Evicted,
    Unknown,
}

#[derive(Debug)]
struct Call {
    client: usize,
    idempotent: bool,
    started: u32,
    finished: u32,
    faulted: bool,
    outcome: Option<Outcome>,
    /// Its caller was killed: nobody is left to be told.
    orphan: bool,
}

#[derive(Debug)]
struct LeaseTruth {
    node: usize,
    epoch: Epoch,
    request: u64,
    expires: Stamp,
    /// How long its worker really was there, once it is gone, and with how many cores.
    lived: Option<(Duration, u32)>,
    accounted: bool,
}

/// What really happened.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    calls: Vec<Call>,
    leases: BTreeMap<LeaseId, LeaseTruth>,
    /// The last end of each grant, on its executor's clock.
    grants: BTreeMap<(usize, Epoch), Stamp>,
    /// Epochs up to this one are dead on the node, because it was fenced or serves a newer one.
    serving: [Epoch; NODES],
    fenced: [Epoch; NODES],
    broken: Option<(&'static str, String)>,
}

impl Ledger {
    fn broke(&mut self, invariant: &'static str, what: String) {
        self.broken.get_or_insert((invariant, what));
    }

    /// A token leaves the harvester.
    pub(crate) fn issued(&mut self, claims: &Claims, node: usize, request: u64) {
        let truth = LeaseTruth {
            node,
            epoch: claims.epoch,
            request,
            expires: claims.expires,
            lived: None,
            accounted: false,
        };
        let known = self.leases.entry(claims.lease).or_insert(truth);
        if known.request != request {
            let what = format!(
                "lease {} was issued for requests {} and {request}",
                claims.lease, known.request
            );
            self.broke("I1", what);
        }
    }

    /// The executor took a grant, which ends at `until` of its clock.
    pub(crate) fn granted(&mut self, node: usize, epoch: Epoch, until: Stamp) {
        self.grants.insert((node, epoch), until);
        self.serving[node] = self.serving[node].max(epoch);
    }

    /// The executor renewed a lease.
    pub(crate) fn renewed(&mut self, lease: LeaseId, expires: Stamp) {
        if let Some(truth) = self.leases.get_mut(&lease) {
            truth.expires = truth.expires.max(expires);
        }
    }

    /// A prolog fenced what the node serves.
    pub(crate) fn fenced(&mut self, node: usize) {
        self.fenced[node] = self.serving[node];
    }

    /// A lease's worker is gone.
    pub(crate) fn worker_gone(&mut self, lease: LeaseId, lived: Duration, cores: u32) {
        if let Some(truth) = self.leases.get_mut(&lease) {
            truth.lived = Some((lived, cores));
        }
    }

    /// A client's program makes a call.
    pub(crate) fn called(&mut self, client: usize, idempotent: bool) -> usize {
        let (started, finished, faulted, outcome, orphan) = (0, 0, false, None, false);
        self.calls.push(Call { client, idempotent, started, finished, faulted, outcome, orphan });
        self.calls.len() - 1
    }

    pub(crate) fn is_idempotent(&self, call: usize) -> bool {
        self.calls[call].idempotent
    }

    /// The call's function returned.
    pub(crate) fn finished(&mut self, call: usize) {
        self.calls[call].finished += 1;
    }

    /// The call's function brought its worker down.
    pub(crate) fn faulted(&mut self, call: usize) {
        self.calls[call].faulted = true;
    }

    /// A client is gone; its calls need no end.
    pub(crate) fn client_died(&mut self, client: usize) {
        self.calls
            .iter_mut()
            .filter(|call| call.client == client)
            .for_each(|call| call.orphan = true);
    }
}

impl World {
    /// A worker begins a call: I4 and half of I5.
    pub(crate) fn call_started(&mut self, node: usize, lease: LeaseId, call: usize) {
        let ledger = &mut self.ledger;
        let epoch = ledger.leases.get(&lease).map_or(Epoch(0), |lease| lease.epoch);
        if epoch <= ledger.fenced[node] || epoch < ledger.serving[node] {
            let (fenced, serving) = (ledger.fenced[node], ledger.serving[node]);
            ledger.broke("I4", format!("call {call} began under epoch {epoch} on n{node}, which serves {serving} and fenced {fenced}"));
        }
        ledger.calls[call].started += 1;
        if ledger.calls[call].started > 1 && !ledger.calls[call].idempotent {
            ledger.broke("I5", format!("call {call} began twice, and is not idempotent"));
        }
    }

    /// A client is told how its call ended: the other half of I5.
    pub(crate) fn call_ends(&mut self, call: usize, outcome: Outcome) {
        let truth = &mut self.ledger.calls[call];
        let possible = match outcome {
            Outcome::Ok => truth.finished > 0,
            Outcome::Failed => truth.faulted,
            Outcome::Evicted => truth.started > 0,
            Outcome::Unknown => true,
        };
        if let Some(first) = truth.outcome.replace(outcome) {
            self.ledger.broke("I5", format!("call {call} ended as {first:?} and as {outcome:?}"));
        } else if !possible {
            self.ledger
                .broke("I5", format!("call {call} ended as {outcome:?}, which did not happen"));
        }
        self.stats.ended[outcome as usize] += 1;
    }

    /// The harvester accounts a lease's time: I6.
    pub(crate) fn account(&mut self, lease: LeaseId, allocated: Duration, executing: Duration) {
        let Some(truth) = self.ledger.leases.get_mut(&lease) else { return };
        let (lived, cores) = truth.lived.unwrap_or_default();
        truth.accounted = true;
        if allocated > lived || executing > lived * cores {
            let what = format!(
                "lease {lease} lived {lived:?} on {cores} cores; accounted are {allocated:?}, executing {executing:?}"
            );
            self.ledger.broke("I6", what);
        }
    }

    /// Looks at everything after an event.
    pub(crate) fn check_step(&mut self) -> Option<Violation> {
        for node in 0..NODES {
            self.check_slots(node);
            self.check_ends(node);
            self.check_job(node);
        }
        let (invariant, what) = self.ledger.broken.take()?;
        Some(Violation { invariant, what, at_ms: self.now / MS })
    }

    /// I1: no core has two holders, and none is free in the harvester's book while a worker is on it.
    fn check_slots(&mut self, node: usize) {
        let workers = &self.nodes[node].workers;
        let cores: u32 = workers.values().map(|worker| worker.cores).sum();
        if cores > CORES {
            self.ledger
                .broke("I1", format!("{cores} cores are in use on n{node}, which has {CORES}"));
        }
        let (Some(harvester), true) = (&self.harvester, self.keeper_kills(node)) else { return };
        let free = workers.keys().find(|lease| harvester.issuer.lease(**lease).is_none());
        if let Some(lease) = free {
            self.ledger.broke("I1", format!("the harvester gave out lease {lease}'s slice of n{node} while its worker is there"));
        }
    }

    /// I2: nothing is there after its lease's end, unless the keeper could not act; and then no batch job is (I3).
    fn check_ends(&mut self, node: usize) {
        if !self.keeper_kills(node) {
            return;
        }
        let now = self.node_clock(node);
        let ends = self.nodes[node].workers.keys().filter_map(|lease| {
            let truth = self.ledger.leases.get(lease)?;
            let grant = self.ledger.grants.get(&(truth.node, truth.epoch))?;
            Some((*lease, truth.expires.min(*grant)))
        });
        let late = ends.into_iter().find(|(_, end)| now > end.after(Duration::from_nanos(KILL_NS)));
        if let Some((lease, end)) = late {
            self.ledger.broke(
                "I2",
                format!(
                    "lease {lease} on n{node} ended at {end}, and its worker is there at {now}"
                ),
            );
        }
    }

    /// Whether the keeper has been up for long enough to have killed whatever was due.
    fn keeper_kills(&self, node: usize) -> bool {
        let keeper = self.process(Who::Keeper(node));
        self.is_up(Who::Keeper(node)) && self.now > keeper.since + KILL_NS
    }

    /// I3 and I7: a batch job starts on an empty node, and within the hook's bound.
    fn check_job(&mut self, node: usize) {
        let Some(job) = &self.nodes[node].job else { return };
        let (id, waited) = (job.id, self.now - job.hook_started);
        if !job.running && waited > HOOK_BOUND {
            self.ledger
                .broke("I7", format!("job {id} on n{node} has waited {} ms for us", waited / MS));
        } else if job.running
            && let Some((lease, _)) = self.nodes[node].workers.first_key_value()
        {
            let what = format!("job {id} runs on n{node} beside the worker of lease {lease}");
            self.ledger.broke("I3", what);
        }
    }

    /// At the end, every call whose caller lives has had its one outcome.
    pub(crate) fn check_end(self) -> Result<Stats, Violation> {
        let open = self.ledger.calls.iter().position(|call| call.outcome.is_none() && !call.orphan);
        match open {
            None => Ok(self.stats),
            Some(call) => Err(Violation {
                invariant: "I5",
                what: format!("call {call} never ended, though nothing has gone wrong for long"),
                at_ms: self.now / MS,
            }),
        }
    }
}
