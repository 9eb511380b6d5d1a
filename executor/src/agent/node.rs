//! The node's one owner of state: everything that happens here passes through [`Node::run`], one thing after another.
//!
//! Other tasks send it [`Input`]s and keep nothing of their own. It never waits for a client, a worker or the harvester:
//! it puts messages into bounded queues, and whoever does not read loses what it would have got. Before and after every
//! input the holder's book is asked what is due, so that an agent that was stopped serves nothing stale when it goes on.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use ed25519_dalek::VerifyingKey;
use gleaner_fabric::{Geometry, rdma::Adapter};
use gleaner_lease::{
    holder::{Holder, Stop},
    state::EndReason,
};
use gleaner_proto::{
    ids::{Epoch, LeaseId},
    v1::{self, from_agent, to_agent},
    vacates::Trigger,
};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
    time::Instant,
};
use tracing::{error, info, warn};

use super::{
    AgentError,
    admission::AttachReply,
    clock,
    connection::{Carrier, Proved, Refused, Shared, refusal},
    functions::{Answers, Open},
    lease::Lease,
    report::Reports,
    tune::{FINISH_GRACE, LOST_GRACE, ORPHAN_GRACE},
    uplink::FromUplink,
};
use crate::{
    keeper::ipc::{Order, Socket},
    worker::ipc::{FromWorker, ToWorker},
};

/// What happens.
#[derive(Debug)]
pub(super) enum Input {
    /// A greeted client wants a session.
    Attach { wanted: v1::Attach, proved: Proved, reply: AttachReply },
    /// A greeted connection wants to be a session's lane.
    Lane { wanted: v1::DataLane, proved: Proved, reply: oneshot::Sender<Result<Geometry, Refused>> },
    /// Its client knows; the connection is the worker's from now on, and the memory of both if there is one.
    LaneReady { session: u64, lane: u32, socket: OwnedFd, carrier: Carrier },
    /// A session's client says something.
    Session { id: u64, message: to_agent::Message },
    /// A session's connection is gone.
    SessionClosed { id: u64 },
    /// A worker says something.
    Worker { lease: LeaseId, record: FromWorker },
    /// A worker's socket is of no more use.
    WorkerLost { lease: LeaseId, why: String },
    /// The way to the harvester.
    Uplink(FromUplink),
}

/// The state.
pub(super) struct Node {
    pub(super) holder: Holder,
    pub(super) leases: BTreeMap<LeaseId, Lease>,
    /// Which lease a session is of.
    pub(super) sessions: BTreeMap<u64, LeaseId>,
    pub(super) last_session: u64,
    /// Verifies tokens; known once the harvester has registered this executor.
    pub(super) harvester: Option<VerifyingKey>,
    /// The one uid that may lease here, without root.
    pub(super) single_uid: Option<u32>,
    pub(super) sessions_max: u16,
    /// How long workers spin after a call if their client does not say, and at most.
    pub(super) hot_timeout: (Duration, Duration),
    pub(super) reports: Reports,
    pub(super) shared: Arc<Shared>,
    /// The device that workers serve clients through, for its addresses.
    pub(super) adapter: Option<Adapter>,
    pub(super) keeper: Socket,
    keeper_ready: AsyncFd<OwnedFd>,
    /// Orders that the keeper had no room for.
    orders: VecDeque<Order>,
    /// The vacate that is being done, by its reason: the keeper stops those leases by itself.
    pub(super) fenced: Option<(Epoch, EndReason)>,
}

impl Node {
    /// A node without a grant.
    pub(super) fn new(
        holder: Holder,
        keeper: Socket,
        shared: Arc<Shared>,
        reports: Reports,
        config: &gleaner_config::Executor,
        single_uid: Option<u32>,
        adapter: Option<Adapter>,
    ) -> io::Result<Self> {
        let sessions_max =
            config.sessions_per_lease.clamp(1, u32::from(crate::board::SESSIONS_MAX));
        Ok(Self {
            holder,
            leases: BTreeMap::new(),
            sessions: BTreeMap::new(),
            last_session: 0,
            harvester: None,
            single_uid,
            sessions_max: sessions_max as u16,
            hot_timeout: (config.hot_timeout, config.hot_timeout_max),
            reports,
            shared,
            adapter,
            keeper_ready: crate::sys::watch(keeper.as_fd().try_clone_to_owned()?)?,
            keeper,
            orders: VecDeque::new(),
            fenced: None,
        })
    }

    /// Serves until the keeper is gone.
    pub(super) async fn run(mut self, mut inputs: mpsc::Receiver<Input>) -> Result<(), AgentError> {
        loop {
            let wake = self.next_wake();
            let keeper = tokio::select! {
                biased;
                ready = self.keeper_ready.readable() => { ready?.clear_ready(); true }
                input = inputs.recv() => {
                    let Some(input) = input else { return Ok(()) };
                    // First what the keeper says and what the clock says: the input may be stale.
                    self.keeper_notices()?;
                    self.tick();
                    self.input(input);
                    false
                }
                () = tokio::time::sleep_until(wake) => false,
            };
            if keeper {
                self.keeper_notices()?;
            }
            self.tick();
            self.send_orders()?;
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Attach { wanted, proved, reply } => self.attach(wanted, &proved, reply),
            Input::Lane { wanted, proved, reply } => {
                drop(reply.send(self.lane(&wanted, &proved)));
            }
            Input::LaneReady { session, lane, socket, carrier } => {
                self.lane_ready(session, lane, &socket, carrier);
            }
            Input::Session { id, message } => self.session(id, message),
            Input::SessionClosed { id } => self.end_session(id, false),
            Input::Worker { lease, record } => self.worker(lease, record),
            Input::WorkerLost { lease, why } => self.worker_lost(lease, &why),
            Input::Uplink(event) => self.uplink(event),
        }
    }

    /// Everything that is due.
    fn tick(&mut self) {
        let now = clock::now();
        for stop in self.holder.tick(now) {
            self.stop(stop);
        }
        let mut answers = Answers::new();
        let mut over: Vec<(LeaseId, EndReason, String)> = Vec::new();
        let mut stops = Vec::new();
        for (id, lease) in &mut self.leases {
            answers.extend(lease.functions.overdue(now));
            if lease.overrun(now) {
                over.push((
                    *id,
                    EndReason::WorkerFailed,
                    "a cancelled call did not end in its grace".into(),
                ));
            }
            if lease.orphan_since.is_some_and(|since| since.after(ORPHAN_GRACE) <= now) {
                lease.orphan_since = None;
                over.push((*id, EndReason::Released, "its client went away".into()));
            }
            if let Some((_, why)) = lease.lost.take_if(|(at, _)| *at <= now) {
                over.push((*id, EndReason::WorkerFailed, why));
            }
            if lease.stop_at.is_some_and(|at| at <= now) {
                lease.stop_at = None;
                stops.push(Order::Stop { lease_id: id.0 });
            }
        }
        answers.into_iter().for_each(|(session, answer)| self.answer(session, answer));
        over.into_iter().for_each(|(lease, reason, detail)| self.end_lease(lease, reason, &detail));
        stops.into_iter().for_each(|order| self.order(order));
        if let Some(epoch) = self.holder.take_vacated() {
            self.reports.epoch_over(epoch, now);
        }
        self.reports.report_if_due(now, &mut self.holder, &self.leases);
    }

    fn next_wake(&self) -> Instant {
        let leases = self.leases.values().flat_map(|lease| {
            let orphan = lease.orphan_since.map(|since| since.after(ORPHAN_GRACE));
            let lost = lease.lost.as_ref().map(|(at, _)| *at);
            [lease.next_cancel(), lease.functions.next_overdue(), orphan, lost, lease.stop_at]
        });
        let known = [self.holder.next_deadline(), Some(self.reports.next_due())];
        let next = leases.chain(known).flatten().min().unwrap_or_default();
        let orders = if self.orders.is_empty() { Duration::MAX } else { Duration::from_millis(1) };
        Instant::now() + next.since(clock::now()).min(orders)
    }

    /// Begins the end of a lease by this node's own decision.
    pub(super) fn end_lease(&mut self, lease: LeaseId, reason: EndReason, detail: &str) {
        if let Some(held) = self.leases.get_mut(&lease)
            && held.ending.is_none()
        {
            held.ending = Some((reason, detail.to_owned()));
        }
        self.holder.end(lease, reason);
        for stop in self.holder.tick(clock::now()) {
            self.stop(stop);
        }
    }

    /// A lease is over: nothing of it starts any more, and the keeper ends its worker.
    pub(super) fn stop(&mut self, stop: Stop) {
        let Some(held) = self.leases.get_mut(&stop.lease) else {
            return;
        };
        held.board.fence();
        held.ending.get_or_insert((stop.reason, String::new()));
        let vacating = self.fenced.is_some_and(|(epoch, _)| stop.epoch <= epoch);
        match stop.reason {
            // The keeper is at it already, or knows that end by itself and records it.
            _ if vacating => {}
            EndReason::GrantEnded => {}
            EndReason::Released if held.tell(&ToWorker::Finish, None).is_ok() => {
                held.stop_at = Some(clock::now().after(FINISH_GRACE));
            }
            _ => self.order(Order::Stop { lease_id: stop.lease.0 }),
        }
    }

    /// The worker cannot be reached. The keeper's `Gone` tells how it died, unless it lives and only does not answer.
    pub(super) fn worker_lost(&mut self, lease: LeaseId, why: &str) {
        if let Some(held) = self.leases.get_mut(&lease)
            && held.ending.is_none()
            && held.lost.is_none()
        {
            warn!(%lease, why, "worker lost");
            held.board.fence();
            held.lost = Some((clock::now().after(LOST_GRACE), why.to_owned()));
        }
    }

    fn worker(&mut self, lease: LeaseId, record: FromWorker) {
        let Some(held) = self.leases.get_mut(&lease) else {
            return;
        };
        let answers = match record {
            FromWorker::Ready => return,
            FromWorker::FunctionOpened { function, abi } => held.functions.opened(function, abi),
            FromWorker::FunctionFailed { function, message } => {
                held.functions.failed(function, &message)
            }
            FromWorker::LinkClosed { session, message, .. } => {
                match held.link_closed(session, &message) {
                    Ok(None) => {}
                    Ok(Some(id)) => {
                        held.evict_one(id, clock::now());
                        self.sessions.remove(&id);
                    }
                    Err(error) => self.worker_lost(lease, &error.to_string()),
                }
                return;
            }
        };
        answers.into_iter().for_each(|(session, answer)| self.answer(session, answer));
    }

    fn session(&mut self, id: u64, message: to_agent::Message) {
        let Some(lease) = self.sessions.get(&id).copied() else {
            return;
        };
        let now = clock::now();
        match message {
            to_agent::Message::Renew(v1::Renew { ttl_ms }) => self.renew(id, lease, ttl_ms),
            to_agent::Message::SetWaiting(wanted) => self.set_waiting(id, lease, &wanted),
            to_agent::Message::OpenFunction(request) => self.open(id, lease, &request),
            to_agent::Message::Cancel(cancel) => {
                if let Some(held) = self.leases.get_mut(&lease) {
                    held.cancel(id, &cancel, now);
                }
            }
            to_agent::Message::Detach(v1::Detach { release }) => {
                self.answer(id, from_agent::Message::Detached(v1::Detached {}));
                if let Some(held) = self.leases.get_mut(&lease).filter(|_| release) {
                    held.give_back();
                }
                self.end_session(id, !release);
            }
            // Uploads are the connection's; a second greeting is nobody's.
            to_agent::Message::Upload(_)
            | to_agent::Message::Hello(_)
            | to_agent::Message::Proof(_) => {
                self.end_session(id, false);
            }
        }
    }

    fn renew(&mut self, id: u64, lease: LeaseId, ttl_ms: u64) {
        let answer = match self.holder.renew(clock::now(), lease, Duration::from_millis(ttl_ms)) {
            Ok(renewed) => {
                let deadline_ns = renewed.expires.0;
                self.order(Order::Extend { lease_id: lease.0, deadline_ns });
                self.reports.lease_renewed(lease, renewed.expires);
                let safe_for_ms = renewed.safe_for.as_millis() as u64;
                from_agent::Message::Renewed(v1::Renewed { safe_for_ms })
            }
            Err(error) => refusal(v1::control_error::Code::Token, &error.to_string()),
        };
        self.answer(id, answer);
    }

    fn open(&mut self, id: u64, lease: LeaseId, request: &v1::OpenFunction) {
        let Some(held) = self.leases.get_mut(&lease) else {
            return;
        };
        let file = request.sha256[..].try_into().ok().and_then(|hash| {
            let mut libraries =
                self.shared.libraries.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            libraries.find(held.claims.uid.0, &hash)
        });
        match held.functions.open(id, request, file, clock::now()) {
            Open::Answer(answer) => self.answer(id, answer),
            Open::Ask(records) => {
                let told =
                    records.iter().try_for_each(|(record, fd)| held.tell(record, fd.as_deref()));
                if let Err(error) = told {
                    self.worker_lost(lease, &error.to_string());
                }
            }
        }
    }

    /// Answers a session; one that does not read is dropped.
    pub(super) fn answer(&mut self, id: u64, message: from_agent::Message) {
        let held = self.sessions.get(&id).and_then(|lease| self.leases.get(lease));
        if held.is_some_and(|held| !held.send(id, message)) {
            self.end_session(id, false);
        }
    }

    /// Ends a session; its client's last messages still go out.
    pub(super) fn end_session(&mut self, id: u64, comes_back: bool) {
        let Some(lease) = self.sessions.remove(&id) else {
            return;
        };
        let Some(held) = self.leases.get_mut(&lease) else { return };
        let told = held.detach(id, comes_back, clock::now());
        let left = held.is_left();
        if let Err(error) = told {
            self.worker_lost(lease, &error.to_string());
        }
        if left {
            self.end_lease(lease, EndReason::Released, "its client gave it back");
        }
    }

    /// Sends an order, after those that wait.
    pub(super) fn order(&mut self, order: Order) {
        self.orders.push_back(order);
    }

    /// A keeper that reads nothing for long is stopped, and enforces nothing: the hook will kill it. Orders wait.
    fn send_orders(&mut self) -> Result<(), AgentError> {
        while let Some(order) = self.orders.front() {
            match self.keeper.order(order) {
                Ok(()) => drop(self.orders.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(AgentError::Keeper(error)),
            }
        }
        if self.orders.len() > super::tune::ORDERS_MAX {
            error!("the keeper reads no orders");
            return Err(AgentError::Keeper(io::ErrorKind::TimedOut.into()));
        }
        Ok(())
    }

    /// The harvester wants the node back: everything of epochs up to this one ends, and the keeper clears the node.
    pub(super) fn vacate(&mut self, epoch: Epoch, reason: EndReason) {
        let serving = self.holder.epoch();
        if epoch < serving {
            return info!(%epoch, %serving, "vacate of an epoch that is over");
        }
        self.holder.vacate(epoch, reason);
        self.fenced = Some((epoch, reason));
        for stop in self.holder.tick(clock::now()) {
            self.stop(stop);
        }
        self.order(Order::Vacate { trigger: trigger_of(reason) });
    }
}

/// What the journal says of a vacate that the harvester asked for.
fn trigger_of(reason: EndReason) -> Trigger {
    match reason {
        EndReason::Drained | EndReason::Policy => Trigger::Drain,
        EndReason::SwitchedOff => Trigger::SwitchOff,
        EndReason::GrantEnded | EndReason::Expired => Trigger::GrantEnd,
        _ => Trigger::Poll,
    }
}
