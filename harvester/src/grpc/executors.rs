//! The service `Executors`: one stream an executor. The first message proves who it is; then events go to the driver as
//! fast as it takes them, and its messages come back.
//!
//! ```text
//!   Register + credential ──▶ known ──▶ driver.join ──▶ ┌ reader: messages ──▶ driver
//!                                                       └ writer: outbox ──▶ messages, until either ends
//! ```

use std::sync::Arc;

use gleaner_harvester_core::{Event, effect::ToExecutor, event::Conn};
use gleaner_proto::{
    PROTOCOL,
    credential::{register_digest, registered_digest},
    v1::{self, FromExecutor, Register, executors_server::Executors, from_executor::Message},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Service,
    auth::{Hello, other_protocol},
    convert,
};
use crate::tune::{OUTBOX_MAX, REGISTER_BOUND};

/// The service; its streams outlive the call that opened them.
pub(super) struct Uplink(pub(super) Arc<Service>);

/// A registered executor's stream.
struct Stream {
    service: Arc<Service>,
    conn: Conn,
    node: String,
    caller: u32,
    nonce: Vec<u8>,
    inbound: Streaming<FromExecutor>,
    outbound: mpsc::Sender<Result<v1::ToExecutor, Status>>,
}

#[tonic::async_trait]
impl Executors for Uplink {
    type JoinStream = ReceiverStream<Result<v1::ToExecutor, Status>>;

    async fn join(
        &self,
        request: Request<Streaming<FromExecutor>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let service = &self.0;
        let hello = Hello::read(&request)?;
        let mut inbound = request.into_inner();
        let register = first_message(&mut inbound).await?;
        if register.protocol != PROTOCOL {
            return Err(other_protocol(register.protocol));
        }
        let digest = register_digest(&register);
        let known = service.auth.identify("Executors/Join", hello, digest).await?;
        let caller = known.caller.uid;
        let trusted = caller == 0 || Some(caller) == service.executor_uid;
        let (conn, nonce) = (service.driver.connection(), register.nonce.to_vec());
        if nonce.len() != gleaner_proto::control::NONCE_LEN {
            return Err(Status::invalid_argument("nonce: it has 32 bytes"));
        }
        let join = convert::join(register, conn, caller, trusted)?;
        let node = join.node.to_string();
        let messages = service.driver.join(join).await?;
        let (outbound, replies) = mpsc::channel(OUTBOX_MAX);
        let service = Arc::clone(service);
        let stream = Stream { service, conn, node, caller, nonce, inbound, outbound };
        tokio::spawn(stream.run(messages));
        Ok(Response::new(ReceiverStream::new(replies)))
    }
}

async fn first_message(inbound: &mut Streaming<FromExecutor>) -> Result<Register, Status> {
    let first = tokio::time::timeout(REGISTER_BOUND, inbound.message()).await;
    let first = first.map_err(|_| {
        Status::deadline_exceeded(format!(
            "no Register within {} s of the stream's begin",
            REGISTER_BOUND.as_secs()
        ))
    })??;
    match first.and_then(|first| first.message) {
        Some(Message::Register(register)) => Ok(register),
        _ => Err(Status::invalid_argument("the first message of the stream must be Register")),
    }
}

impl Stream {
    /// Until either direction ends; then the core is told.
    async fn run(mut self, mut messages: mpsc::Receiver<ToExecutor>) {
        let ended = tokio::select! {
            read = read(&self.service, self.conn, &mut self.inbound) => read,
            wrote = write(&self.service, &self.outbound, &mut messages, self.caller, &self.nonce) => wrote,
        };
        let reason = ended.as_ref().map_or_else(Status::message, |()| "closed by the executor");
        tracing::info!(node = %self.node, reason, "the executor's stream ended");
        if let Err(status) = ended {
            // A peer that reads nothing is not waited for.
            let _ = self.outbound.try_send(Err(status));
        }
        let _ = self.service.driver.tell(Event::ExecutorLost { conn: self.conn }).await;
    }
}

/// Passes the executor's messages on until it closes or sends what makes no sense.
async fn read(
    service: &Service,
    conn: Conn,
    inbound: &mut Streaming<FromExecutor>,
) -> Result<(), Status> {
    while let Some(message) = inbound.message().await? {
        let event = match convert::from_executor(message, conn)? {
            convert::FromExecutor::Heartbeat(beat) => Event::Heartbeat(beat),
            convert::FromExecutor::Event { seq, what } => Event::Executor { conn, seq, what },
        };
        service.driver.tell(event).await?;
    }
    Ok(())
}

/// Passes the core's messages on until the driver closes the outbox or the peer is gone.
async fn write(
    service: &Service,
    outbound: &mpsc::Sender<Result<v1::ToExecutor, Status>>,
    messages: &mut mpsc::Receiver<ToExecutor>,
    caller: u32,
    nonce: &[u8],
) -> Result<(), Status> {
    let public_key = service.key.verifying_key().to_bytes();
    while let Some(message) = messages.recv().await {
        let mut credential = String::new();
        if matches!(message, ToExecutor::Registered { .. }) {
            let digest = registered_digest(nonce, &public_key);
            credential = service.auth.sign(digest, caller).await?;
        }
        let message = convert::to_executor(message, |registered| v1::Registered {
            protocol: PROTOCOL,
            harvester_public_key: public_key.to_vec().into(),
            credential,
            cluster: service.cluster.clone(),
            ..registered
        });
        if outbound.send(Ok(message)).await.is_err() {
            return Ok(());
        }
    }
    Err(Status::aborted("the harvester closed the stream: see its log, then dial again"))
}
