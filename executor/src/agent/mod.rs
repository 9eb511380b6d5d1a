//! The agent: the executor's unprivileged, networked half. Started by the keeper, which alone starts and kills workers.
//!
//! ```text
//!   harvester ◀── uplink ──┐                       ┌── connection ◀── clients (TCP, local socket)
//!                          ├──▶ node (one owner) ◀─┤
//!   keeper ◀── orders ─────┘   holder, leases      └── workers (one listener each)
//! ```
//!
//! [`node`] decides; everything else moves bytes. It admits tokens offline ([`admission`]), keeps each lease's sessions,
//! functions and verdicts ([`lease`]), takes libraries ([`uploads`]) and reports what is used ([`report`], [`meter`]).
//! Runs on one thread; never runs user code, never kills.

mod admission;
mod clock;
mod connection;
mod functions;
mod harvester;
mod lease;
mod meter;
mod node;
mod notices;
mod outbox;
mod report;
mod tune;
mod uplink;
mod uploads;
mod workers;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use ed25519_dalek::SigningKey;
use gleaner_config::{Config, LogFormat};
use gleaner_fabric::rdma::Adapter;
use gleaner_identity::{Auth, Authority, IdentityError};
use gleaner_lease::holder::{Holder, Identity};
use gleaner_proto::{PROTOCOL, control::LIBRARY_MAX, v1::Register};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::{Semaphore, mpsc},
};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::keeper::{ipc::Inherited, journal};
use connection::Shared;
use node::Node;
use report::Reports;
use uplink::Uplink;
use uploads::Libraries;

/// Why the agent cannot start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The keeper is gone, or speaks another version: leases cannot be enforced without it.
    #[error("the keeper is lost ({0}): the executor must be restarted")]
    Keeper(#[source] io::Error),
    /// The clients' address cannot be listened on.
    #[error("cannot listen on {address} for clients: {source}: correct [executor] listen")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// It cannot prove who it is.
    #[error("cannot prove who this executor is: {0}")]
    Identity(#[from] IdentityError),
    /// The system gives no randomness, hence no key.
    #[error("cannot make the executor's key: the system gives no random bytes")]
    Random,
    /// Something else of the system's.
    #[error("the agent cannot go on: {0}")]
    Io(#[from] io::Error),
}

/// Serves until the keeper ends it. The agent of one node, in a process of its own.
pub fn run(inherited: Inherited, config: &Config) -> Result<(), AgentError> {
    log(&config.log);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(inherited, config))
}

/// To standard error, which is the keeper's. A filter that cannot be read logs what is usual.
fn log(config: &gleaner_config::Log) {
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match config.format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

async fn serve(inherited: Inherited, config: &Config) -> Result<(), AgentError> {
    let listener = listen(config, inherited.single_user).await?;
    let address = advertised(config, &inherited, listener.local_addr()?);
    let local = std::os::unix::net::UnixListener::from(inherited.local_listener.try_clone()?);
    local.set_nonblocking(true)?;
    let local = UnixListener::from_std(local)?;
    let key = SigningKey::from_bytes(&random()?);
    let (inputs, received) = mpsc::channel(tune::INPUTS_MAX);
    let shared = Arc::new(Shared {
        key,
        libraries: Mutex::new(Libraries::new(config.executor.libraries_max.0)),
        library_max: LIBRARY_MAX.min(config.executor.libraries_max.0),
        inputs: inputs.clone(),
        greetings: Arc::new(Semaphore::new(tune::GREETINGS_MAX)),
    });
    let (adapter, without) = adapter(config);
    let mut inherited = inherited;
    inherited.limitations.extend(without);
    let uplink = Uplink {
        harvester: config.harvester.address.clone(),
        authority: Authority::load(&auth(config))?,
        harvester_uids: harvester_uids(config),
        register: register(&inherited, &shared, &address)?,
        inputs,
    };
    info!(node = %inherited.node, address, "agent serves");
    let identity = Identity::new(&inherited.node, clock::boot_id()?, config.policy.lease_ttl_max);
    let reports = Reports::new(journal::Reader::open(&inherited.run_dir)?);
    let single_uid = inherited.single_user.then(|| nix::unistd::getuid().as_raw());
    let node = Node::new(
        Holder::new(identity),
        inherited.keeper,
        shared.clone(),
        reports,
        &config.executor,
        single_uid,
        adapter,
    )?;
    tokio::spawn(connection::listen_tcp(listener, shared.clone()));
    tokio::spawn(connection::listen_local(local, shared));
    tokio::spawn(uplink.run());
    node.run(received).await
}

/// The RDMA device, if it is to be used; else in a sentence why not, where that is a lack.
fn adapter(config: &Config) -> (Option<Adapter>, Option<String>) {
    match crate::rdma::settings(config).map(|settings| Adapter::open(&settings)) {
        None => (None, None),
        Some(Ok(adapter)) => (Some(adapter), None),
        Some(Err(error)) => {
            warn!(%error, "executor.rdma is on");
            (None, Some(error.to_string()))
        }
    }
}

/// Without munge nobody is told apart over the network: loopback only.
async fn listen(config: &Config, single_user: bool) -> Result<TcpListener, AgentError> {
    let address = config.executor.listen;
    let failed = |source| AgentError::Listen { address, source };
    if single_user
        && config.cluster.auth == gleaner_config::Auth::SingleUser
        && !address.ip().is_loopback()
    {
        let why = "auth = \"single-user\" listens on loopback only";
        return Err(failed(io::Error::new(io::ErrorKind::PermissionDenied, why)));
    }
    TcpListener::bind(address).await.map_err(failed)
}

/// "host:port" for clients: as configured, else the node's own name.
fn advertised(config: &Config, inherited: &Inherited, bound: SocketAddr) -> String {
    let port = bound.port();
    match &config.executor.advertise {
        Some(address) if address.contains(':') => address.clone(),
        Some(host) => format!("{host}:{port}"),
        None if bound.ip().is_unspecified() => format!("{}:{port}", inherited.node),
        None => bound.to_string(),
    }
}

fn register(inherited: &Inherited, shared: &Shared, address: &str) -> Result<Register, AgentError> {
    let local_socket = inherited.run_dir.join("agent.sock");
    Ok(Register {
        protocol: PROTOCOL,
        node: inherited.node.to_string(),
        executor_public_key: shared.key.verifying_key().to_bytes().to_vec().into(),
        address: address.to_owned(),
        local_socket: local_socket.to_string_lossy().into_owned(),
        boot_id: clock::boot_id()?.0.to_vec().into(),
        instance: random::<16>()?.to_vec().into(),
        cores: inherited.cores,
        memory_bytes: inherited.memory_bytes,
        single_user: inherited.single_user,
        uid: nix::unistd::getuid().as_raw(),
        limitations: inherited.limitations.clone(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    })
}

fn auth(config: &Config) -> Auth {
    match config.cluster.auth {
        gleaner_config::Auth::Munge => Auth::Munge { socket: config.cluster.munge_socket.clone() },
        gleaner_config::Auth::SingleUser => Auth::SingleUser,
    }
}

fn harvester_uids(config: &Config) -> Vec<u32> {
    let user = nix::unistd::User::from_name(&config.harvester.user).ok().flatten();
    user.map(|user| user.uid.as_raw()).into_iter().collect()
}

fn random<const N: usize>() -> Result<[u8; N], AgentError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|_| AgentError::Random)?;
    Ok(bytes)
}
