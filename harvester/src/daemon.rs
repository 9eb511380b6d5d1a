//! The daemon assembled: state directory, store, driver, looker and server, started in this order and stopped in the
//! other. Used by `main` and by the tests, with any [`Slurm`].
//!
//! A stop or a kill tells executors nothing: they keep what they hold until their grants end, and a harvester that starts
//! again goes on from the store.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use gleaner_config::{Auth as AuthMode, Config};
use gleaner_identity::{Auth, Authority, IdentityError, LoopbackError, require_loopback};
use nix::unistd::geteuid;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
    task::JoinHandle,
};

use crate::{
    audit::Audit,
    driver::{Driver, Handle, Looker, Pace},
    grpc::{self, ServeError, Service, auth::Authenticator},
    policy::{self, PolicyError},
    slurm::Slurm,
    state_dir::{StateDir, StateDirError},
    store::{Opened, Store, StoreError},
    tune::STOP_BOUND,
};

/// A running harvester.
#[derive(Debug)]
pub struct Daemon {
    address: SocketAddr,
    driver: Handle,
    pace: watch::Sender<Pace>,
    stop_driver: oneshot::Sender<()>,
    stop_server: oneshot::Sender<()>,
    tasks: Tasks,
    // The lock: released when all else has ended.
    _state: StateDir,
}

#[derive(Debug)]
struct Tasks {
    driver: JoinHandle<()>,
    server: JoinHandle<Result<(), ServeError>>,
    writer: JoinHandle<()>,
}

/// Why the harvester does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateDirError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database is there, and takes nothing.
    #[error(
        "the harvester's term cannot be stored, so it must not serve: {0}; make room on the database's disk, or make it writable"
    )]
    NotStored(String),
    /// The policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// munge.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Single-user mode beyond loopback.
    #[error("harvester.listen: {0}")]
    Loopback(#[from] LoopbackError),
    /// Clients would refuse its replies.
    #[error(
        "this harvester runs as uid {own}, and harvester.user is {user:?}: clients would refuse its replies; start it as that user, or correct harvester.user"
    )]
    OtherUser {
        /// The configured user.
        user: String,
        /// This process's.
        own: u32,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; correct harvester.listen, or stop what uses it")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Daemon {
    /// Starts everything; what is wrong is said before anything serves.
    pub async fn start(config: &Config, slurm: impl Slurm) -> Result<Self, StartError> {
        let authority = authority(config)?;
        let policy = policy::policy(config)?;
        let state = StateDir::open(&config.harvester.state_dir)?;
        let key = state.signing_key()?;
        let listener = listen(config.harvester.listen).await?;
        let address = local_address(&listener, config)?;
        let Opened { store, restored, outcomes, writer } =
            Store::open(&config.database(), &state.file("journal")).await?;
        let (mut driver, mut inputs, ends) = Driver::new(policy, restored, store.clone(), outcomes);
        driver.begin(&mut inputs).await.map_err(StartError::NotStored)?;
        let (pace, paces) = watch::channel(pace(config));
        let service = Arc::new(Service {
            auth: Authenticator::new(authority, Audit::new(store.clone())),
            driver: ends.handle.clone(),
            store,
            key,
            cluster: config.cluster.name.clone(),
            executor_uid: executor_uid(config),
            began: Instant::now(),
        });
        let driver = tokio::spawn(driver.run(inputs));
        let looker = Looker { slurm, pace: paces, look_soon: ends.look_soon, looks: ends.looks };
        tokio::spawn(looker.run());
        let (stop_server, stopping) = oneshot::channel::<()>();
        let stopping = async {
            // Dropped means the same.
            let _ = stopping.await;
        };
        let server = tokio::spawn(grpc::serve(service, listener, stopping));
        let tasks = Tasks { driver, server, writer };
        let (driver, stop_driver) = (ends.handle, ends.stop);
        Ok(Self { address, driver, pace, stop_driver, stop_server, tasks, _state: state })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes the policy and the pace of a configuration that was read again; the rest needs a new start.
    pub async fn reload(&self, config: &Config) -> Result<(), PolicyError> {
        let policy = policy::policy(config)?;
        self.pace.send_replace(pace(config));
        if let Err(error) = self.driver.reconfigure(policy).await {
            tracing::error!(%error, "the configuration was not taken");
        }
        Ok(())
    }

    /// Returns when a part has ended that should not have; the text names it.
    pub async fn failed(&mut self) -> String {
        tokio::select! {
            ended = &mut self.tasks.driver => format!("the driver ended: {ended:?}"),
            ended = &mut self.tasks.server => format!("the server ended: {ended:?}"),
            ended = &mut self.tasks.writer => format!("the store's writer ended: {ended:?}"),
        }
    }

    /// Stops in order, with every acknowledged record written. Bounded.
    pub async fn stop(self) {
        let Self { stop_driver, stop_server, tasks, .. } = self;
        // Whoever has ended already needs no telling.
        let (_, _) = (stop_server.send(()), stop_driver.send(()));
        finish("driver", tasks.driver, STOP_BOUND).await;
        finish("server", tasks.server, STOP_BOUND).await;
        finish("store", tasks.writer, STOP_BOUND).await;
    }
}

async fn finish<T>(name: &str, mut task: JoinHandle<T>, bound: Duration) {
    if tokio::time::timeout(bound, &mut task).await.is_err() {
        tracing::warn!(part = name, "did not end in time, and is cut off");
        task.abort();
        let _ = task.await;
    }
}

fn authority(config: &Config) -> Result<Authority, StartError> {
    let auth = match config.cluster.auth {
        AuthMode::Munge => {
            require_user(&config.harvester.user)?;
            Auth::Munge { socket: config.cluster.munge_socket.clone() }
        }
        AuthMode::SingleUser => {
            require_loopback(config.harvester.listen)?;
            Auth::SingleUser
        }
    };
    Ok(Authority::load(&auth)?)
}

fn require_user(user: &str) -> Result<(), StartError> {
    let own = geteuid().as_raw();
    if own == 0 || policy::uid("harvester.user", user)? == own {
        return Ok(());
    }
    Err(StartError::OtherUser { user: user.into(), own })
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| StartError::Listen { address, source })
}

fn local_address(listener: &TcpListener, config: &Config) -> Result<SocketAddr, StartError> {
    let address = config.harvester.listen;
    listener.local_addr().map_err(|source| StartError::Listen { address, source })
}

/// The executor user's uid; a machine that does not know that user has only root's executors.
fn executor_uid(config: &Config) -> Option<u32> {
    match policy::uid("executor.user", &config.executor.user) {
        Ok(uid) => Some(uid),
        Err(error) => {
            tracing::warn!(%error, "only root's executors may register nodes for everybody");
            None
        }
    }
}

fn pace(config: &Config) -> Pace {
    Pace { period: config.slurm.poll, bound: config.slurm.timeout }
}
