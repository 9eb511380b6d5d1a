//! An executor's side of the stream, over the real wire: registers, sends heartbeats, does as it is told.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use gleaner_identity::{Authority, Via};
use gleaner_proto::{
    PROTOCOL,
    credential::{register_digest, registered_digest},
    v1::{
        self, FromExecutor, Register, ToExecutor, executors_client::ExecutorsClient, from_executor,
        to_executor,
    },
};
use nix::time::{ClockId, clock_gettime};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use super::client::with_credential;

/// What it has been told.
#[derive(Default, Clone)]
pub struct Told {
    pub grant: Option<v1::Grant>,
    pub vacated: Option<v1::Vacate>,
    pub revoked: Vec<u64>,
    pub acked: u64,
    pub refused: Option<String>,
    pub ended: Option<Status>,
}

pub struct Executor {
    pub registered: v1::Registered,
    pub told: Arc<Mutex<Told>>,
    pub events: mpsc::Sender<FromExecutor>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Executor {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

pub fn register(node: &str) -> Register {
    let random = |length: usize| {
        let mut bytes = vec![0; length];
        getrandom::fill(&mut bytes).unwrap();
        bytes::Bytes::from(bytes)
    };
    Register {
        protocol: PROTOCOL,
        node: node.into(),
        executor_public_key: random(32),
        address: "127.0.0.1:1".into(),
        boot_id: random(16),
        instance: random(16),
        stamp_ns: stamp(),
        cores: 4,
        memory_bytes: 4 << 30,
        nonce: random(32),
        version: "test".into(),
        ..Register::default()
    }
}

pub fn stamp() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// Opens a stream that begins with this registration.
pub async fn open(
    address: SocketAddr,
    authority: &Authority,
    register: Register,
) -> Result<(mpsc::Sender<FromExecutor>, Streaming<ToExecutor>), Status> {
    let credential = authority.sign(&register_digest(&register), None).unwrap();
    let (events, outgoing) = mpsc::channel(64);
    let first = from_executor::Message::Register(register);
    events.send(FromExecutor { event_seq: 0, message: Some(first) }).await.unwrap();
    let channel =
        Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let request = with_credential(ReceiverStream::new(outgoing), &credential);
    let replies = ExecutorsClient::new(channel).join(request).await?.into_inner();
    Ok((events, replies))
}

impl Executor {
    pub async fn join(address: SocketAddr, authority: Authority, node: &str) -> Self {
        Self::join_as(address, authority, register(node)).await.unwrap()
    }

    pub async fn join_as(
        address: SocketAddr,
        authority: Authority,
        register: Register,
    ) -> Result<Self, Status> {
        let nonce = register.nonce.clone();
        let (events, mut replies) = open(address, &authority, register).await?;
        let first = replies.message().await?.and_then(|first| first.message);
        let registered = match first {
            Some(to_executor::Message::Registered(registered)) => registered,
            Some(to_executor::Message::Refused(refused)) => {
                return Err(Status::permission_denied(refused.reason));
            }
            other => panic!("{other:?} is no answer to Register"),
        };
        let digest = registered_digest(&nonce, &registered.harvester_public_key);
        let via = Via::Dialled { server: address };
        authority.verify(&registered.credential, &digest, via).unwrap();
        let told = Arc::new(Mutex::new(Told::default()));
        let reader = tokio::spawn(listen(replies, Arc::clone(&told)));
        let beats = tokio::spawn(beat(events.clone(), Arc::clone(&told)));
        Ok(Self { registered, told, events, tasks: [reader, beats] })
    }

    pub fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }

    pub async fn granted(&self) -> v1::Grant {
        super::eventually("the node is granted", async || self.told().grant).await
    }

    pub async fn send(&self, event_seq: u64, message: from_executor::Message) {
        self.events.send(FromExecutor { event_seq, message: Some(message) }).await.unwrap();
    }

    /// Stops sending heartbeats and reading; the stream ends.
    pub fn leave(self) {}
}

async fn listen(mut replies: Streaming<ToExecutor>, told: Arc<Mutex<Told>>) {
    loop {
        let message = replies.message().await;
        let mut told = told.lock().unwrap();
        match message {
            Ok(Some(ToExecutor { message: Some(message) })) => match message {
                to_executor::Message::Grant(grant) => told.grant = Some(grant),
                to_executor::Message::Vacate(vacate) => {
                    told.grant = None;
                    told.vacated = Some(vacate);
                }
                to_executor::Message::Revoke(revoke) => told.revoked.push(revoke.lease_id),
                to_executor::Message::Ack(ack) => told.acked = ack.event_seq,
                to_executor::Message::Refused(refused) => told.refused = Some(refused.reason),
                to_executor::Message::Registered(_) => {}
            },
            Ok(_) => {
                told.ended = Some(Status::ok("ended"));
                return;
            }
            Err(status) => {
                told.ended = Some(status);
                return;
            }
        }
    }
}

async fn beat(events: mpsc::Sender<FromExecutor>, told: Arc<Mutex<Told>>) {
    for seq in 1.. {
        let grant_epoch = told.lock().unwrap().grant.map_or(0, |grant| grant.grant_epoch);
        let beat = v1::Heartbeat { seq, stamp_ns: stamp(), grant_epoch, leases: Vec::new() };
        let message = Some(from_executor::Message::Heartbeat(beat));
        if events.send(FromExecutor { event_seq: 0, message }).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
