//! What the configuration says of RDMA, for the agent, which advertises it, and the workers, which serve it.
#![forbid(unsafe_code)]

use gleaner_config::Config;
use gleaner_fabric::rdma::{Settings, Timers};
use gleaner_proto::endpoint::Mtu;

/// `None`: it is off.
pub(crate) fn settings(config: &Config) -> Option<Settings> {
    let rdma = &config.rdma;
    config.executor.rdma.then(|| Settings {
        device: rdma.device.clone(),
        mtu_max: Mtu::within(rdma.mtu),
        timers: Timers::new(rdma.answer_timeout, rdma.retries, rdma.no_room_pause),
    })
}
