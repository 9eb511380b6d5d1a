//! Getting leases: the first ones, others' that are shared, and new ones in the place of those that were evicted.

use std::time::{Duration, Instant, SystemTime};

use gleaner_proto::v1::{AcquireRequest, Lease, ReleaseRequest};

use crate::{
    calls::{Calls, State},
    client::Identity,
    dial::attach_control,
    error::{AcquireError, AttachError, CallError, Failure, HarvesterError, JoinError},
    event::{PoolEvent, PoolEventKind},
    local::LocalFunction,
    seat::Seat,
    session::Session,
    share::Share,
    tune::{AVOID_FOR, RELOCATE_BACKOFF, SUCCESSIONS_MAX},
};

/// What a pool remembers of its search for leases.
pub(crate) struct Relocation {
    /// Other pools may be on its leases.
    pub(crate) shared: bool,
    /// The places of leases that it lost, as they are asked for next.
    lost: Vec<Seat>,
    /// Since when it has lost some, and when it asks again.
    since: Option<Instant>,
    next: Instant,
    backoff: Duration,
    avoid: Vec<(String, Instant)>,
    /// Why the last attempt failed.
    why: String,
    /// Calls run in this process from now on.
    pub(crate) local: bool,
}

impl Relocation {
    pub(crate) fn new() -> Self {
        Self {
            shared: false,
            lost: Vec::new(),
            since: None,
            next: Instant::now(),
            backoff: RELOCATE_BACKOFF.0,
            avoid: Vec::new(),
            why: String::new(),
            local: false,
        }
    }

    /// A lease was lost now; its node is avoided for a while unless the lease's own worker was at fault.
    pub(crate) fn lost(&mut self, now: Instant, seat: Seat, node: &str, avoid: bool) {
        self.lost.push(seat.next());
        self.since.get_or_insert(now);
        self.next = now;
        self.backoff = RELOCATE_BACKOFF.0;
        if avoid {
            self.avoid.push((node.to_owned(), now + AVOID_FOR));
        }
    }

    /// When it asks for a lease again, if it has to.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.since.filter(|_| !self.local).map(|_| self.next)
    }

    /// Why the last attempt failed.
    pub(crate) fn why(&self) -> &str {
        &self.why
    }

    fn failed(&mut self, now: Instant, why: String) {
        self.why = why;
        self.next = now + self.backoff;
        self.backoff = (self.backoff * 2).min(RELOCATE_BACKOFF.1);
    }
}

impl Calls {
    /// The pool's first leases: at least the least number asked for, or none.
    pub(crate) fn first_leases(&mut self) -> Result<(), AcquireError> {
        self.request.check()?;
        let (min, max) = (*self.request.nodes.start(), *self.request.nodes.end());
        let began = Instant::now();
        let leases = match Identity::request_id().and_then(|id| self.ask(id, min, max)) {
            Err(HarvesterError::Refused { reason, .. }) if self.request.local_fallback => {
                self.fall_back(reason);
                return Ok(());
            }
            other => other?,
        };
        let leases: Vec<_> =
            leases.into_iter().map(|lease| (Seat::of(lease.lease_id), lease)).collect();
        let refused = self.attach_all(&leases, began);
        let attached = self.live() as u32;
        if let Some((node, why)) = refused.filter(|_| attached < min) {
            let lease_ids = leases.iter().map(|(_, lease)| lease.lease_id).collect();
            self.sessions.clear();
            // They would expire by themselves; this only frees them sooner.
            let _ = self.harvester.release(ReleaseRequest { lease_ids });
            return Err(AcquireError::Attach { attached, needed: min, node, why });
        }
        Ok(())
    }

    /// Attaches to leases that another pool shares: to one at least.
    pub(crate) fn join(&mut self, share: &Share) -> Result<(), JoinError> {
        self.request.check().map_err(|error| JoinError::Request(error.to_string()))?;
        self.relocation.shared = true;
        let refused = self.attach_all(&share.seats, Instant::now());
        match (self.live(), refused) {
            (0, Some((node, why))) => {
                Err(JoinError::Attach { leases: share.seats.len(), node, why })
            }
            (0, None) => Err(JoinError::Nothing),
            _ => Ok(()),
        }
    }

    /// Replaces what was evicted, when it is time to try; ends what waits in vain.
    pub(crate) fn relocate(&mut self, now: Instant) {
        let Some(since) = self.relocation.since.filter(|_| !self.relocation.local) else {
            return;
        };
        if now < self.relocation.next {
            return;
        }
        while let Some(seat) = self.relocation.lost.pop() {
            if let Err((seat, why)) = self.succeed(seat) {
                self.relocation.lost.push(seat);
                self.relocation.failed(Instant::now(), why);
                break;
            }
        }
        if self.relocation.lost.is_empty() {
            self.relocation.since = None;
        }
        if self.live() == 0 && since.elapsed() >= self.request.patience {
            self.give_up();
        }
    }

    /// Waits until there is a lease, or calls run in this process, or it is too late.
    pub(crate) fn await_lease(&mut self, until: Instant) {
        loop {
            let now = Instant::now();
            self.service(now);
            if self.live() > 0 || self.relocation.local || now >= until {
                return;
            }
            let next = self.relocation.next.min(until);
            std::thread::sleep(next.saturating_duration_since(now).max(RELOCATE_BACKOFF.0));
        }
    }

    /// A lease for a place that has lost its own: another pool's that shares the place, if one was quicker. Else which place to ask
    /// for next, and why.
    fn succeed(&mut self, mut seat: Seat) -> Result<(), (Seat, String)> {
        let began = Instant::now();
        let key = self.identity.key.verifying_key();
        for _ in 0..SUCCESSIONS_MAX {
            match self.ask(seat.request_id(&key), 1, 1) {
                Ok(leases) => {
                    let leases: Vec<_> = leases.into_iter().map(|lease| (seat, lease)).collect();
                    return match self.attach_all(&leases, began) {
                        None => Ok(()),
                        Some((_, why)) => Err((seat.next(), why.to_string())),
                    };
                }
                // Others have had that one already, and lost it.
                Err(over) if over.is_over() => seat = seat.next(),
                Err(error) => return Err((seat, error.to_string())),
            }
        }
        Err((seat, "the leases in its place ended as fast as they were asked for".into()))
    }

    fn ask(&mut self, id: Vec<u8>, min: u32, max: u32) -> Result<Vec<Lease>, HarvesterError> {
        let now = Instant::now();
        self.relocation.avoid.retain(|(_, until)| *until > now);
        let request = AcquireRequest {
            request_id: id.into(),
            client_public_key: self.identity.key.verifying_key().to_bytes().to_vec().into(),
            nodes_min: min,
            nodes_max: max,
            avoid_nodes: self.relocation.avoid.iter().map(|(node, _)| node.clone()).collect(),
            ..self.request.wanted()
        };
        Ok(self.harvester.acquire(request)?.leases)
    }

    /// Attaches to every lease and opens the pool's functions there; returns one refusal, if there was any.
    fn attach_all(
        &mut self,
        leases: &[(Seat, Lease)],
        began: Instant,
    ) -> Option<(String, AttachError)> {
        let granted = began.elapsed();
        let mut refused = None;
        for (seat, lease) in leases {
            match self.attach(*seat, lease) {
                Ok(session) => self.welcome(session, granted, began.elapsed()),
                Err(why) => refused = Some((lease.node.clone(), why)),
            }
        }
        refused
    }

    fn attach(&self, seat: Seat, lease: &Lease) -> Result<Session, AttachError> {
        let options = self.harvester.options();
        let mut session = Session::attach(seat, lease, &self.identity.key, &self.request, options)?;
        for function in &self.functions {
            session.open(&function.library, &function.name)?;
        }
        if let Some(renewer) = &self.renewer {
            let (key, transport) = (&self.identity.key, session.transport);
            renewer.add(attach_control(lease, key, &self.request, options, transport)?);
        }
        Ok(session)
    }

    fn welcome(&mut self, session: Session, granted: Duration, took: Duration) {
        let kind = PoolEventKind::Leased { granted, took };
        let (node, lease_id) = (session.lease.node.clone(), session.lease.lease_id);
        self.note(PoolEvent { at: Instant::now(), wall: SystemTime::now(), node, lease_id, kind });
        match self.sessions.iter_mut().find(|place| place.is_none()) {
            Some(place) => *place = Some(session),
            None => self.sessions.push(Some(session)),
        }
    }

    /// No lease came in time: calls run here, or end as what they are by then.
    fn give_up(&mut self) {
        let why = self.relocation.why.clone();
        if self.request.local_fallback {
            self.fall_back(why);
            return;
        }
        for index in 0..self.calls.len() as u32 {
            let call = &mut self.calls[index as usize];
            if matches!(call.state, State::Queued(_)) {
                let never_ran = CallError::Failed(Failure::NoLease { reason: why.clone() });
                let error = call.cut_off.take().map_or(never_ran, |error| *error);
                self.end(index, Err(error));
            }
        }
    }

    /// From now on calls run in this process.
    fn fall_back(&mut self, why: String) {
        self.relocation.local = true;
        let kind = PoolEventKind::FellBack { why };
        let (node, lease_id) = (String::new(), 0);
        self.note(PoolEvent { at: Instant::now(), wall: SystemTime::now(), node, lease_id, kind });
    }

    /// Runs every queued call in this process, if the pool has fallen back.
    pub(crate) fn run_locally(&mut self) {
        while self.relocation.local
            && let Some(index) = self.queue.pop_front()
        {
            let call = &mut self.calls[index as usize];
            let State::Queued(input) = std::mem::replace(&mut call.state, State::Free) else {
                continue;
            };
            let capacity = call.settings.reply_capacity.unwrap_or(self.request.slot_bytes);
            let function = &mut self.functions[call.function as usize];
            let outcome = match function.local.as_mut() {
                Some(local) => local.call(input, capacity),
                None => LocalFunction::open(&function.library, &function.name)
                    .map_err(|message| Failure::Function { code: 0, message })
                    .and_then(|local| function.local.insert(local).call(input, capacity)),
            };
            self.stats.local += 1;
            self.end(index, outcome.map_err(CallError::Failed));
        }
    }
}
