//! A caller's identity on one cluster: its key pair, and the way to the harvester.

use std::sync::Arc;

use ed25519_dalek::SigningKey;

use crate::{
    error::{AcquireError, ConnectError, HarvesterError},
    harvester::Harvester,
    options::Options,
    pool::Pool,
    request::Request,
};

/// A client of one cluster. Cheap to clone and to send to another thread.
#[derive(Clone)]
pub struct Client {
    harvester: Arc<Harvester>,
    identity: Arc<Identity>,
}

/// The key that this client's leases are bound to; it never leaves the process.
pub(crate) struct Identity {
    pub(crate) key: SigningKey,
}

impl Client {
    /// Makes the client's key and prepares its way to the harvester. Dials at the first request.
    pub fn connect(options: Options) -> Result<Self, ConnectError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(ConnectError::Random)?;
        let identity = Arc::new(Identity { key: SigningKey::from_bytes(&seed) });
        Ok(Self { harvester: Arc::new(Harvester::new(options)?), identity })
    }

    /// The harvester, for looking at the cluster.
    pub fn harvester(&self) -> &Harvester {
        &self.harvester
    }

    /// Leases nodes and attaches to them: at least the least number that is asked for, or none.
    pub fn acquire(&self, request: Request) -> Result<Pool, AcquireError> {
        Pool::acquire(self.harvester.clone(), self.identity.clone(), request)
    }
}

impl Identity {
    /// A fresh number for one request, so that a lost reply leases nothing twice.
    pub(crate) fn request_id(&self) -> Result<Vec<u8>, HarvesterError> {
        let mut id = vec![0; 16];
        getrandom::fill(&mut id).map_err(|error| HarvesterError::Refused {
            reason: format!("the system gives no random bytes: {error}"),
            code: "Internal".into(),
        })?;
        Ok(id)
    }
}
