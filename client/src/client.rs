//! A caller's identity on one cluster: its key pair, its credentials, and the way to the harvester.

use std::sync::Arc;

use crate::{
    error::{AcquireError, ConnectError},
    harvester::Harvester,
    options::Options,
    pool::Pool,
    request::Request,
};

/// A client of one cluster. Cheap to clone and to send to another thread.
#[derive(Clone)]
pub struct Client {
    harvester: Arc<Harvester>,
}

impl Client {
    /// Makes the client's key and prepares its way to the harvester. Dials at the first request.
    pub fn connect(options: Options) -> Result<Self, ConnectError> {
        Ok(Self {
            harvester: Arc::new(Harvester::new(options)?),
        })
    }

    /// The harvester, for looking at the cluster.
    pub fn harvester(&self) -> &Harvester {
        &self.harvester
    }

    /// Leases nodes and attaches to them: at least the least number that is asked for, or none.
    pub fn acquire(&self, request: Request) -> Result<Pool, AcquireError> {
        Pool::acquire(self.harvester.clone(), request)
    }
}
