//! A caller on one cluster: the way to the harvester, and from there to pools.

use std::sync::Arc;

use ed25519_dalek::SigningKey;

use crate::{
    error::{AcquireError, ConnectError, HarvesterError, JoinError},
    harvester::Harvester,
    options::Options,
    pool::Pool,
    request::Request,
    share::Share,
};

/// A client of one cluster. Cheap to clone and to send to another thread.
#[derive(Clone)]
pub struct Client {
    harvester: Arc<Harvester>,
}

/// The key that a pool's leases are bound to. Each pool that acquires makes one of its own, so that what it shares opens its own
/// leases alone; it leaves the process in a [`Share`] only.
pub(crate) struct Identity {
    pub(crate) key: SigningKey,
}

impl Client {
    /// Prepares the way to the harvester. Dials at the first request.
    pub fn connect(options: Options) -> Result<Self, ConnectError> {
        Ok(Self { harvester: Arc::new(Harvester::new(options)?) })
    }

    /// The harvester, for looking at the cluster.
    pub fn harvester(&self) -> &Harvester {
        &self.harvester
    }

    /// Leases nodes and attaches to them: at least the least number that is asked for, or none.
    pub fn acquire(&self, request: Request) -> Result<Pool, AcquireError> {
        Pool::acquire(self.harvester.clone(), Identity::new()?, request)
    }

    /// Another pool on leases that exist: a session of its own with each executor, beside those of the pool that shared them. Of
    /// `request` counts how calls travel and wait; cores, memory, time and account of the leases are the share's.
    ///
    /// It needs one of them at least; those that have ended meanwhile are left out. Each pool renews the leases, and moves its own
    /// calls after an eviction: all meet again on the lease that the first of them gets. A lease ends when the last pool on it is
    /// released or dropped.
    pub fn join(&self, share: &Share, request: Request) -> Result<Pool, JoinError> {
        Pool::join(self.harvester.clone(), share, request)
    }
}

impl Identity {
    fn new() -> Result<Arc<Self>, HarvesterError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(HarvesterError::Random)?;
        Ok(Arc::new(Self { key: SigningKey::from_bytes(&seed) }))
    }

    /// A fresh number for a pool's first request, so that a lost reply leases nothing twice.
    pub(crate) fn request_id() -> Result<Vec<u8>, HarvesterError> {
        let mut id = vec![0; 16];
        getrandom::fill(&mut id).map_err(HarvesterError::Random)?;
        Ok(id)
    }
}
