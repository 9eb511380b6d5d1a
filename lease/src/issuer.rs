//! The harvester's book: which executor serves which grant, and which slice of it each lease holds.
//!
//! Owned by `harvester/core`. Every rule is on the harvester's own clock. A slice that was given out is free again only
//! on the executor's word or after its grant's end plus drift (ADR 2); what is reserved and not yet confirmed counts
//! as given. The book decides and stores nothing: what must be on disk before it counts is said by
//! [`Issuer::numbers_wanted`], and by [`Issuer::reserve`] and [`Issuer::persisted`].
//!
//! ```text
//!   executor_joined ─▶ epoch;  heartbeat, grant, heartbeat, grant ...
//!   reserve ─▶ draft (persist it) ─▶ persisted: reply   or   abandon: refuse
//!   end (released, revoked), vacate ─▶ tell the executor ─▶ lease_ended, vacated, or tick after the grant's end
//! ```

mod join;
mod types;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use gleaner_proto::ids::{Epoch, LeaseId, NodeName, Term};

use crate::{
    clock::{self, Stamp},
    state::{EndReason, Event, State},
    token::{Claims, NodeDigest},
};

pub use types::{
    Beat, Draft, Ended, Free, GrantError, Granted, Join, JoinError, Joined, Lease, LeaseEnding,
    Limits, NodeView, Numbers, PersistedError, Request, ReserveError, Vacating,
};

/// Numbers reserved at once; a restart skips what is left of a batch.
const NUMBERS_BATCH: u64 = 4096;
/// With fewer than this many left, the next batch is wanted.
const NUMBERS_LOW: u64 = NUMBERS_BATCH / 2;

/// The executor that is joined now.
#[derive(Debug, Clone, Copy)]
struct Executor {
    cores: u32,
    memory_bytes: u64,
    seq: u64,
    stamp: Stamp,
    received: Stamp,
}

/// A node's grant, or an older one whose leases have not surely ended.
#[derive(Debug, Clone, Copy)]
struct Grant {
    epoch: Epoch,
    state: State,
    held_until: Stamp,
    cores: u32,
    memory_bytes: u64,
}

#[derive(Debug, Default)]
struct Node {
    /// Boot and instance of the executor that last joined.
    identity: Option<(clock::BootId, clock::Instance)>,
    /// The newest stamp seen of that boot.
    newest_stamp: Stamp,
    executor: Option<Executor>,
    /// Oldest first; the last one is current unless it is ending.
    grants: Vec<Grant>,
    leases: BTreeSet<LeaseId>,
}

/// The harvester's book.
#[derive(Debug)]
pub struct Issuer {
    term: Term,
    limits: Limits,
    /// The next unused numbers.
    next: Numbers,
    /// Numbers below these are reserved on disk.
    reserved: Numbers,
    nodes: BTreeMap<NodeName, Node>,
    leases: BTreeMap<LeaseId, Lease>,
}

impl Issuer {
    /// A book as a harvester starts: what its predecessor had stored as live is held until the longest grant that the
    /// predecessor may have given has surely ended, or its executor resumes, or says otherwise.
    pub fn new(
        now: Stamp,
        term: Term,
        limits: Limits,
        stored: Numbers,
        leases: impl IntoIterator<Item = Lease>,
    ) -> Self {
        let next = Numbers { lease: stored.lease.max(1), epoch: stored.epoch.max(1) };
        let mut issuer = Self {
            term,
            limits,
            next,
            reserved: next,
            nodes: BTreeMap::new(),
            leases: BTreeMap::new(),
        };
        leases.into_iter().for_each(|lease| issuer.restore(now, lease));
        issuer
    }

    fn restore(&mut self, now: Stamp, mut lease: Lease) {
        if lease.state == State::Ended {
            return;
        }
        lease.state = if lease.ending.is_some() { State::Ending } else { State::Live };
        let node = self.nodes.entry(lease.node.clone()).or_default();
        let held_until = clock::held_until(now, self.limits.grant_ttl_max);
        if !node.grants.iter().any(|grant| grant.epoch == lease.epoch) {
            let epoch = lease.epoch;
            node.grants.push(Grant {
                epoch,
                state: State::Live,
                held_until,
                cores: 0,
                memory_bytes: 0,
            });
            node.grants.sort_by_key(|grant| grant.epoch);
            let last = node.grants.len() - 1;
            node.grants[..last].iter_mut().for_each(|grant| grant.state = State::Ending);
        }
        if node.grants.last().is_some_and(|grant| grant.epoch == lease.epoch) {
            node.identity = Some((lease.boot, lease.instance));
        }
        node.leases.insert(lease.id);
        self.leases.insert(lease.id, lease);
    }

    /// The numbers to store before more can be given out, if few are left: then call [`Issuer::numbers_reserved`].
    pub fn numbers_wanted(&self) -> Option<Numbers> {
        let left =
            (self.reserved.lease - self.next.lease).min(self.reserved.epoch - self.next.epoch);
        let batch = |next: u64| next + NUMBERS_BATCH;
        (left < NUMBERS_LOW)
            .then(|| Numbers { lease: batch(self.next.lease), epoch: batch(self.next.epoch) })
    }

    /// These numbers are on disk: a later harvester starts from them.
    pub fn numbers_reserved(&mut self, stored: Numbers) {
        self.reserved.lease = self.reserved.lease.max(stored.lease);
        self.reserved.epoch = self.reserved.epoch.max(stored.epoch);
    }

    /// This harvester's term.
    pub fn term(&self) -> Term {
        self.term
    }

    /// A heartbeat, with every lease that the executor holds at its stamp. Returns the leases that it thereby says to be
    /// over: a token that was not shown before it expired never will be. A late or doubled heartbeat changes nothing.
    pub fn heartbeat(
        &mut self,
        now: Stamp,
        node: &NodeName,
        beat: &Beat,
        held: &[(LeaseId, Stamp)],
    ) -> Vec<Ended> {
        let Some(known) = self.nodes.get_mut(node) else {
            return Vec::new();
        };
        let same = known.identity.is_some_and(|(_, instance)| instance == beat.instance);
        let Some(executor) =
            known.executor.as_mut().filter(|executor| same && beat.stamp > executor.stamp)
        else {
            return Vec::new();
        };
        *executor = Executor { seq: beat.seq, stamp: beat.stamp, received: now, ..*executor };
        known.newest_stamp = known.newest_stamp.max(beat.stamp);
        for (lease, expires) in held {
            self.renewed(node, *lease, *expires);
        }
        let listed: BTreeSet<LeaseId> = held.iter().map(|(lease, _)| *lease).collect();
        let over = self.leases_of(node, |lease| {
            !listed.contains(&lease.id)
                && lease.expires <= beat.stamp
                && lease.state != State::Reserved
        });
        self.finish(over, Event::Gone, EndReason::Expired)
    }

    /// Gives the node's executor, or lengthens, the grant that answers its last heartbeat. Begins a new epoch if the last
    /// one was vacated. `ttl` is cut to [`Limits::grant_ttl_max`], cores and memory to what the executor has.
    pub fn grant(
        &mut self,
        now: Stamp,
        node: &NodeName,
        cores: u32,
        memory_bytes: u64,
        ttl: Duration,
    ) -> Result<Granted, GrantError> {
        let no_executor = || GrantError::NoExecutor(node.clone());
        let known = self.nodes.get(node).ok_or_else(no_executor)?;
        let executor = known.executor.ok_or_else(no_executor)?;
        if executor.seq == 0 {
            return Err(GrantError::NoHeartbeat(node.clone()));
        }
        let usable = |grant: &Grant| grant.state != State::Ending && !grant.lapsed(now);
        let current = known.grants.last().is_some_and(usable);
        if !current {
            self.begin_epoch(node).ok_or(GrantError::Numbers)?;
        }
        let ttl = ttl.min(self.limits.grant_ttl_max);
        let grant = self.nodes.get_mut(node).and_then(|known| known.grants.last_mut());
        let grant = grant.ok_or_else(no_executor)?;
        let event = if grant.state == State::Reserved { Event::Confirm } else { Event::Renew };
        grant.state.step(event).map_err(|_| no_executor())?;
        grant.held_until = grant.held_until.max(clock::held_until(executor.received, ttl));
        grant.cores = cores.min(executor.cores);
        grant.memory_bytes = memory_bytes.min(executor.memory_bytes);
        let Grant { epoch, held_until, cores, memory_bytes, .. } = *grant;
        Ok(Granted { epoch, answers_seq: executor.seq, ttl, cores, memory_bytes, held_until })
    }

    /// Sets a slice aside and drafts its token. Persist the lease, then call [`Issuer::persisted`] or
    /// [`Issuer::abandon`]; the token must not leave the harvester before.
    pub fn reserve(
        &mut self,
        now: Stamp,
        node: &NodeName,
        request: &Request,
    ) -> Result<Draft, ReserveError> {
        let no_grant = || ReserveError::NoGrant(node.clone());
        let known = self.nodes.get(node).ok_or_else(no_grant)?;
        let (executor, (boot, instance)) =
            known.executor.zip(known.identity).ok_or_else(no_grant)?;
        let grant =
            known.grants.last().filter(|grant| grant.state == State::Live && !grant.lapsed(now));
        let grant = grant.ok_or_else(no_grant)?;
        let epoch = grant.epoch;
        let free = self.free(node).ok_or_else(no_grant)?;
        let Request { uid, gid, cores, memory_bytes, ttl, client_key } = *request;
        if cores == 0 || cores > free.cores || memory_bytes > free.memory_bytes {
            let node = node.clone();
            return Err(ReserveError::Room { node, cores, memory_bytes, free });
        }
        let id = take(&mut self.next.lease, self.reserved.lease)
            .map(LeaseId)
            .ok_or(ReserveError::Numbers)?;
        let expires = clock::expiry(executor.stamp, now.since(executor.received), ttl);
        let lease = Lease {
            id,
            node: node.clone(),
            epoch,
            boot,
            instance,
            uid,
            gid,
            cores,
            memory_bytes,
            expires,
            state: State::Reserved,
            ending: None,
        };
        let node = NodeDigest::of(node);
        let term = self.term;
        let claims = Claims {
            lease: id,
            uid,
            gid,
            epoch,
            expires,
            boot,
            memory_bytes,
            cores,
            term,
            client_key,
            node,
        };
        if let Some(known) = self.nodes.get_mut(&lease.node) {
            known.leases.insert(id);
        }
        self.leases.insert(id, lease.clone());
        Ok(Draft { lease, claims })
    }

    /// The reserved lease is on disk: it is live, and its client may be told for how long it is safe from now. Refused
    /// if it was ended meanwhile; then the client must be refused too.
    pub fn persisted(&mut self, now: Stamp, id: LeaseId) -> Result<Duration, PersistedError> {
        let lease = self.leases.get_mut(&id).ok_or(PersistedError(id))?;
        lease.state.step(Event::Confirm).map_err(|_| PersistedError(id))?;
        let lease = &self.leases[&id];
        Ok(self.safe_for(now, lease))
    }

    /// The reserved lease could not be stored: its slice is free at once, since nobody was told.
    pub fn abandon(&mut self, id: LeaseId) {
        let reserved = self.leases.get(&id).is_some_and(|lease| lease.state == State::Reserved);
        if reserved {
            self.finish(vec![id], Event::Abandon, EndReason::Released);
        }
    }

    /// The executor renewed a lease: it ends at `expires` of its clock, or later.
    pub fn renewed(&mut self, node: &NodeName, id: LeaseId, expires: Stamp) {
        if let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.node == *node) {
            lease.expires = lease.expires.max(expires);
        }
    }

    /// A lease shall end: released by its client, or revoked. If its executor must be told, says whom to tell; the slice
    /// stays held until the executor's word. A lease that was only reserved ends at once, and `persisted` will say so.
    pub fn end(&mut self, id: LeaseId, reason: EndReason) -> Option<LeaseEnding> {
        let lease = self.leases.get_mut(&id)?;
        let state = lease.state.step(Event::End).ok()?;
        if state == State::Ended {
            self.finish(vec![id], Event::Gone, reason);
            return None;
        }
        let reason = *lease.ending.get_or_insert(reason);
        Some(LeaseEnding { lease: id, node: lease.node.clone(), reason })
    }

    /// The node shall be vacated: its grant and leases end, and no more of its epoch is issued. Says what to tell the
    /// executor, also when asked again; `None` if nothing is granted there. What is only reserved ends at once.
    pub fn vacate(&mut self, node: &NodeName, reason: EndReason) -> Option<Vacating> {
        let known = self.nodes.get_mut(node)?;
        let grant = known.grants.last_mut()?;
        let state = grant.state.step(Event::End).ok()?;
        let epoch = grant.epoch;
        if state == State::Ended {
            known.grants.pop();
        }
        let leases = self.leases_of(node, |lease| lease.epoch <= epoch);
        leases.iter().for_each(|id| {
            self.end(*id, reason);
        });
        (state == State::Ending).then_some(Vacating { epoch, leases })
    }

    /// The executor's word: nothing of this lease is left, for this reason unless the harvester had asked for its end.
    pub fn lease_ended(
        &mut self,
        node: &NodeName,
        id: LeaseId,
        reason: EndReason,
    ) -> Option<Ended> {
        let ours = self.leases.get(&id).is_some_and(|lease| lease.node == *node);
        if !ours {
            return None;
        }
        self.finish(vec![id], Event::Gone, reason).pop()
    }

    /// The executor's word: nothing of epochs up to this one is left, and nothing of them begins again.
    pub fn vacated(&mut self, node: &NodeName, epoch: Epoch, reason: EndReason) -> Vec<Ended> {
        if let Some(known) = self.nodes.get_mut(node) {
            known.grants.retain(|grant| grant.epoch > epoch);
        }
        let over = self.leases_of(node, |lease| lease.epoch <= epoch);
        self.finish(over, Event::Gone, reason)
    }

    /// The stream on which the executor joined last is gone; the loss of an older one is none. Nothing is free yet; nothing more is given until it joins again.
    pub fn executor_lost(&mut self, node: &NodeName) {
        if let Some(known) = self.nodes.get_mut(node) {
            known.executor = None;
        }
    }

    /// Ends the grants, with their leases, whose end on their executor has surely passed.
    pub fn tick(&mut self, now: Stamp) -> Vec<Ended> {
        let due = |node: &Node| node.grants.iter().any(|grant| grant.lapsed(now));
        let due: Vec<NodeName> =
            self.nodes.iter().filter(|(_, node)| due(node)).map(|(name, _)| name.clone()).collect();
        due.iter().flat_map(|node| self.lapse(now, node)).collect()
    }

    /// When [`Issuer::tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Stamp> {
        let grants = self.nodes.values().flat_map(|node| &node.grants);
        grants.filter(|grant| grant.state != State::Reserved).map(|grant| grant.held_until).min()
    }

    /// What a new lease can get on the node now: the grant less everything that is not surely gone, of whatever epoch.
    /// `None` without a joined executor and a live grant.
    pub fn free(&self, node: &NodeName) -> Option<Free> {
        let known = self.nodes.get(node)?;
        known.executor?;
        let grant = known.grants.last().filter(|grant| grant.state == State::Live)?;
        let leases = || known.leases.iter().filter_map(|id| self.leases.get(id));
        let cores_used: u32 = leases().map(|lease| lease.cores).sum();
        let memory_used: u64 = leases().map(|lease| lease.memory_bytes).sum();
        Some(Free {
            cores: grant.cores.saturating_sub(cores_used),
            memory_bytes: grant.memory_bytes.saturating_sub(memory_used),
        })
    }

    /// A lease that is not over.
    pub fn lease(&self, id: LeaseId) -> Option<&Lease> {
        self.leases.get(&id)
    }

    /// Every lease that is not over.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    /// What the book says of a node that it knows.
    pub fn node(&self, node: &NodeName) -> Option<NodeView> {
        let known = self.nodes.get(node)?;
        let grant = known.grants.last();
        Some(NodeView {
            joined: known.executor.is_some(),
            state: grant.map_or(State::Ended, |grant| grant.state),
            epoch: grant.map_or(Epoch(0), |grant| grant.epoch),
            held_until: known.grants.iter().map(|grant| grant.held_until).max(),
            cores: grant.map_or(0, |grant| grant.cores),
            memory_bytes: grant.map_or(0, |grant| grant.memory_bytes),
            leases: known.leases.len(),
        })
    }

    /// For how long a lease is safe from now, as far as the harvester knows: short of both its ends by the drift.
    pub fn safe_for(&self, now: Stamp, lease: &Lease) -> Duration {
        let known = self.nodes.get(&lease.node);
        let Some(executor) = known.and_then(|known| known.executor) else {
            return Duration::ZERO;
        };
        let grant =
            known.and_then(|known| known.grants.iter().find(|grant| grant.epoch == lease.epoch));
        let grant_left = grant.map_or(Duration::ZERO, |grant| grant.held_until.since(now));
        let grant_left = clock::at_least(grant_left.saturating_sub(clock::DRIFT_BASE));
        let executor_now = executor.stamp.after(clock::at_most(now.since(executor.received)));
        grant_left.min(lease.expires.since(executor_now))
    }

    /// The node's leases that `which` picks.
    fn leases_of(&self, node: &NodeName, which: impl Fn(&Lease) -> bool) -> Vec<LeaseId> {
        let Some(known) = self.nodes.get(node) else {
            return Vec::new();
        };
        let leases = known.leases.iter().filter_map(|id| self.leases.get(id));
        leases.filter(|lease| which(lease)).map(|lease| lease.id).collect()
    }

    /// Takes leases to their end and out of the book. The reason that was first given stands.
    fn finish(&mut self, ids: Vec<LeaseId>, event: Event, reason: EndReason) -> Vec<Ended> {
        let mut ended = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(lease) = self.leases.get(&id) else {
                continue;
            };
            if lease.state.after(event) != Ok(State::Ended) {
                continue;
            }
            let Some(lease) = self.leases.remove(&id) else {
                continue;
            };
            if let Some(known) = self.nodes.get_mut(&lease.node) {
                known.leases.remove(&id);
                let empty = |epoch: Epoch| {
                    !known
                        .leases
                        .iter()
                        .any(|id| self.leases.get(id).is_some_and(|l| l.epoch == epoch))
                };
                let last = known.grants.last().map(|grant| grant.epoch);
                known.grants.retain(|grant| Some(grant.epoch) == last || !empty(grant.epoch));
            }
            let reason = lease.ending.unwrap_or(reason);
            ended.push(Ended { lease: id, node: lease.node, epoch: lease.epoch, reason });
        }
        ended
    }

    /// Ends the node's grants whose end has surely passed.
    fn lapse(&mut self, now: Stamp, node: &NodeName) -> Vec<Ended> {
        let Some(known) = self.nodes.get_mut(node) else {
            return Vec::new();
        };
        let lapsed: BTreeSet<Epoch> = known
            .grants
            .iter()
            .filter(|grant| grant.lapsed(now))
            .map(|grant| grant.epoch)
            .collect();
        known.grants.retain(|grant| !lapsed.contains(&grant.epoch));
        let over = self.leases_of(node, |lease| lapsed.contains(&lease.epoch));
        self.finish(over, Event::Lapse, EndReason::ExecutorLost)
    }

    /// A new epoch for the node; older grants end. `None` if no number is left.
    fn begin_epoch(&mut self, node: &NodeName) -> Option<Epoch> {
        let epoch = take(&mut self.next.epoch, self.reserved.epoch).map(Epoch)?;
        self.end_grants(node);
        let known = self.nodes.get_mut(node)?;
        let state = State::Reserved;
        known.grants.push(Grant { epoch, state, held_until: Stamp(0), cores: 0, memory_bytes: 0 });
        Some(epoch)
    }

    /// Ends every grant of the node, and keeps those that still have leases.
    fn end_grants(&mut self, node: &NodeName) {
        let Some(known) = self.nodes.get(node) else {
            return;
        };
        let grants: Vec<Epoch> = known.grants.iter().map(|grant| grant.epoch).collect();
        for id in self.leases_of(node, |lease| grants.contains(&lease.epoch)) {
            self.end(id, EndReason::ExecutorLost);
        }
        let left: BTreeSet<Epoch> =
            self.leases_of(node, |_| true).iter().map(|id| self.leases[id].epoch).collect();
        let Some(known) = self.nodes.get_mut(node) else {
            return;
        };
        known.grants.retain_mut(|grant| {
            grant.state = grant.state.after(Event::End).unwrap_or(grant.state);
            grant.state.occupies() && left.contains(&grant.epoch)
        });
    }
}

impl Grant {
    fn lapsed(&self, now: Stamp) -> bool {
        self.state != State::Reserved && now >= self.held_until
    }
}

/// The next number below what is reserved on disk.
fn take(next: &mut u64, reserved: u64) -> Option<u64> {
    (*next < reserved).then(|| {
        *next += 1;
        *next - 1
    })
}
