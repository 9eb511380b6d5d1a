//! How everybody else speaks to the driver: a bounded channel of commands, and an answer for those who wait.
//!
//! Held by every gRPC service. Nothing here looks at the core.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use gleaner_harvester_core::{
    Event, Policy,
    effect::{Reply, ToExecutor},
    event::{CallId, Conn, Join},
    refusal::Refusal,
    view::{LeaseInfo, NodeInfo, Status},
};
use gleaner_proto::ids::{NodeName, Term};
use tokio::sync::{mpsc, oneshot};

use crate::tune::{CALL_BOUND, OUTBOX_MAX};

/// What the driver is told.
pub(super) enum Command {
    /// Something happened that nobody waits for.
    Event(Event),
    /// A call that the core answers.
    Call { call: CallId, event: Event, answer: oneshot::Sender<Result<Reply, Refusal>> },
    /// An executor's stream, with where its messages go.
    Join { join: Box<Join>, outbox: mpsc::Sender<ToExecutor> },
    /// A question about the core's state, answered in place.
    Ask(Question),
}

/// What can be asked of the core without changing it.
pub(super) enum Question {
    Status(oneshot::Sender<Status>),
    Nodes { only: Option<Vec<NodeName>>, answer: oneshot::Sender<Vec<NodeInfo>> },
    Leases(oneshot::Sender<Vec<LeaseInfo>>),
}

/// The driver does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    /// It is gone.
    #[error("the harvester is stopping: try again in a moment")]
    Stopping,
    /// It, or the store that it waits for, is too slow.
    #[error(
        "the harvester did not answer within {} s: see its log and its store; the same request can be sent again",
        CALL_BOUND.as_secs()
    )]
    Late,
}

/// Speaks to the driver; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    numbers: Arc<AtomicU64>,
}

impl Handle {
    pub(super) fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands, numbers: Arc::new(AtomicU64::new(1)) }
    }

    /// Tells the core of an event. Waits while the driver is busy: that is what slows a flooding peer down.
    pub(crate) async fn tell(&self, event: Event) -> Result<(), Unanswered> {
        self.commands.send(Command::Event(event)).await.map_err(|_| Unanswered::Stopping)
    }

    /// Makes a call of the core, by the event that `make` builds around the call's number.
    pub(crate) async fn call(
        &self,
        make: impl FnOnce(CallId) -> Event,
    ) -> Result<Result<Reply, Refusal>, Unanswered> {
        let call = CallId(self.number());
        let event = make(call);
        self.ask(|answer| Command::Call { call, event, answer }).await
    }

    /// A number for an executor's stream.
    pub(crate) fn connection(&self) -> Conn {
        Conn(self.number())
    }

    /// Announces an executor; what it is to be told comes out of the receiver, whose end is the stream's end.
    pub(crate) async fn join(&self, join: Join) -> Result<mpsc::Receiver<ToExecutor>, Unanswered> {
        let (outbox, messages) = mpsc::channel(OUTBOX_MAX);
        let command = Command::Join { join: Box::new(join), outbox };
        self.commands.send(command).await.map_err(|_| Unanswered::Stopping)?;
        Ok(messages)
    }

    /// The configuration was read again.
    pub(crate) async fn reconfigure(&self, policy: Policy) -> Result<(), Unanswered> {
        self.tell(Event::Reconfigured(policy)).await
    }

    pub(crate) async fn status(&self) -> Result<Status, Unanswered> {
        self.ask(|answer| Command::Ask(Question::Status(answer))).await
    }

    pub(crate) async fn nodes(
        &self,
        only: Option<Vec<NodeName>>,
    ) -> Result<Vec<NodeInfo>, Unanswered> {
        self.ask(|answer| Command::Ask(Question::Nodes { only, answer })).await
    }

    pub(crate) async fn leases(&self) -> Result<Vec<LeaseInfo>, Unanswered> {
        self.ask(|answer| Command::Ask(Question::Leases(answer))).await
    }

    /// The term that this harvester serves.
    pub(crate) async fn term(&self) -> Result<Term, Unanswered> {
        Ok(self.status().await?.term)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Unanswered> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let sent = self.commands.send(command(answer)).await;
            sent.map_err(|_| Unanswered::Stopping)?;
            answered.await.map_err(|_| Unanswered::Stopping)
        };
        tokio::time::timeout(CALL_BOUND, asked).await.map_err(|_| Unanswered::Late)?
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}
