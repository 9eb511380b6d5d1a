//! The agent: a `Holder`, its stream to the harvester, its clients' sessions, and the board of call states.

use std::{collections::BTreeMap, time::Duration};

use gleaner_lease::{
    clock::{Instance, Stamp},
    holder::{GrantMessage, Holder, Identity},
    issuer::Join,
    state::EndReason,
    token::Claims,
};
use gleaner_proto::ids::{Epoch, LeaseId};

use crate::{
    Sabotage,
    message::{CallState, Input, Report, Who},
    node::{CORES, MEMORY},
    world::{Event, World, ms, node_name},
};

const HEARTBEAT_MS: u64 = 400;
const SILENCE_MS: u64 = 1300;
/// The longest lease without a renewal.
pub(crate) const LEASE_TTL_MAX: Duration = Duration::from_millis(3000);

/// The agent's process.
pub(crate) struct Agent {
    node: usize,
    instance: Instance,
    pub(crate) holder: Holder,
    conn: u64,
    registered: bool,
    heard: Stamp,
    next_beat: Stamp,
    events: BTreeMap<u64, Report>,
    next_event: u64,
    /// Session to lease.
    sessions: BTreeMap<usize, LeaseId>,
    started: BTreeMap<LeaseId, bool>,
    hold: Option<u32>,
}

impl World {
    pub(crate) fn start_agent(&mut self, node: usize, life: u32) {
        let who = Who::Agent(node);
        let now = self.clock(who);
        let instance = Instance(self.bytes());
        let identity = Identity::new(&node_name(node), self.nodes[node].boot, LEASE_TTL_MAX);
        let hold = self.nodes[node].hold_file;
        self.nodes[node].board.clear();
        self.nodes[node].agent = Some(Agent {
            node,
            instance,
            holder: Holder::new(identity),
            conn: u64::from(life) << 32,
            registered: false,
            heard: now,
            next_beat: now,
            events: BTreeMap::new(),
            next_event: 0,
            sessions: BTreeMap::new(),
            started: BTreeMap::new(),
            hold,
        });
    }

    /// The agent is gone: the keeper, its parent, learns it.
    pub(crate) fn agent_died(&mut self, node: usize) {
        self.nodes[node].agent = None;
        self.nodes[node].board_epoch = Epoch(0);
        self.pipe(Who::Keeper(node), Input::AgentDied);
    }
}

impl Agent {
    pub(crate) fn next_wake(&self) -> Option<Stamp> {
        self.holder.next_deadline().into_iter().chain([self.next_beat]).min()
    }

    pub(crate) fn on(&mut self, world: &mut World, input: Option<Input>) {
        let now = world.clock(Who::Agent(self.node));
        if now >= self.next_beat {
            self.beat(world, now);
        }
        if let Some(input) = input {
            self.input(world, now, input);
        }
        for stop in self.holder.tick(now) {
            world.pipe(Who::Keeper(self.node), Input::StopWorker { lease: stop.lease });
        }
        world.nodes[self.node].board_epoch = self.holder.epoch();
        if let Some(epoch) = self.holder.take_vacated() {
            self.report(world, Report::Vacated { epoch });
        }
    }

    fn to_harvester(&self, world: &mut World, input: Input) {
        world.send(Some(self.node), Who::Harvester, input);
    }

    fn beat(&mut self, world: &mut World, now: Stamp) {
        self.next_beat = now.after(ms(HEARTBEAT_MS));
        let Self { node, conn, instance, .. } = *self;
        if !self.registered || now.since(self.heard) > ms(SILENCE_MS) {
            return self.dial(world, now);
        }
        let beat = self.holder.heartbeat(now);
        let held = self.holder.held().collect();
        let (seq, stamp) = (beat.seq, beat.stamp);
        world.beat_made(node, seq, stamp);
        self.to_harvester(world, Input::Heartbeat { node, conn, instance, seq, stamp, held });
        for (seq, report) in self.events.clone() {
            self.to_harvester(world, Input::Report { node, conn, seq, report });
        }
    }

    /// Opens a new stream; what comes on the old one is not heard any more.
    fn dial(&mut self, world: &mut World, now: Stamp) {
        self.conn += 1;
        self.registered = false;
        self.heard = now;
        let boot = world.nodes[self.node].boot;
        let resume_epoch = self.holder.resume_epoch(now);
        let Self { node, conn, instance, .. } = *self;
        let join =
            Join { boot, instance, stamp: now, resume_epoch, cores: CORES, memory_bytes: MEMORY };
        self.to_harvester(world, Input::Register { node, conn, join, hold: self.hold });
    }

    fn report(&mut self, world: &mut World, report: Report) {
        self.next_event += 1;
        self.events.insert(self.next_event, report.clone());
        let (node, conn, seq) = (self.node, self.conn, self.next_event);
        self.to_harvester(world, Input::Report { node, conn, seq, report });
    }

    fn input(&mut self, world: &mut World, now: Stamp, input: Input) {
        match input {
            Input::Registered { conn, epoch, term } if conn == self.conn => {
                self.heard = now;
                if self.holder.registered(now, epoch, term).is_ok() && !self.registered {
                    self.registered = true;
                    self.beat(world, now);
                }
            }
            Input::Grant { conn, grant } if conn == self.conn => {
                self.heard = now;
                self.granted(world, now, grant);
            }
            Input::Vacate { conn, epoch, reason } if conn == self.conn => {
                self.heard = now;
                self.holder.vacate(epoch, reason);
            }
            Input::Revoke { conn, lease, reason } if conn == self.conn => {
                if !self.holder.end(lease, reason) {
                    self.lease_ended(world, lease, reason, Duration::ZERO, Duration::ZERO);
                }
            }
            Input::Ack { conn, seq } if conn == self.conn => {
                self.heard = now;
                self.events.remove(&seq);
            }
            Input::Attach { session, claims } => self.attach(world, now, session, claims),
            Input::Renew { session, lease, ttl } => self.renew(world, now, session, lease, ttl),
            Input::Detach { session, lease } => {
                if self.sessions.remove(&session) == Some(lease) {
                    self.holder.end(lease, EndReason::Released);
                }
            }
            Input::SessionCut { session } => {
                self.sessions.remove(&session);
            }
            other => self.keeper_says(world, other),
        }
    }

    fn keeper_says(&mut self, world: &mut World, input: Input) {
        match input {
            Input::Started { lease } => {
                self.started.insert(lease, true);
                let now = world.clock(Who::Agent(self.node));
                let safe_for = self.holder.deadline(lease).map(|end| end.since(now));
                for session in self.sessions_of(lease) {
                    let attached = safe_for.map(|safe_for| Input::Attached { session, safe_for });
                    world
                        .send_client(session, attached.unwrap_or(Input::AttachRefused { session }));
                }
            }
            Input::StartFailed { lease } => {
                for session in self.sessions_of(lease) {
                    world.send_client(session, Input::AttachRefused { session });
                }
                self.gone(world, lease, Duration::ZERO, Duration::ZERO);
            }
            Input::Gone { lease, allocated, executing } => {
                self.evict(world, lease);
                self.gone(world, lease, allocated, executing);
            }
            Input::Fenced { job } => {
                self.hold = Some(job);
                let epoch = self.holder.epoch();
                self.holder.vacate(epoch, EndReason::BatchJob);
                self.report(world, Report::JobStarted { job });
            }
            Input::JobOver { job } => {
                self.hold = None;
                self.report(world, Report::JobEnded { job });
            }
            _ => {}
        }
    }

    fn granted(&mut self, world: &mut World, now: Stamp, mut grant: GrantMessage) {
        if self.hold.is_some() {
            return;
        }
        let stamp = world.nodes[self.node].beat_stamp(grant.answers_seq);
        if world.sabotaged(Sabotage::GrantFromArrival) {
            grant.answers_seq = self.holder.heartbeat(now).seq;
        }
        let Ok(until) = self.holder.grant(now, &grant) else { return };
        let truth = stamp.map_or(until, |stamp| stamp.after(grant.ttl));
        world.ledger.granted(self.node, grant.epoch, truth);
        world.pipe(Who::Keeper(self.node), Input::KeepGrant { epoch: grant.epoch, until });
    }

    fn attach(&mut self, world: &mut World, now: Stamp, session: usize, claims: Claims) {
        let mut shown = claims;
        if world.sabotaged(Sabotage::SkipEpochCheck) {
            shown.epoch = self.holder.epoch();
        }
        let Ok(admitted) = self.holder.admit(now, &shown) else {
            return world.send_client(session, Input::AttachRefused { session });
        };
        let lease = claims.lease;
        self.sessions.insert(session, lease);
        if admitted.first {
            self.started.insert(lease, false);
            let deadline = admitted.expires;
            let start =
                Input::StartWorker { lease, epoch: shown.epoch, cores: claims.cores, deadline };
            world.pipe(Who::Keeper(self.node), start);
        } else if self.started.get(&lease) == Some(&true) {
            world.send_client(session, Input::Attached { session, safe_for: admitted.safe_for });
        }
    }

    fn renew(
        &mut self,
        world: &mut World,
        now: Stamp,
        session: usize,
        lease: LeaseId,
        ttl: Duration,
    ) {
        if self.sessions.get(&session) != Some(&lease) {
            return;
        }
        let Ok(renewed) = self.holder.renew(now, lease, ttl) else { return };
        let expires = renewed.expires;
        world.ledger.renewed(lease, expires);
        world.pipe(Who::Keeper(self.node), Input::Extend { lease, deadline: expires });
        self.report(world, Report::LeaseRenewed { lease, expires });
        world.send_client(session, Input::Renewed { session, safe_for: renewed.safe_for });
    }

    fn sessions_of(&self, lease: LeaseId) -> Vec<usize> {
        self.sessions.iter().filter(|(_, of)| **of == lease).map(|(session, _)| *session).collect()
    }

    /// Tells every session of a lease what became of its calls, as the board has it.
    fn evict(&mut self, world: &mut World, lease: LeaseId) {
        let early = world.sabotaged(Sabotage::VerdictTooEarly);
        let board = world.nodes[self.node].board.remove(&lease).unwrap_or_default();
        for session in self.sessions_of(lease) {
            let of_session = board.iter().filter(|(_, (of, _))| *of == session);
            let verdicts: Vec<(usize, CallState)> = of_session
                .map(|(call, (_, state))| {
                    (*call, if early { CallState::NotStarted } else { *state })
                })
                .collect();
            world.send_client(session, Input::Evicted { session, verdicts });
            self.sessions.remove(&session);
        }
    }

    fn gone(
        &mut self,
        world: &mut World,
        lease: LeaseId,
        allocated: Duration,
        executing: Duration,
    ) {
        self.started.remove(&lease);
        if let Some(stop) = self.holder.gone(lease) {
            self.lease_ended(world, lease, stop.reason, allocated, executing);
        }
    }

    fn lease_ended(
        &mut self,
        world: &mut World,
        lease: LeaseId,
        reason: EndReason,
        allocated: Duration,
        executing: Duration,
    ) {
        let twice = if world.sabotaged(Sabotage::MeterRunsOn) { 2 } else { 1 };
        self.report(
            world,
            Report::LeaseEnded {
                lease,
                reason,
                allocated,
                executing: executing * twice + allocated * (twice - 1),
            },
        );
    }
}

impl World {
    /// A client's call reaches a worker's lane, unless the session broke on the way.
    pub(crate) fn send_call(&mut self, session: usize, lease: LeaseId, call: usize) {
        let node = self.sessions[session].node;
        if let Some(at) = self.stream(session, true) {
            self.at(at, Event::Call { node, lease, session, call });
        }
    }
}
