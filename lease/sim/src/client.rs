//! A client: acquires, attaches, renews, calls, and after a session's end decides with `call::Known` what becomes of each call.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use gleaner_lease::{
    call::{Known, Next},
    clock::{self, Stamp},
    token::Claims,
};

use crate::{
    Sabotage,
    check::Outcome,
    message::{CallState, Input, Who},
    world::{Event, World, ms},
};

/// Calls that a session may have outstanding.
const WINDOW: usize = 3;
const LEASE_TTL: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_millis(700);

#[derive(Debug)]
struct Session {
    id: usize,
    claims: Claims,
    asked: Stamp,
    attached: bool,
    safe_until: Stamp,
    renew_asked: Option<Stamp>,
    outstanding: BTreeMap<usize, bool>,
}

#[derive(Debug)]
enum Phase {
    Idle { until: Stamp },
    Acquiring { request: u64, asked: Stamp, tries: u32 },
    Holding(Session),
}

/// A client's process.
#[derive(Debug)]
pub(crate) struct Client {
    index: usize,
    life: u32,
    requests: u64,
    phase: Phase,
    todo: VecDeque<usize>,
    /// Tokens of the past, which a thief would show again.
    old: Vec<(usize, Claims)>,
}

impl World {
    /// A client's program makes a few calls.
    pub(crate) fn new_call(&mut self, client: usize) {
        if self.calm() {
            return;
        }
        self.after(50, 1200, Event::NewCall(client));
        let burst = if self.is_up(Who::Client(client)) { self.rng.u32(1..5) } else { 0 };
        for _ in 0..burst {
            let idempotent = self.rng.bool();
            let call = self.ledger.called(client, idempotent);
            self.stats.calls += 1;
            self.pipe(Who::Client(client), Input::NewCall { call });
        }
    }
}

impl Client {
    pub(crate) fn start(index: usize, life: u32) -> Self {
        let phase = Phase::Idle { until: Stamp(0) };
        Self { index, life, requests: 0, phase, todo: VecDeque::new(), old: Vec::new() }
    }

    pub(crate) fn next_wake(&self) -> Option<Stamp> {
        match &self.phase {
            Phase::Idle { until } => (!self.todo.is_empty()).then_some(*until),
            Phase::Acquiring { asked, .. } => Some(asked.after(PATIENCE)),
            Phase::Holding(session) => Some(session.over_at().min(session.renew_at())),
        }
    }

    pub(crate) fn on(&mut self, world: &mut World, input: Option<Input>) {
        let now = world.clock(Who::Client(self.index));
        if let Some(input) = input {
            self.input(world, now, input);
        }
        self.turn(world, now);
        self.fill(world);
    }

    /// Moves on where the time has come.
    fn turn(&mut self, world: &mut World, now: Stamp) {
        match &mut self.phase {
            Phase::Idle { until } if now >= *until && !self.todo.is_empty() => {
                self.requests += 1;
                let request =
                    (self.index as u64) << 48 | u64::from(self.life) << 32 | self.requests;
                self.acquire(world, now, request, 0);
            }
            Phase::Acquiring { request, asked, tries } if now >= asked.after(PATIENCE) => {
                let (request, tries) = (*request, *tries + 1);
                if tries > 4 {
                    self.rest(now, 200)
                } else {
                    self.acquire(world, now, request, tries)
                }
            }
            Phase::Holding(session) if now >= session.over_at() => self.over(world, now, None),
            Phase::Holding(session)
                if now >= session.renew_at()
                    && session.outstanding.is_empty()
                    && self.todo.is_empty() =>
            {
                self.give_back(world, now);
            }
            Phase::Holding(session) if now >= session.renew_at() => {
                session.renew_asked = Some(now);
                let renew = Input::Renew {
                    session: session.id,
                    lease: session.claims.lease,
                    ttl: LEASE_TTL,
                };
                let id = session.id;
                world.send_agent(id, renew);
            }
            _ => {}
        }
    }

    fn acquire(&mut self, world: &mut World, now: Stamp, request: u64, tries: u32) {
        self.phase = Phase::Acquiring { request, asked: now, tries };
        let cores = 1 + (request % 2) as u32;
        let acquire = Input::Acquire { client: self.index, request, cores, ttl: LEASE_TTL };
        world.send(None, Who::Harvester, acquire);
    }

    fn rest(&mut self, now: Stamp, for_ms: u64) {
        self.phase = Phase::Idle { until: now.after(ms(for_ms)) };
    }

    fn input(&mut self, world: &mut World, now: Stamp, input: Input) {
        match input {
            Input::NewCall { call } => self.todo.push_back(call),
            Input::Leased { request, node, claims } => {
                self.leased(world, now, request, node, claims)
            }
            Input::Refused { request } => {
                if matches!(&self.phase, Phase::Acquiring { request: mine, .. } if *mine == request)
                {
                    self.rest(now, 120);
                }
            }
            Input::Attached { session, safe_for } | Input::Renewed { session, safe_for } => {
                if let Some(mine) = self.session(session) {
                    let asked = mine.renew_asked.take().unwrap_or(mine.asked);
                    mine.attached = true;
                    mine.safe_until = mine.safe_until.max(clock::safe_until(asked, safe_for));
                }
            }
            Input::AttachRefused { session } | Input::SessionCut { session }
                if self.session(session).is_some() =>
            {
                self.over(world, now, None);
            }
            Input::Evicted { session, verdicts } if self.session(session).is_some() => {
                self.over(world, now, Some(&verdicts));
            }
            Input::Reply { session, call } => {
                let mine = self.session(session).and_then(|mine| mine.outstanding.remove(&call));
                if mine.is_some() {
                    world.call_ends(call, Outcome::Ok);
                }
                self.maybe_release(world, now);
            }
            Input::Stale { session, call }
                if self
                    .session(session)
                    .and_then(|mine| mine.outstanding.remove(&call))
                    .is_some() =>
            {
                self.decide(world, call, Known::NotArrived);
            }
            _ => {}
        }
    }

    fn session(&mut self, id: usize) -> Option<&mut Session> {
        match &mut self.phase {
            Phase::Holding(session) if session.id == id => Some(session),
            _ => None,
        }
    }

    fn leased(&mut self, world: &mut World, now: Stamp, request: u64, node: usize, claims: Claims) {
        if !matches!(&self.phase, Phase::Acquiring { request: mine, .. } if *mine == request) {
            return;
        }
        let replay = !self.old.is_empty() && world.chance(15);
        if replay {
            // What a thief does: the token of a lease that is over is shown again.
            let (node, claims) = self.old[world.rng.usize(0..self.old.len())];
            let id = world.open_session(self.index, node);
            world.send_agent(id, Input::Attach { session: id, claims });
            return self.hold(now, id, claims);
        }
        self.old.push((node, claims));
        let id = world.open_session(self.index, node);
        world.send_agent(id, Input::Attach { session: id, claims });
        self.hold(now, id, claims);
    }

    fn hold(&mut self, now: Stamp, id: usize, claims: Claims) {
        self.phase = Phase::Holding(Session {
            id,
            claims,
            asked: now,
            attached: false,
            safe_until: Stamp(0),
            renew_asked: None,
            outstanding: BTreeMap::new(),
        });
    }

    /// Sends what the window leaves room for.
    fn fill(&mut self, world: &mut World) {
        let Phase::Holding(session) = &mut self.phase else { return };
        while session.attached && session.outstanding.len() < WINDOW {
            let Some(call) = self.todo.pop_front() else { return };
            session.outstanding.insert(call, true);
            world.send_call(session.id, session.claims.lease, call);
        }
    }

    /// Gives the lease back, sometimes, once nothing is left to do.
    fn maybe_release(&mut self, world: &mut World, now: Stamp) {
        let Phase::Holding(session) = &self.phase else { return };
        if self.todo.is_empty() && session.outstanding.is_empty() && world.chance(40) {
            self.give_back(world, now);
        }
    }

    /// Gives the lease back by either of the two ways, or just lets it expire.
    fn give_back(&mut self, world: &mut World, now: Stamp) {
        let Phase::Holding(session) = &self.phase else { return };
        let (id, lease) = (session.id, session.claims.lease);
        match world.rng.u32(0..5) {
            0..2 => world.send_agent(id, Input::Detach { session: id, lease }),
            2..4 => world.send(None, Who::Harvester, Input::Release { lease }),
            _ => {}
        }
        self.rest(now, 20);
    }

    /// The session is over, with the executor's last word or without one: every call's fate is decided.
    fn over(&mut self, world: &mut World, now: Stamp, word: Option<&[(usize, CallState)]>) {
        let phase = std::mem::replace(&mut self.phase, Phase::Idle { until: now.after(ms(30)) });
        let Phase::Holding(session) = phase else { return };
        for call in session.outstanding.into_keys() {
            let known = match word {
                None => Known::Nothing,
                Some(verdicts) => match verdicts.iter().find(|(of, _)| *of == call) {
                    None => Known::NotArrived,
                    Some((_, CallState::NotStarted)) => Known::NotStarted,
                    Some((_, CallState::Started)) => Known::Started,
                    Some((_, CallState::Finished)) => Known::Finished,
                    Some((_, CallState::Faulted)) => Known::Faulted,
                },
            };
            self.decide(world, call, known);
        }
    }

    fn decide(&mut self, world: &mut World, call: usize, known: Known) {
        let idempotent =
            world.ledger.is_idempotent(call) || world.sabotaged(Sabotage::ClientRerunsStarted);
        match known.then(idempotent) {
            Next::RunAgain => {
                world.stats.run_again += 1;
                self.todo.push_front(call);
            }
            Next::Failed => world.call_ends(call, Outcome::Failed),
            Next::Evicted => world.call_ends(call, Outcome::Evicted),
            Next::Unknown => world.call_ends(call, Outcome::Unknown),
        }
    }
}

impl Session {
    /// When to give up: no answer to the attach, or the lease is not safe any more.
    fn over_at(&self) -> Stamp {
        if self.attached { self.safe_until } else { self.asked.after(PATIENCE) }
    }

    /// When to renew: at a third of what is left, or again after a while without an answer.
    fn renew_at(&self) -> Stamp {
        if !self.attached {
            return Stamp(u64::MAX);
        }
        let again = self.renew_asked.map(|asked| asked.after(LEASE_TTL / 3));
        again
            .unwrap_or(Stamp(self.safe_until.0.saturating_sub(LEASE_TTL.as_nanos() as u64 * 2 / 3)))
    }
}
