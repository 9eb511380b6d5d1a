//! Who calls, checked on every call before anything else is looked at; and the harvester's own word on its replies.
//!
//! Called by every service of [`super`]. It says who somebody is; what they may do, the core and [`super::admin`] say.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use gleaner_identity::{Authority, Caller, IdentityError, MungeError, Via};
use gleaner_proto::{
    PROTOCOL,
    credential::{CREDENTIAL_KEY, PROTOCOL_KEY, reply_digest, request_digest},
};
use nix::unistd::{Uid, User};
use prost::Message;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use crate::{
    audit::Audit,
    tune::{IDENTITY_BOUND, IDENTITY_THREADS, REFUSALS_A_MINUTE},
};

/// Checks callers and signs replies. One a daemon, shared by all services.
pub(crate) struct Authenticator {
    authority: Authority,
    threads: Arc<Semaphore>,
    audit: Audit,
    refusals: Mutex<Refusals>,
}

/// A caller that proved who it is, and for which request.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) caller: Caller,
    /// The name of `caller.uid`, or its number where it has none.
    pub(crate) user: String,
    digest: [u8; 32],
}

/// How many refusals were recorded in this minute, and how many were only counted.
#[derive(Debug)]
struct Refusals {
    since: Instant,
    recorded: u32,
    unrecorded: u64,
}

impl Authenticator {
    pub(crate) fn new(authority: Authority, audit: Audit) -> Self {
        let refusals = Refusals { since: Instant::now(), recorded: 0, unrecorded: 0 };
        Self {
            authority,
            threads: Arc::new(Semaphore::new(IDENTITY_THREADS)),
            audit,
            refusals: Mutex::new(refusals),
        }
    }

    /// Who sent this request of `method` (as in `Leases/Acquire`).
    pub(crate) async fn check<T: Message>(
        &self,
        method: &'static str,
        request: &Request<T>,
    ) -> Result<Known, Status> {
        let digest = request_digest(method, request.get_ref());
        let hello = Hello::read(request)?;
        self.identify(method, hello, digest).await
    }

    /// Whose credential came with `hello`, if it covers `digest`.
    pub(crate) async fn identify(
        &self,
        method: &'static str,
        hello: Hello,
        digest: [u8; 32],
    ) -> Result<Known, Status> {
        let Hello { credential, via, peer } = hello;
        let authority = self.authority.clone();
        let looked = self
            .bounded(move || {
                let caller = authority.verify(&credential, &digest, via)?;
                Ok((caller, user_name(caller.uid)))
            })
            .await;
        match looked {
            Ok((caller, user)) => Ok(Known { caller, user, digest }),
            Err(error) => {
                self.refused(method, peer, &error);
                Err(error.into())
            }
        }
    }

    /// The reply, with the harvester's credential over it that only the caller can read.
    pub(crate) async fn answer<T: Message>(
        &self,
        known: &Known,
        reply: T,
    ) -> Result<Response<T>, Status> {
        let credential = self.sign(reply_digest(&known.digest, &reply), known.caller.uid).await?;
        let mut response = Response::new(reply);
        let value = credential
            .parse()
            .map_err(|_| Status::internal("munge made a credential that is no text"))?;
        response.metadata_mut().insert(CREDENTIAL_KEY, value);
        response.metadata_mut().insert(PROTOCOL_KEY, PROTOCOL.into());
        Ok(response)
    }

    /// The harvester's credential over `digest`, that only `reader` can read.
    pub(crate) async fn sign(&self, digest: [u8; 32], reader: u32) -> Result<String, Status> {
        let authority = self.authority.clone();
        Ok(self.bounded(move || Ok(authority.sign(&digest, Some(reader))?)).await?)
    }

    /// Runs a call of munge on a thread that may wait, among a bounded number of them and for a bounded time. A thread
    /// that munged keeps waiting holds its place until libmunge gives up by itself.
    async fn bounded<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> Result<T, Unknown> + Send + 'static,
    ) -> Result<T, Unknown> {
        let threads = Arc::clone(&self.threads);
        let work = async move {
            let place = threads.acquire_owned().await.map_err(|_| Unknown::Stopping)?;
            let run = move || {
                let result = call();
                drop(place);
                result
            };
            tokio::task::spawn_blocking(run).await.map_err(|_| Unknown::Stopping)?
        };
        tokio::time::timeout(IDENTITY_BOUND, work).await.map_err(|_| Unknown::Late)?
    }

    fn refused(&self, method: &'static str, peer: Option<SocketAddr>, error: &Unknown) {
        let peer = peer.map_or_else(|| "an unknown address".into(), |peer| peer.to_string());
        tracing::warn!(method, %peer, %error, "identity refused");
        let Some(unrecorded) = self.count_refusal() else { return };
        let mut detail = format!("from {peer}: {error}");
        if unrecorded > 0 {
            detail += &format!("; {unrecorded} refusals before it were not recorded");
        }
        self.audit.refused(method, detail);
    }

    /// `None`: enough were recorded in this minute. Else how many were left out before.
    fn count_refusal(&self) -> Option<u64> {
        let mut refusals = self.refusals.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if refusals.since.elapsed() >= Duration::from_secs(60) {
            (refusals.since, refusals.recorded) = (Instant::now(), 0);
        }
        if refusals.recorded >= REFUSALS_A_MINUTE {
            refusals.unrecorded += 1;
            return None;
        }
        refusals.recorded += 1;
        Some(std::mem::take(&mut refusals.unrecorded))
    }
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("authority", &self.authority).finish_non_exhaustive()
    }
}

/// What a call's metadata and connection say about its sender, before any of it is believed.
pub(crate) struct Hello {
    credential: String,
    via: Via,
    peer: Option<SocketAddr>,
}

impl Hello {
    /// Reads the metadata, and refuses other protocol versions by name.
    pub(crate) fn read<T>(request: &Request<T>) -> Result<Self, Status> {
        check_protocol(request.metadata())?;
        let credential = request.metadata().get(CREDENTIAL_KEY).and_then(|text| text.to_str().ok());
        let Some(credential) = credential else {
            return Err(Status::unauthenticated(format!(
                "the call has no {CREDENTIAL_KEY:?} metadata: use Gleaner's client or command, or add a munge credential over the request's digest"
            )));
        };
        let peer = request.remote_addr();
        let (Some(from), Some(local)) = (peer, request.local_addr()) else {
            return Err(Status::internal("the connection has no addresses"));
        };
        let via = Via::Accepted { peer: from, local };
        Ok(Self { credential: credential.to_owned(), via, peer })
    }
}

fn check_protocol(metadata: &MetadataMap) -> Result<(), Status> {
    let said = metadata.get(PROTOCOL_KEY).and_then(|text| text.to_str().ok());
    match said.map(str::parse::<u32>) {
        Some(Ok(PROTOCOL)) => Ok(()),
        Some(Ok(other)) => Err(other_protocol(other)),
        _ => Err(Status::failed_precondition(format!(
            "the call's {PROTOCOL_KEY:?} metadata is missing or no number: this harvester speaks protocol {PROTOCOL}"
        ))),
    }
}

/// The refusal of a peer that speaks another protocol.
pub(crate) fn other_protocol(other: u32) -> Status {
    let older = if other < PROTOCOL { "the caller" } else { "the harvester" };
    Status::failed_precondition(format!(
        "the caller speaks protocol {other}, this harvester (version {}) protocol {PROTOCOL}: update {older}",
        env!("CARGO_PKG_VERSION")
    ))
}

/// Why a caller could not be identified.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(
        "munged did not answer within {} s: see whether it runs on the harvester's machine",
        IDENTITY_BOUND.as_secs()
    )]
    Late,
    #[error("the harvester is stopping: try again in a moment")]
    Stopping,
}

impl From<Unknown> for Status {
    fn from(unknown: Unknown) -> Self {
        let text = unknown.to_string();
        match unknown {
            Unknown::Identity(IdentityError::Munge(
                MungeError::NoDaemon { .. } | MungeError::Other { .. },
            ))
            | Unknown::Late
            | Unknown::Stopping => Self::unavailable(text),
            Unknown::Identity(_) => Self::unauthenticated(text),
        }
    }
}

fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}
