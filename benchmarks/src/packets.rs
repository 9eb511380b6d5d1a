//! Packets that a device has sent, by its own count: what a round trip costs on any device, however fast. Acknowledgements are
//! among them.

use std::{fs, path::PathBuf};

use anyhow::Result;
use gleaner_fabric::rdma::Device;

use crate::stage::Trips;

/// Where drivers count: Soft-RoCE's packets, and those of InfiniBand ports.
const COUNTERS: [&str; 2] = ["hw_counters/sent_pkts", "counters/port_xmit_packets"];

/// Round trips of the shorter and the longer count.
const FEW: u64 = 2;
const MANY: u64 = 12;

/// A device's counter.
#[derive(Debug)]
pub struct Packets(PathBuf);

impl Packets {
    /// The counter of the port that everything here uses; `None` if there is none.
    pub fn find() -> Result<Option<Self>> {
        let (device, port) = Device::open_active()?;
        let directory = PathBuf::from("/sys/class/infiniband").join(device.name());
        let directory = directory.join(format!("ports/{}", port.number));
        let found = COUNTERS.iter().map(|name| directory.join(name)).find(|path| path.is_file());
        Ok(found.map(Self))
    }

    /// How many one round trip sends: what more of them send, divided by how many more they are.
    pub fn per_trip(&self, mut round: impl FnMut(Trips) -> Result<()>) -> Result<f64> {
        let mut sent = |trips: u64| {
            let before = self.sent()?;
            round(Trips { warm_up: 0, counted: trips })?;
            anyhow::Ok(self.sent()? - before)
        };
        let (few, many) = (sent(FEW)?, sent(MANY)?);
        Ok(many.saturating_sub(few) as f64 / (MANY - FEW) as f64)
    }

    fn sent(&self) -> Result<u64> {
        Ok(fs::read_to_string(&self.0)?.trim().parse()?)
    }
}
