//! A set of leases, and the calls that run on them.

use std::{
    cell::{Cell, OnceCell, RefCell, RefMut},
    io,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use gleaner_proto::v1::ReleaseRequest;

use crate::{
    calls::{Calls, Opened},
    client::Identity,
    dial::Transport,
    error::{AcquireError, AttachError, FunctionError, HarvesterError, JoinError},
    event::{PoolEvent, PoolStats},
    function::Function,
    harvester::Harvester,
    keepalive::Renewer,
    library::Library,
    local::LocalFunction,
    reactor::Reactor,
    request::{KeepAlive, Request, Waiting},
    share::Share,
    tune::DETACH_BOUND,
};

/// Leases on one to many nodes. One thread at a time uses a pool; threads that call side by side hold a pool each.
pub struct Pool {
    pub(crate) calls: RefCell<Calls>,
    /// There once somebody asked for the pool's descriptor.
    pub(crate) reactor: OnceCell<Reactor>,
    /// Room for the wakers that are about to be woken, kept from one time to the next.
    pub(crate) woken: Cell<Vec<Waker>>,
}

/// One live lease of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    /// Its number.
    pub lease_id: u64,
    /// The node.
    pub node: String,
    /// Cores, hence lanes.
    pub cores: u32,
    /// How its calls travel.
    pub transport: Transport,
    /// For how long it is safe, as far as is known.
    pub safe_for: Duration,
}

impl Pool {
    pub(crate) fn acquire(
        harvester: Arc<Harvester>,
        identity: Arc<Identity>,
        request: Request,
    ) -> Result<Self, AcquireError> {
        let mut calls = Calls::new(harvester, identity, request);
        calls.start_renewer().map_err(|error| {
            AcquireError::Request(format!("the renewing thread could not start: {error}"))
        })?;
        calls.first_leases()?;
        Ok(Self::new(calls))
    }

    pub(crate) fn join(
        harvester: Arc<Harvester>,
        share: &Share,
        request: Request,
    ) -> Result<Self, JoinError> {
        let mut calls = Calls::new(harvester, share.identity.clone(), share.request(request));
        calls.start_renewer().map_err(JoinError::Renewer)?;
        calls.join(share)?;
        Ok(Self::new(calls))
    }

    fn new(calls: Calls) -> Self {
        Self { calls: RefCell::new(calls), reactor: OnceCell::new(), woken: Cell::default() }
    }

    /// The live leases, for other pools to [join](crate::Client::join): of other threads, or of other processes. Leases that this
    /// pool gets later take the places of those that it lost, for all; share before, and keep the pool until others have joined.
    pub fn share(&self) -> Share {
        let mut calls = self.calls();
        calls.relocation.shared = true;
        let live = calls.sessions.iter().flatten().filter(|open| open.closing.is_none());
        let seats = live.map(|open| (open.seat, open.lease.clone())).collect();
        Share::new(calls.identity.clone(), &calls.request, seats)
    }

    /// A function of a library, uploaded where it is not yet and opened on every node of the pool, later ones too.
    pub fn function(&self, library: &Library, name: &str) -> Result<Function<'_>, FunctionError> {
        let index = self.calls().open(library, name)?;
        Ok(Function::new(self, index))
    }

    /// The live leases.
    pub fn leases(&self) -> Vec<LeaseView> {
        let now = Instant::now();
        let calls = self.calls();
        let live = calls.sessions.iter().flatten().filter(|open| open.closing.is_none());
        live.map(|open| LeaseView {
            lease_id: open.lease.lease_id,
            node: open.lease.node.clone(),
            cores: open.lease.cores,
            transport: open.transport,
            safe_for: open.safe_until.saturating_duration_since(now),
        })
        .collect()
    }

    /// Waits in another way from now on, and so do the workers of every lease; leases to come too.
    pub fn set_waiting(&self, waiting: Waiting) {
        self.calls().set_waiting(waiting);
    }

    /// Renews every lease for another `ttl` from now; returns the shortest time that all of them are safe for.
    pub fn renew(&self, ttl: Duration) -> Result<Duration, AttachError> {
        let mut calls = self.calls();
        for open in calls.sessions.iter_mut().flatten() {
            open.renew(ttl)?;
        }
        let now = Instant::now();
        let safe = calls.sessions.iter().flatten().map(|open| open.safe_until);
        Ok(safe.min().unwrap_or(now).saturating_duration_since(now))
    }

    /// What happened so far, oldest first, at most [`crate::EVENTS_MAX`]; the list starts anew.
    pub fn events(&self) -> Vec<PoolEvent> {
        self.calls().events.drain(..).collect()
    }

    /// What was done so far.
    pub fn stats(&self) -> PoolStats {
        self.calls().stats
    }

    /// Gives every lease back: it ends, unless other pools share it, which end it with the last of them. Calls under way are given
    /// up. Dropping the pool does the same and tells no error.
    pub fn release(self) -> Result<(), HarvesterError> {
        self.calls().give_back()
    }

    /// The calls, for one operation. A caller's closure that comes back in here is a bug of the caller.
    #[inline]
    #[track_caller]
    pub(crate) fn calls(&self) -> RefMut<'_, Calls> {
        // It may take answers and wake-ups that others wait for: they look again.
        self.ring();
        self.calls.borrow_mut()
    }

    /// Makes the pool's descriptor readable, if there is one.
    #[inline]
    pub(crate) fn ring(&self) {
        if let Some(reactor) = self.reactor.get() {
            reactor.ring();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Leases that could not be given back expire by themselves.
        let _ = self.calls.get_mut().give_back();
    }
}

impl Calls {
    /// Opens a function on every lease, and waits for a lease if there is none now. Returns its number in the pool.
    fn open(&mut self, library: &Library, name: &str) -> Result<u32, FunctionError> {
        let same = |known: &Opened| known.name == name && known.library.hash() == library.hash();
        if let Some(known) = self.functions.iter().position(same) {
            return Ok(known as u32);
        }
        let index = self.functions.len();
        let until = Instant::now() + self.request.patience;
        let mut local = None;
        loop {
            self.await_lease(until);
            if self.relocation.local {
                local = Some(LocalFunction::open(library, name).map_err(|message| {
                    let (name, node) = (name.into(), "this process".into());
                    FunctionError::Refused { name, node, message }
                })?);
            }
            for session in 0..self.sessions.len() {
                if let Err(error) = self.open_function(session, library, name) {
                    let open = self.sessions.iter_mut().flatten();
                    open.for_each(|open| open.functions.truncate(index));
                    return Err(error);
                }
            }
            if self.live() > 0 || self.relocation.local {
                break;
            }
            if Instant::now() >= until {
                return Err(FunctionError::NoLease(self.relocation.why().to_owned()));
            }
        }
        self.functions.push(Opened { library: library.clone(), name: name.into(), local });
        Ok(index as u32)
    }

    /// Opens a function in one session. A session that is lost meanwhile is replaced later, like any other.
    fn open_function(
        &mut self,
        session: usize,
        library: &Library,
        name: &str,
    ) -> Result<(), FunctionError> {
        let Some(open) = self.sessions[session].as_mut().filter(|open| open.closing.is_none())
        else {
            return Ok(());
        };
        match open.open(library, name) {
            Ok(()) => Ok(()),
            Err(AttachError::Refused { message }) => Err(FunctionError::Refused {
                name: name.into(),
                node: open.lease.node.clone(),
                message,
            }),
            Err(lost) => {
                self.evict(session, None, &lost.to_string());
                Ok(())
            }
        }
    }

    fn start_renewer(&mut self) -> io::Result<()> {
        if self.request.keep_alive == KeepAlive::Background {
            self.renewer = Some(Renewer::start(self.request.ttl)?);
        }
        Ok(())
    }

    /// Says goodbye to every executor; what does not answer is given back through the harvester, unless others may use it: then
    /// the executor finds this pool gone.
    fn give_back(&mut self) -> Result<(), HarvesterError> {
        self.renewer = None;
        let until = Instant::now() + DETACH_BOUND;
        let mut lease_ids = Vec::new();
        for open in std::mem::take(&mut self.sessions).into_iter().flatten() {
            let lease_id = open.lease.lease_id;
            if !open.release(until) && !self.relocation.shared {
                lease_ids.push(lease_id);
            }
        }
        if !lease_ids.is_empty() {
            self.harvester.release(ReleaseRequest { lease_ids })?;
        }
        Ok(())
    }
}
