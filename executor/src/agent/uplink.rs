//! The way to the harvester: dials, registers, and passes messages on, for as long as the agent lives.
//!
//! One task. It holds no state of the node: [`super::node`] says what to register with, takes what the harvester says, and
//! puts what it has to say into the stream's queue. The stream's loss is no event for leases (ADR 3).

use std::{net::ToSocketAddrs, time::Duration};

use ed25519_dalek::VerifyingKey;
use gleaner_identity::{Authority, Via};
use gleaner_proto::{
    PROTOCOL,
    credential::{CREDENTIAL_KEY, PROTOCOL_KEY, register_digest, registered_digest},
    v1::{
        FromExecutor, Register, Registered, ToExecutor, executors_client::ExecutorsClient,
        from_executor, to_executor,
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};
use tracing::{debug, info, warn};

use super::{
    node::Input,
    tune::{BACKOFF, REFUSED_WAIT, REGISTER_TIMEOUT, UPLINK_QUEUE_MAX},
};

/// What the node learns from here.
#[derive(Debug)]
pub(super) enum FromUplink {
    /// A registration is about to be sent: what does the node say of itself now?
    Registering(oneshot::Sender<Registering>),
    /// The harvester took it, and has proved who it is. The node may still refuse.
    Registered {
        registered: Box<Registered>,
        key: Box<VerifyingKey>,
        stream: mpsc::Sender<FromExecutor>,
        taken: oneshot::Sender<bool>,
    },
    /// The harvester says something.
    Message(to_executor::Message),
    /// The stream is gone.
    Disconnected,
}

/// What changes from one registration to the next.
#[derive(Debug)]
pub(super) struct Registering {
    pub(super) stamp_ns: u64,
    pub(super) resume_epoch: u64,
    pub(super) last_term: u64,
    pub(super) hold_job_id: u32,
}

/// Where and as whom to register.
pub(super) struct Uplink {
    /// "host:port".
    pub(super) harvester: String,
    pub(super) authority: Authority,
    /// The uids, beside root, whose credential counts as the harvester's.
    pub(super) harvester_uids: Vec<u32>,
    /// What stays the same in every registration.
    pub(super) register: Register,
    pub(super) inputs: mpsc::Sender<Input>,
}

/// Why a stream is over, or never was.
#[derive(Debug, thiserror::Error)]
enum UplinkError {
    #[error("the harvester at {0} cannot be reached: {1}")]
    Unreachable(String, #[source] tonic::transport::Error),
    #[error("the harvester at {0} did not answer the registration in time")]
    Silent(String),
    #[error("{0}")]
    Stream(#[from] Box<tonic::Status>),
    #[error("the harvester refused this executor: {0}")]
    Refused(String),
    #[error("who answers at {0} is not the harvester: {1}")]
    Impostor(String, String),
    #[error("cannot prove who this executor is: {0}")]
    Identity(#[from] gleaner_identity::IdentityError),
    #[error("the harvester closed the stream")]
    Closed,
    #[error("the registration came too late to be used")]
    Stale,
    #[error("the agent is ending")]
    Ending,
}

impl Uplink {
    /// Dials again and again, with a bounded and jittered wait between.
    pub(super) async fn run(mut self) {
        let mut wait = BACKOFF.0;
        loop {
            let mut registered = false;
            let ended = self.stream(&mut registered).await;
            let _ = self.inputs.send(Input::Uplink(FromUplink::Disconnected)).await;
            match ended {
                Err(UplinkError::Ending) => return,
                Err(error @ (UplinkError::Refused(_) | UplinkError::Impostor(..))) => {
                    warn!("{error}");
                    sleep(jittered(REFUSED_WAIT)).await;
                    continue;
                }
                Err(error) if registered => info!("{error}; dialling again"),
                Err(error) => debug!("{error}; dialling again in {wait:?}"),
                Ok(()) => {}
            }
            if registered {
                wait = BACKOFF.0;
            }
            sleep(jittered(wait)).await;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    /// One stream, from dialling to its end.
    async fn stream(&mut self, registered: &mut bool) -> Result<(), UplinkError> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.harvester))
            .map_err(|error| UplinkError::Unreachable(self.harvester.clone(), error))?
            .connect_timeout(REGISTER_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(2))
            .keep_alive_timeout(Duration::from_secs(4));
        let channel = endpoint
            .connect()
            .await
            .map_err(|error| UplinkError::Unreachable(self.harvester.clone(), error))?;
        let register = self.register().await?;
        let digest = register_digest(&register);
        let credential = self.blocking(move |authority| authority.sign(&digest, None)).await??;
        let (stream, outgoing) = mpsc::channel(UPLINK_QUEUE_MAX);
        let nonce = register.nonce.clone();
        let first = FromExecutor {
            event_seq: 0,
            message: Some(from_executor::Message::Register(register)),
        };
        stream.try_send(first).map_err(|_| UplinkError::Ending)?;
        let mut request = tonic::Request::new(ReceiverStream::new(outgoing));
        request.metadata_mut().insert(PROTOCOL_KEY, PROTOCOL.into());
        if let Ok(credential) = credential.parse() {
            request.metadata_mut().insert(CREDENTIAL_KEY, credential);
        }
        let mut client = ExecutorsClient::new(channel);
        let silent = || UplinkError::Silent(self.harvester.clone());
        let mut incoming = timeout(REGISTER_TIMEOUT, client.join(request))
            .await
            .map_err(|_| silent())?
            .map_err(refusal)?
            .into_inner();
        let first =
            timeout(REGISTER_TIMEOUT, next(&mut incoming)).await.map_err(|_| silent())??;
        let to_executor::Message::Registered(answer) = first else {
            return Err(UplinkError::Refused(
                "it answered something else than a registration".into(),
            ));
        };
        self.joined(answer, nonce.to_vec(), stream).await?;
        *registered = true;
        info!(harvester = self.harvester, "registered");
        loop {
            let message = next(&mut incoming).await?;
            self.tell(FromUplink::Message(message)).await?;
        }
    }

    async fn register(&self) -> Result<Register, UplinkError> {
        let (reply, answer) = oneshot::channel();
        self.tell(FromUplink::Registering(reply)).await?;
        let Registering { stamp_ns, resume_epoch, last_term, hold_job_id } =
            answer.await.map_err(|_| UplinkError::Ending)?;
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|_| UplinkError::Ending)?;
        let nonce = nonce.to_vec().into();
        let register = self.register.clone();
        Ok(Register { stamp_ns, resume_epoch, last_term, hold_job_id, nonce, ..register })
    }

    /// Checks that the answer is the harvester's own, and has the node take it.
    async fn joined(
        &self,
        registered: Registered,
        nonce: Vec<u8>,
        stream: mpsc::Sender<FromExecutor>,
    ) -> Result<(), UplinkError> {
        let impostor = |why: String| UplinkError::Impostor(self.harvester.clone(), why);
        if registered.protocol != PROTOCOL {
            let protocol = registered.protocol;
            return Err(impostor(format!(
                "it speaks protocol {protocol}, this executor {PROTOCOL}"
            )));
        }
        let public = registered.harvester_public_key.clone();
        let credential = registered.credential.clone();
        let address = self.harvester.clone();
        let caller = self
            .blocking(move |authority| {
                let server = address.to_socket_addrs().ok()?.next()?;
                let digest = registered_digest(&nonce, &public);
                Some(authority.verify(&credential, &digest, Via::Dialled { server }))
            })
            .await?
            .ok_or_else(|| impostor("its address does not resolve".into()))?
            .map_err(|error| impostor(error.to_string()))?;
        let trusted = match self.authority {
            Authority::Munge(_) => caller.uid == 0 || self.harvester_uids.contains(&caller.uid),
            Authority::SingleUser => true,
        };
        if !trusted {
            let uid = caller.uid;
            return Err(impostor(format!(
                "uid {uid} is neither root nor the configured [harvester] user"
            )));
        }
        let key: &[u8] = &registered.harvester_public_key;
        let key = key.try_into().ok().and_then(|key| VerifyingKey::from_bytes(key).ok());
        let key = key.ok_or_else(|| impostor("its public key is none".into()))?;
        let (taken, answer) = oneshot::channel();
        let (registered, key) = (Box::new(registered), Box::new(key));
        self.tell(FromUplink::Registered { registered, key, stream, taken }).await?;
        match answer.await {
            Ok(true) => Ok(()),
            Ok(false) => Err(UplinkError::Stale),
            Err(_) => Err(UplinkError::Ending),
        }
    }

    async fn tell(&self, event: FromUplink) -> Result<(), UplinkError> {
        self.inputs.send(Input::Uplink(event)).await.map_err(|_| UplinkError::Ending)
    }

    /// munge may wait for its daemon: off the agent's thread.
    async fn blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Authority) -> R + Send + 'static,
    ) -> Result<R, UplinkError> {
        let authority = self.authority.clone();
        tokio::task::spawn_blocking(move || work(&authority)).await.map_err(|_| UplinkError::Ending)
    }
}

async fn next(incoming: &mut Streaming<ToExecutor>) -> Result<to_executor::Message, UplinkError> {
    loop {
        match incoming.message().await.map_err(refusal)? {
            None => return Err(UplinkError::Closed),
            Some(ToExecutor { message: Some(to_executor::Message::Refused(refused)) }) => {
                return Err(UplinkError::Refused(refused.reason));
            }
            Some(ToExecutor { message: Some(message) }) => return Ok(message),
            // A message of a later version: it may be left out.
            Some(ToExecutor { message: None }) => {}
        }
    }
}

fn refusal(status: tonic::Status) -> UplinkError {
    use tonic::Code::{InvalidArgument, PermissionDenied, Unauthenticated};
    match status.code() {
        InvalidArgument | PermissionDenied | Unauthenticated => {
            UplinkError::Refused(status.message().to_owned())
        }
        _ => Box::new(status).into(),
    }
}

/// Between half of the wait and all of it, so that a cluster's executors do not dial in step.
fn jittered(wait: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    wait / 2 + (wait / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}
