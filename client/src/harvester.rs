//! The harvester's services as plain calls: used by [`crate::Client`] for leases and by the `gleaner` command for the rest.
//!
//! Each call signs its request, runs a current-thread runtime until the answer is there or its bound is over, and checks
//! that a lease's reply is the harvester's. Between calls nothing runs.

use std::{
    error::Error as _,
    net::{SocketAddr, ToSocketAddrs},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use gleaner_identity::{Authority, Via};
use gleaner_proto::{
    PROTOCOL,
    credential::{CREDENTIAL_KEY, PROTOCOL_KEY, reply_digest, request_digest},
    v1::{admin_client::AdminClient, cluster_client::ClusterClient, leases_client::LeasesClient},
};
use prost::Message;
use tokio::runtime::Runtime;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// The services' messages, as they travel.
pub use gleaner_proto::v1 as types;

use crate::{
    error::{ConnectError, HarvesterError},
    options::Options,
};

/// One harvester. Calls from several threads take turns.
pub struct Harvester {
    options: Options,
    authority: Authority,
    link: Mutex<Connection>,
}

struct Connection {
    // Declared first, dropped first: the channel's task lives in the runtime.
    channel: Channel,
    runtime: OwnRuntime,
}

/// A runtime that may be dropped inside another one.
struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.0.as_ref().expect("it is there until it is dropped").block_on(future)
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        // Dropping waits for blocking tasks, which tokio forbids there, and of which there are none.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a reply of [`types::leases_client`] must prove beyond having arrived.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// Nothing: it only shows the cluster.
    None,
    /// That the harvester made it: it names keys that the client will trust.
    Credential,
}

macro_rules! calls {
    ($($(#[$doc:meta])* $vis:vis $name:ident = $client:ident.$method:ident($request:ident) -> $reply:ident, $path:literal, $proof:expr;)*) => {
        impl Harvester {
            $($(#[$doc])* $vis fn $name(&self, request: types::$request) -> Result<types::$reply, HarvesterError> {
                self.call($path, request, $proof, async |channel, request| {
                    $client::new(channel).max_decoding_message_size(REPLY_MAX).$method(request).await
                })
            })*
        }
    };
}

calls! {
    /// The cluster at a glance.
    pub status = ClusterClient.get_status(GetStatusRequest) -> Status, "Cluster/GetStatus", Proof::None;
    /// Each node, and what Gleaner does with it.
    pub nodes = ClusterClient.list_nodes(ListNodesRequest) -> ListNodesReply, "Cluster/ListNodes", Proof::None;
    /// Live or ended leases.
    pub leases = ClusterClient.list_leases(ListLeasesRequest) -> ListLeasesReply, "Cluster/ListLeases", Proof::None;
    /// What was idle, harvested, leased and executing in a period.
    pub report = ClusterClient.get_report(GetReportRequest) -> Report, "Cluster/GetReport", Proof::None;
    /// Admins: vacate nodes and keep off them.
    pub drain = AdminClient.drain(DrainRequest) -> DrainReply, "Admin/Drain", Proof::None;
    /// Admins: drained nodes may be harvested again.
    pub resume = AdminClient.resume(ResumeRequest) -> ResumeReply, "Admin/Resume", Proof::None;
    /// Admins: the kill switch.
    pub switch_off = AdminClient.switch_off(SwitchOffRequest) -> SwitchReply, "Admin/SwitchOff", Proof::None;
    /// Admins: ends the kill switch.
    pub switch_on = AdminClient.switch_on(SwitchOnRequest) -> SwitchReply, "Admin/SwitchOn", Proof::None;
    /// Leases for this client's key.
    pub(crate) acquire = LeasesClient.acquire(AcquireRequest) -> AcquireReply, "Leases/Acquire", Proof::Credential;
    /// Leases given back.
    pub(crate) release = LeasesClient.release(ReleaseRequest) -> ReleaseReply, "Leases/Release", Proof::Credential;
}

/// Largest reply that is taken, in bytes: ten thousand nodes take about 2 MB.
const REPLY_MAX: usize = 64 << 20;

impl Harvester {
    pub(crate) fn new(options: Options) -> Result<Self, ConnectError> {
        let address = || ConnectError::Address { address: options.harvester.clone() };
        if !options.harvester.contains(':') {
            return Err(address());
        }
        let endpoint = Endpoint::from_shared(format!("http://{}", options.harvester))
            .map_err(|_| address())?
            .connect_timeout(options.connect_timeout)
            .tcp_nodelay(true);
        let authority = Authority::load(&options.auth)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ConnectError::Runtime)?;
        let entered = runtime.enter();
        let channel = endpoint.connect_lazy();
        drop(entered);
        let link = Mutex::new(Connection { channel, runtime: OwnRuntime(Some(runtime)) });
        Ok(Self { options, authority, link })
    }

    /// How it is reached.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    /// One call. A connection that broke while nobody was looking is dialled once more: every request is idempotent.
    fn call<Q, R, F>(
        &self,
        method: &'static str,
        request: Q,
        proof: Proof,
        send: F,
    ) -> Result<R, HarvesterError>
    where
        Q: Message + Clone,
        R: Message,
        F: AsyncFn(Channel, tonic::Request<Q>) -> Result<tonic::Response<R>, Status> + Sync,
    {
        let digest = request_digest(method, &request);
        let attempt = || outside_runtimes(|| self.once(method, &request, &digest, &send));
        let first = attempt();
        let reply = match first {
            Err(HarvesterError::Unreachable { .. }) => attempt(),
            other => other,
        }?;
        if proof == Proof::Credential {
            self.check(method, &digest, &reply)?;
        }
        Ok(reply.into_inner())
    }

    fn once<Q, R, F>(
        &self,
        method: &'static str,
        request: &Q,
        digest: &[u8; 32],
        send: &F,
    ) -> Result<tonic::Response<R>, HarvesterError>
    where
        Q: Message + Clone,
        F: AsyncFn(Channel, tonic::Request<Q>) -> Result<tonic::Response<R>, Status>,
    {
        let credential = self.authority.sign(digest, None)?;
        let mut request = tonic::Request::new(request.clone());
        let metadata = request.metadata_mut();
        metadata.insert(PROTOCOL_KEY, PROTOCOL.into());
        let credential = credential.parse().map_err(|_| HarvesterError::Refused {
            reason: "munge made a credential that is no ASCII text".into(),
            code: "Internal".into(),
        })?;
        metadata.insert(CREDENTIAL_KEY, credential);
        let waited = self.options.answer_timeout;
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = link.channel.clone();
        let answer = async { tokio::time::timeout(waited, send(channel, request)).await };
        match link.runtime.block_on(answer) {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(status)) => Err(self.refusal(method, &status)),
            Err(_) => Err(self.timed_out(method, waited)),
        }
    }

    fn timed_out(&self, method: &'static str, waited: Duration) -> HarvesterError {
        HarvesterError::TimedOut { address: self.options.harvester.clone(), method, waited }
    }

    /// A refusal comes from the harvester; a status with a source was made here, about the connection.
    fn refusal(&self, method: &'static str, status: &Status) -> HarvesterError {
        if status.source().is_none() {
            let reason = status.message().to_owned();
            return HarvesterError::Refused { reason, code: format!("{:?}", status.code()) };
        }
        if status.code() == tonic::Code::DeadlineExceeded {
            return self.timed_out(method, self.options.answer_timeout);
        }
        let mut detail = status.message().to_owned();
        let mut cause = status.source();
        while let Some(error) = cause {
            detail = error.to_string();
            cause = error.source();
        }
        HarvesterError::Unreachable { address: self.options.harvester.clone(), detail }
    }

    /// Whether the reply's credential is the harvester's, over this reply to this request.
    fn check<R: Message>(
        &self,
        method: &'static str,
        request: &[u8; 32],
        reply: &tonic::Response<R>,
    ) -> Result<(), HarvesterError> {
        let forged = |why: String| HarvesterError::Forged {
            address: self.options.harvester.clone(),
            method,
            why,
        };
        let credential = reply.metadata().get(CREDENTIAL_KEY).and_then(|value| value.to_str().ok());
        let credential = credential.ok_or_else(|| forged("it carries no credential".into()))?;
        let server = self.server().ok_or_else(|| forged("its address does not resolve".into()))?;
        let digest = reply_digest(request, reply.get_ref());
        let caller = self
            .authority
            .verify(credential, &digest, Via::Dialled { server })
            .map_err(|error| forged(error.to_string()))?;
        // In single-user mode the one user that `verify` takes is the caller's own.
        let trusted = match self.authority {
            Authority::Munge(_) => {
                caller.uid == 0 || self.options.harvester_uids.contains(&caller.uid)
            }
            Authority::SingleUser => true,
        };
        if trusted {
            Ok(())
        } else {
            Err(forged(format!(
                "uid {} made it, which is neither root nor the configured [harvester] user",
                caller.uid
            )))
        }
    }

    fn server(&self) -> Option<SocketAddr> {
        self.options.harvester.to_socket_addrs().ok()?.next()
    }
}

/// Runs it here, or, where the caller is inside a runtime of its own, in a thread that has ended when this returns: tokio
/// lets no runtime run inside another.
fn outside_runtimes<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    if tokio::runtime::Handle::try_current().is_err() {
        return work();
    }
    let joined = std::thread::scope(|scope| scope.spawn(work).join());
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
