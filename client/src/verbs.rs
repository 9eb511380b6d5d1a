//! This process's RDMA port, opened when a session first asks for it, and its way to one executor's.

use std::sync::{Mutex, PoisonError};

use gleaner_fabric::{
    Geometry,
    rdma::{Adapter, Gid, RdmaError, Settings, Unconnected},
};
use gleaner_proto::endpoint::Address;
use prost::bytes::Bytes;

/// The port that these settings name. Opening one takes milliseconds, so it stays open for as long as the process lives, or
/// until it fails; another setting opens another.
pub(crate) fn adapter(settings: &Settings) -> Result<Adapter, RdmaError> {
    static OPEN: Mutex<Option<(Settings, Adapter)>> = Mutex::new(None);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((known, adapter)) = &*open
        && known == settings
        && adapter.device.fault(adapter.port.number).is_none()
    {
        return Ok(adapter.clone());
    }
    let adapter = Adapter::open(settings)?;
    *open = Some((settings.clone(), adapter.clone()));
    Ok(adapter)
}

/// From which of our addresses an executor's workers may be reached.
pub(crate) struct Way {
    adapter: Adapter,
    gid: Gid,
}

impl Way {
    /// The best, if there is one. Addresses of later versions are passed over.
    pub(crate) fn new(adapter: Adapter, theirs: &[Bytes]) -> Result<Self, RdmaError> {
        let theirs: Vec<_> =
            theirs.iter().filter_map(|bytes| Address::decode(bytes).ok()).collect();
        let gid = adapter.gid_for(&theirs)?;
        Ok(Self { adapter, gid })
    }

    /// One end of a lane's link.
    pub(crate) fn prepare(&self, geometry: Geometry) -> Result<Unconnected, RdmaError> {
        self.adapter.prepare(self.gid, geometry)
    }
}
