//! The executor's book: which grant it serves, which leases it admitted, and when each of them ends.
//!
//! Owned by the agent. Every rule is on the executor's own clock, and what the harvester says can be late, doubled or
//! out of order. The one exit for endings is [`Holder::tick`]: call it after every other call and whenever
//! [`Holder::next_deadline`] has come; it names the leases to stop. A lease that was told to stop occupies its cores
//! until [`Holder::gone`], the keeper's word. This book starts and kills nothing itself.

mod over;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use gleaner_proto::ids::{Epoch, LeaseId, NodeName, Term};

use crate::{
    clock::{BootId, Stamp},
    state::{EndReason, Event, State},
    token::{Claims, Expected, NodeDigest, TokenError},
};

use over::Over;

/// Heartbeats whose answers are still taken; older ones would give a grant that has nearly ended anyway.
const BEATS_MAX: usize = 64;

/// Who this executor is, and the site's bound on leases.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    /// The node.
    pub node: NodeDigest,
    /// The boot whose clock all stamps are of.
    pub boot: BootId,
    /// The longest that a lease may be renewed for.
    pub lease_ttl_max: Duration,
}

impl Identity {
    /// Names this executor.
    pub fn new(node: &NodeName, boot: BootId, lease_ttl_max: Duration) -> Self {
        Self { node: NodeDigest::of(node), boot, lease_ttl_max }
    }
}

/// What a heartbeat says; [`Holder::held`], taken at the same moment, goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Its number, which the harvester's grant answers.
    pub seq: u64,
    /// When it was made.
    pub stamp: Stamp,
    /// The grant being served; 0 if none.
    pub epoch: Epoch,
}

/// What the harvester's grant message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrantMessage {
    /// The grant.
    pub epoch: Epoch,
    /// The heartbeat that it answers.
    pub answers_seq: u64,
    /// For how long, from that heartbeat's stamp.
    pub ttl: Duration,
    /// Cores of the node's share.
    pub cores: u32,
    /// Memory of the node's share.
    pub memory_bytes: u64,
}

/// A lease that was admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    /// Its own expiry, which the keeper is told; the keeper knows the grant's end by itself.
    pub expires: Stamp,
    /// For how long it is safe from now, by its own and its grant's end: what the client is told.
    pub safe_for: Duration,
    /// False if the lease was admitted before, and this is another session of it.
    pub first: bool,
}

/// A lease that was renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewed {
    /// Its own expiry now: what harvester and keeper are told.
    pub expires: Stamp,
    /// For how long it is safe from now, by its own and its grant's end: what the client is told.
    pub safe_for: Duration,
}

/// A lease to stop: fence it, kill its worker, tell its clients, then call [`Holder::gone`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop {
    /// The lease.
    pub lease: LeaseId,
    /// Its grant.
    pub epoch: Epoch,
    /// Why.
    pub reason: EndReason,
}

/// Why a registration's answer is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RegisterError {
    /// A harvester that was replaced.
    #[error("harvester of term {offered} was replaced by one of term {seen}: dial the present one")]
    Term {
        /// Its term.
        offered: Term,
        /// The highest seen.
        seen: Term,
    },
    /// An epoch from before.
    #[error(
        "epoch {offered} is older than {seen}, which this executor knows: the answer came late; register again"
    )]
    Epoch {
        /// The epoch offered.
        offered: Epoch,
        /// The newest known.
        seen: Epoch,
    },
}

/// Why a grant message changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// Its epoch was vacated, has ended, or was replaced.
    #[error("grant epoch {0} is over here: the message came late")]
    Over(Epoch),
    /// It answers no heartbeat that is remembered.
    #[error("heartbeat {0} was not sent, or long ago: the grant came late")]
    Beat(u64),
    /// A later heartbeat has been answered already.
    #[error("heartbeat {0} was overtaken by a later answer")]
    Overtaken(u64),
    /// Its time was over when it came.
    #[error("grant epoch {0} had ended before the message came")]
    Late(Epoch),
}

/// Why a token is not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The token is not for here and now.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The lease was released, revoked or killed here.
    #[error("lease {0} has ended on this node: acquire a new one")]
    Over(LeaseId),
    /// What it asks for is still occupied by leases that are ending, or is more than the grant has.
    #[error(
        "lease {lease} wants {cores} cores and {memory_bytes} bytes, and this node's grant has {cores_free} and {memory_free} left: leases are still ending; try again in a moment, or acquire elsewhere"
    )]
    Occupied {
        /// The lease.
        lease: LeaseId,
        /// Cores that it wants.
        cores: u32,
        /// Memory that it wants.
        memory_bytes: u64,
        /// Cores that are free.
        cores_free: u32,
        /// Memory that is free.
        memory_free: u64,
    },
}

/// Why a lease is not renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("lease {0} is not live on this node: it ended or was never attached; acquire a new one")]
pub struct RenewError(pub LeaseId);

#[derive(Debug)]
struct Grant {
    epoch: Epoch,
    state: State,
    /// The stamp of the newest heartbeat that was answered.
    answered: Stamp,
    until: Stamp,
    cores: u32,
    memory_bytes: u64,
}

#[derive(Debug)]
struct Held {
    epoch: Epoch,
    state: State,
    expires: Stamp,
    cores: u32,
    memory_bytes: u64,
    reason: Option<EndReason>,
}

/// The executor's book.
#[derive(Debug)]
pub struct Holder {
    identity: Identity,
    term: Term,
    /// Epochs up to this one are over for good.
    dead: Epoch,
    /// The highest of them that [`Holder::take_vacated`] has handed out.
    reported: Epoch,
    grant: Option<Grant>,
    leases: BTreeMap<LeaseId, Held>,
    over: Over,
    seq: u64,
    beats: VecDeque<(u64, Stamp)>,
    stops: Vec<Stop>,
}

impl Holder {
    /// An empty book: serves nothing.
    pub fn new(identity: Identity) -> Self {
        Self {
            identity,
            term: Term(0),
            dead: Epoch(0),
            reported: Epoch(0),
            grant: None,
            leases: BTreeMap::new(),
            over: Over::default(),
            seq: 0,
            beats: VecDeque::new(),
            stops: Vec::new(),
        }
    }

    /// The epoch to resume when registering, which also says whether anything is left here; 0 if nothing is. Send a
    /// heartbeat right after the registration: only heartbeats are answered by grants.
    pub fn resume_epoch(&mut self, now: Stamp) -> Epoch {
        self.expire(now);
        let serving = self.grant.as_ref().filter(|grant| grant.state == State::Live);
        let occupied = self.leases.values().map(|held| held.epoch).max();
        serving.map(|grant| grant.epoch).max(occupied).unwrap_or(Epoch(0))
    }

    /// The highest term seen, to register with.
    pub fn term(&self) -> Term {
        self.term
    }

    /// The harvester's answer to a registration. Another epoch than the one being served ends everything of the old.
    pub fn registered(
        &mut self,
        now: Stamp,
        epoch: Epoch,
        term: Term,
    ) -> Result<(), RegisterError> {
        if term < self.term {
            return Err(RegisterError::Term { offered: term, seen: self.term });
        }
        self.expire(now);
        let serving = self.grant.as_ref().map_or(Epoch(0), |grant| grant.epoch);
        let seen = serving.max(self.dead);
        if epoch < seen || epoch == Epoch(0) {
            return Err(RegisterError::Epoch { offered: epoch, seen });
        }
        self.term = term;
        if epoch > seen {
            self.adopt(epoch);
        }
        Ok(())
    }

    /// The next heartbeat.
    pub fn heartbeat(&mut self, now: Stamp) -> Beat {
        self.expire(now);
        self.seq += 1;
        if self.beats.len() == BEATS_MAX {
            self.beats.pop_front();
        }
        self.beats.push_back((self.seq, now));
        Beat { seq: self.seq, stamp: now, epoch: self.epoch() }
    }

    /// Every lease that still occupies something, with its own expiry: goes with each heartbeat.
    pub fn held(&self) -> impl Iterator<Item = (LeaseId, Stamp)> {
        self.leases.iter().map(|(lease, held)| (*lease, held.expires))
    }

    /// The grant being served; 0 if none.
    pub fn epoch(&self) -> Epoch {
        self.grant.as_ref().filter(|grant| grant.state == State::Live).map_or(Epoch(0), |g| g.epoch)
    }

    /// A grant message; returns until when the node may be used, which the keeper is told.
    pub fn grant(&mut self, now: Stamp, message: &GrantMessage) -> Result<Stamp, GrantError> {
        self.expire(now);
        let GrantMessage { epoch, answers_seq, ttl, cores, memory_bytes } = *message;
        let serving = self.grant.as_ref().map_or(Epoch(0), |grant| grant.epoch);
        if epoch <= self.dead || epoch < serving {
            return Err(GrantError::Over(epoch));
        }
        let beat = self.beats.iter().find(|(seq, _)| *seq == answers_seq);
        let (_, answered) = *beat.ok_or(GrantError::Beat(answers_seq))?;
        let until = answered.after(ttl);
        if until <= now {
            return Err(GrantError::Late(epoch));
        }
        if epoch > serving {
            self.adopt(epoch);
        }
        let Some(grant) = self.grant.as_mut() else {
            return Err(GrantError::Over(epoch));
        };
        if answered < grant.answered {
            return Err(GrantError::Overtaken(answers_seq));
        }
        let event = if grant.state == State::Reserved { Event::Confirm } else { Event::Renew };
        grant.state.step(event).map_err(|_| GrantError::Over(epoch))?;
        *grant = Grant { epoch, state: grant.state, answered, until, cores, memory_bytes };
        Ok(until)
    }

    /// A client shows claims whose signature [`crate::token::verify_signature`] has checked. Checks the rest: node,
    /// boot, epoch, expiry (of a lease not known yet; a known one counts by its renewals), and room.
    pub fn admit(&mut self, now: Stamp, claims: &Claims) -> Result<Admitted, AdmitError> {
        self.expire(now);
        let lease = claims.lease;
        let known = self.leases.get(&lease);
        let checked_at = if known.is_some() { Stamp(0) } else { now };
        let Identity { node, boot, .. } = self.identity;
        claims.check(&Expected { node, boot, epoch: self.epoch(), now: checked_at })?;
        if let Some(held) = known {
            let live = held.state == State::Live;
            return if live {
                Ok(self.admitted(now, held, false))
            } else {
                Err(AdmitError::Over(lease))
            };
        }
        if self.over.contains(lease) {
            return Err(AdmitError::Over(lease));
        }
        self.check_room(claims)?;
        let Claims { epoch, expires, cores, memory_bytes, .. } = *claims;
        let held = Held { epoch, state: State::Live, expires, cores, memory_bytes, reason: None };
        let admitted = self.admitted(now, &held, true);
        self.leases.insert(lease, held);
        Ok(admitted)
    }

    /// A client renews, within the site's bound. A renewal never shortens a lease.
    pub fn renew(
        &mut self,
        now: Stamp,
        lease: LeaseId,
        ttl: Duration,
    ) -> Result<Renewed, RenewError> {
        self.expire(now);
        let wanted = now.after(ttl.min(self.identity.lease_ttl_max));
        let held = self.leases.get_mut(&lease).ok_or(RenewError(lease))?;
        held.state.step(Event::Renew).map_err(|_| RenewError(lease))?;
        held.expires = held.expires.max(wanted);
        let expires = held.expires;
        let deadline = self.deadline(lease).ok_or(RenewError(lease))?;
        Ok(Renewed { expires, safe_for: deadline.since(now) })
    }

    /// A lease shall end: its client gave it back, the harvester revoked it, its worker failed. False if nothing of it
    /// is here, so that its end can be reported at once; its token is refused from now on either way.
    pub fn end(&mut self, lease: LeaseId, reason: EndReason) -> bool {
        self.over.insert(lease);
        if self.leases.contains_key(&lease) {
            self.stop(lease, reason);
            return true;
        }
        false
    }

    /// The node, or an epoch of it, is vacated: everything of epochs up to this one ends.
    pub fn vacate(&mut self, epoch: Epoch, reason: EndReason) {
        self.dead = self.dead.max(epoch);
        if let Some(grant) = self.grant.as_mut().filter(|grant| grant.epoch <= epoch) {
            grant.state = grant.state.after(Event::End).unwrap_or(grant.state);
        }
        let over: Vec<LeaseId> = self
            .leases
            .iter()
            .filter(|(_, held)| held.epoch <= epoch)
            .map(|(lease, _)| *lease)
            .collect();
        for lease in over {
            self.stop(lease, reason);
        }
    }

    /// The keeper's word: nothing of the lease is left. Returns why it ended, for the report to the harvester; a
    /// lease that nobody had told to end lost its worker.
    pub fn gone(&mut self, lease: LeaseId) -> Option<Stop> {
        let held = self.leases.remove(&lease)?;
        self.over.insert(lease);
        self.stops.retain(|stop| stop.lease != lease);
        Some(Stop {
            lease,
            epoch: held.epoch,
            reason: held.reason.unwrap_or(EndReason::WorkerFailed),
        })
    }

    /// An epoch that is over and of which nothing is left, once: report it to the harvester, which otherwise would go on
    /// granting it. Ask after [`Holder::tick`] and [`Holder::gone`].
    pub fn take_vacated(&mut self) -> Option<Epoch> {
        let left = self.leases.values().any(|held| held.epoch <= self.dead);
        let news = self.dead > self.reported && !left;
        news.then(|| {
            self.reported = self.dead;
            self.dead
        })
    }

    /// Ends what is due and hands out every lease to stop, each once.
    pub fn tick(&mut self, now: Stamp) -> Vec<Stop> {
        self.expire(now);
        std::mem::take(&mut self.stops)
    }

    /// When [`Holder::tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Stamp> {
        if !self.stops.is_empty() {
            return Some(Stamp(0));
        }
        let live = self.leases.values().filter(|held| held.state == State::Live);
        let grant = self.grant.iter().filter(|grant| grant.state == State::Live);
        live.map(|held| held.expires).chain(grant.map(|grant| grant.until)).min()
    }

    /// When a live lease ends unless renewed: the earlier of its own and its grant's end.
    pub fn deadline(&self, lease: LeaseId) -> Option<Stamp> {
        let held = self.leases.get(&lease).filter(|held| held.state == State::Live)?;
        Some(self.end_of(held))
    }

    fn end_of(&self, held: &Held) -> Stamp {
        let grant = self.grant.as_ref().filter(|grant| grant.epoch == held.epoch);
        grant.map_or(Stamp(0), |grant| grant.until.min(held.expires))
    }

    fn admitted(&self, now: Stamp, held: &Held, first: bool) -> Admitted {
        Admitted { expires: held.expires, safe_for: self.end_of(held).since(now), first }
    }

    /// Whether the slice fits beside everything that is not gone, of whatever epoch.
    fn check_room(&self, claims: &Claims) -> Result<(), AdmitError> {
        let (cores, memory) =
            self.grant.as_ref().map_or((0, 0), |grant| (grant.cores, grant.memory_bytes));
        let cores_used: u32 = self.leases.values().map(|held| held.cores).sum();
        let memory_used: u64 = self.leases.values().map(|held| held.memory_bytes).sum();
        let cores_free = cores.saturating_sub(cores_used);
        let memory_free = memory.saturating_sub(memory_used);
        if claims.cores <= cores_free && claims.memory_bytes <= memory_free {
            return Ok(());
        }
        let Claims { lease, cores, memory_bytes, .. } = *claims;
        Err(AdmitError::Occupied { lease, cores, memory_bytes, cores_free, memory_free })
    }

    /// Begins a new epoch: whatever was served before is over.
    fn adopt(&mut self, epoch: Epoch) {
        self.vacate(Epoch(epoch.0 - 1), EndReason::ExecutorLost);
        let state = State::Reserved;
        self.grant = Some(Grant {
            epoch,
            state,
            answered: Stamp(0),
            until: Stamp(0),
            cores: 0,
            memory_bytes: 0,
        });
    }

    /// Ends the grant, or single leases, whose time has come.
    fn expire(&mut self, now: Stamp) {
        let ended =
            self.grant.as_ref().filter(|grant| grant.state == State::Live && grant.until <= now);
        if let Some(epoch) = ended.map(|grant| grant.epoch) {
            self.vacate(epoch, EndReason::GrantEnded);
        }
        let due: Vec<LeaseId> = self
            .leases
            .iter()
            .filter(|(_, held)| held.state == State::Live && held.expires <= now)
            .map(|(lease, _)| *lease)
            .collect();
        for lease in due {
            self.stop(lease, EndReason::Expired);
        }
    }

    /// Takes a live lease to its ending and queues its stop; one that is ending already stays as it is.
    fn stop(&mut self, lease: LeaseId, reason: EndReason) {
        let Some(held) = self.leases.get_mut(&lease).filter(|held| held.state == State::Live)
        else {
            return;
        };
        held.state = held.state.after(Event::End).unwrap_or(held.state);
        held.reason = Some(reason);
        self.over.insert(lease);
        self.stops.push(Stop { lease, epoch: held.epoch, reason });
    }
}
