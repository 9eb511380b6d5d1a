//! A set of leases, and the calls that run on them.

use std::{sync::Arc, time::Duration};

use crate::{
    error::{AcquireError, AttachError, FunctionError, HarvesterError},
    event::{PoolEvent, PoolStats},
    function::Function,
    harvester::Harvester,
    library::Library,
    request::Request,
};

/// Leases on one to many nodes. One thread at a time uses a pool; threads that call side by side hold a pool each.
pub struct Pool {}

/// One live lease of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseView {
    /// Its number.
    pub lease_id: u64,
    /// The node.
    pub node: String,
    /// Cores, hence lanes.
    pub cores: u32,
    /// For how long it is safe, as far as is known.
    pub safe_for: Duration,
}

/// A call's place in its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallKey {}

impl Pool {
    pub(crate) fn acquire(
        harvester: Arc<Harvester>,
        request: Request,
    ) -> Result<Self, AcquireError> {
        let _ = (harvester, request);
        unimplemented!()
    }

    /// A function of a library, uploaded where it is not yet and opened on every node of the pool, later ones too.
    pub fn function(&self, library: &Library, name: &str) -> Result<Function<'_>, FunctionError> {
        let _ = (library, name);
        Ok(Function::new(self, 0))
    }

    /// The live leases.
    pub fn leases(&self) -> Vec<LeaseView> {
        unimplemented!()
    }

    /// Renews every lease for another `ttl` from now; returns the shortest time that all of them are safe for.
    pub fn renew(&self, ttl: Duration) -> Result<Duration, AttachError> {
        let _ = ttl;
        unimplemented!()
    }

    /// What happened so far, oldest first, at most [`crate::EVENTS_MAX`]; the list starts anew.
    pub fn events(&self) -> Vec<PoolEvent> {
        unimplemented!()
    }

    /// What was done so far.
    pub fn stats(&self) -> PoolStats {
        unimplemented!()
    }

    /// Gives every lease back. Calls under way are given up. Dropping the pool does the same and tells no error.
    pub fn release(self) -> Result<(), HarvesterError> {
        unimplemented!()
    }
}
