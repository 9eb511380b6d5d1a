//! The one task that owns the core: feeds it events with the time, and carries out what it wants done, in order.
//!
//! Started by [`crate::daemon`]. It never waits for anybody: the store, the streams and the callers each have a bounded
//! queue, and who does not keep up is told so or cut off.
//!
//! ```text
//!   gRPC ── Command ──▶ ┌────────┐ ──▶ store (Batch)      ──▶ Outcome ─┐
//!   looker ─ Event ───▶ │ driver │ ──▶ outboxes, callers               │
//!   clock ── Tick ────▶ └────────┘ ──▶ looker (look soon)              │
//!                            ▲─────────────────────────────────────────┘
//! ```

mod handle;
mod look;

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use gleaner_harvester_core::{
    Core, Effect, Event, Policy,
    effect::{Need, Reply, ToExecutor},
    event::{CallId, Conn, Ticket},
    record::{Record, Restored},
    refusal::Refusal,
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{MissedTickBehavior, interval},
};

use crate::{
    clock,
    store::{Batch, Outcome, Store},
    tune::{COMMANDS_MAX, LOOKS_MAX, TICK},
};

use handle::{Command, Question};
pub(crate) use handle::{Handle, Unanswered};
pub(crate) use look::{Looker, Pace};

/// The core's owner.
pub(crate) struct Driver {
    core: Core,
    store: Store,
    look_soon: Arc<Notify>,
    outboxes: HashMap<Conn, mpsc::Sender<ToExecutor>>,
    callers: HashMap<CallId, oneshot::Sender<Result<Reply, Refusal>>>,
    effects: Vec<Effect>,
    /// What carrying out effects made happen.
    events: VecDeque<Event>,
    /// Batches that the store has not answered.
    storing: usize,
}

/// Where the driver's inputs come from.
pub(crate) struct Inputs {
    commands: mpsc::Receiver<Command>,
    looks: mpsc::Receiver<Event>,
    outcomes: mpsc::Receiver<Outcome>,
    stop: oneshot::Receiver<()>,
}

/// What the driver's start leaves in others' hands.
pub(crate) struct Ends {
    pub(crate) handle: Handle,
    /// Where the looker sends what it saw.
    pub(crate) looks: mpsc::Sender<Event>,
    /// Where the looker waits for hints.
    pub(crate) look_soon: Arc<Notify>,
    /// Dropped or used: the driver stops.
    pub(crate) stop: oneshot::Sender<()>,
}

impl Driver {
    /// Restores the core from what the store had.
    pub(crate) fn new(
        policy: Policy,
        restored: Restored,
        store: Store,
        outcomes: mpsc::Receiver<Outcome>,
    ) -> (Self, Inputs, Ends) {
        let (commands_in, commands) = mpsc::channel(COMMANDS_MAX);
        let (looks_in, looks) = mpsc::channel(LOOKS_MAX);
        let (stop_in, stop) = oneshot::channel();
        let look_soon = Arc::new(Notify::new());
        let mut effects = Vec::new();
        let (now, wall) = (clock::now().0, clock::unix_ms());
        let core = Core::restore(policy, restored, now, wall, &mut effects);
        let driver = Self {
            core,
            store,
            look_soon: Arc::clone(&look_soon),
            outboxes: HashMap::new(),
            callers: HashMap::new(),
            effects,
            events: VecDeque::new(),
            storing: 0,
        };
        let ends =
            Ends { handle: Handle::new(commands_in), looks: looks_in, look_soon, stop: stop_in };
        (driver, Inputs { commands, looks, outcomes, stop }, ends)
    }

    /// Stores what a harvester that starts must have on disk before it serves: its term and its numbers.
    pub(crate) async fn begin(&mut self, inputs: &mut Inputs) -> Result<(), String> {
        self.settle();
        while self.storing > 0 {
            let Some(outcome) = inputs.outcomes.recv().await else {
                return Err("the store's writer has ended".into());
            };
            outcome.result.clone()?;
            self.stored(outcome);
        }
        Ok(())
    }

    /// Runs until stopped. Grants and leases are left as they are: executors keep them until their ends.
    pub(crate) async fn run(mut self, inputs: Inputs) {
        let Inputs { mut commands, mut looks, mut outcomes, mut stop } = inputs;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = &mut stop => break,
                _ = ticks.tick() => self.feed(Event::Tick),
                Some(outcome) = outcomes.recv() => self.stored(outcome),
                Some(seen) = looks.recv() => self.feed(seen),
                Some(command) = commands.recv() => self.obey(command),
            }
        }
        let alive = Record::Alive {
            term: self.core.status(clock::now().0).term,
            unix_ms: clock::unix_ms(),
        };
        let last = Batch { ticket: None, records: vec![alive], need: Need::Journal };
        if self.store.offer(last).is_err() {
            tracing::warn!("the store is behind: the moment of this stop is not recorded");
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Event(event) => {
                if let Event::ExecutorLost { conn } = event {
                    self.outboxes.remove(&conn);
                }
                self.feed(event);
            }
            Command::Call { call, event, answer } => {
                // Who gave up waiting is forgotten: the table stays as small as the calls that are open.
                self.callers.retain(|_, answer| !answer.is_closed());
                self.callers.insert(call, answer);
                self.feed(event);
            }
            Command::Join { join, outbox } => {
                self.outboxes.insert(join.conn, outbox);
                self.feed(Event::Joined(*join));
            }
            Command::Ask(question) => self.answer(question),
        }
    }

    /// An answer that nobody waits for any more is dropped.
    fn answer(&self, question: Question) {
        let (now, wall) = (clock::now().0, clock::unix_ms());
        match question {
            Question::Status(answer) => drop(answer.send(self.core.status(now))),
            Question::Nodes { only, answer } => {
                drop(answer.send(self.core.nodes(now, wall, only.as_deref())));
            }
            Question::Leases(answer) => drop(answer.send(self.core.leases(now))),
        }
    }

    fn stored(&mut self, outcome: Outcome) {
        let Outcome { ticket, result } = outcome;
        self.storing -= 1;
        self.feed(Event::Persisted { ticket, result });
    }

    fn feed(&mut self, event: Event) {
        self.events.push_back(event);
        self.settle();
    }

    /// Carries out all effects, and the events that this makes.
    fn settle(&mut self) {
        loop {
            for effect in std::mem::take(&mut self.effects) {
                self.carry_out(effect);
            }
            let Some(event) = self.events.pop_front() else { return };
            self.core.handle(clock::now().0, clock::unix_ms(), event, &mut self.effects);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { conn, message, .. } => self.send(conn, message),
            Effect::Persist { ticket, records, need } => self.persist(ticket, records, need),
            Effect::Reply { call, result } => {
                if let Some(answer) = self.callers.remove(&call) {
                    drop(answer.send(result));
                }
            }
            Effect::LookSoon => self.look_soon.notify_one(),
            Effect::Log { warn: true, message } => tracing::warn!("{message}"),
            Effect::Log { warn: false, message } => tracing::info!("{message}"),
        }
    }

    fn send(&mut self, conn: Conn, message: ToExecutor) {
        let Some(outbox) = self.outboxes.get(&conn) else { return };
        let last = matches!(message, ToExecutor::Refused(_));
        let sent = outbox.try_send(message);
        if sent.is_err() || last {
            self.outboxes.remove(&conn);
        }
        if sent.is_err() {
            self.events.push_back(Event::ExecutorLost { conn });
        }
    }

    fn persist(&mut self, ticket: Ticket, records: Vec<Record>, need: Need) {
        if self.store.offer(Batch { ticket: Some(ticket), records, need }).is_err() {
            let result = Err("the store is too far behind to take more".to_owned());
            self.events.push_back(Event::Persisted { ticket, result });
            return;
        }
        self.storing += 1;
    }
}
