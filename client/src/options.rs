//! Where the harvester is and how to speak to it, resolved once from the configuration.

use std::time::Duration;

use gleaner_config::Config;
use gleaner_fabric::rdma::{Settings, Timers};
use gleaner_identity::Auth;
use gleaner_proto::endpoint::Mtu;

/// How a client reaches its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The harvester, "host:port".
    pub harvester: String,
    /// How callers prove who they are.
    pub auth: Auth,
    /// The uids whose credential counts as the harvester's. Root always does.
    pub harvester_uids: Vec<u32>,
    /// Bound of dialling the harvester or an executor.
    pub connect_timeout: Duration,
    /// Bound of one answer of the harvester or an executor.
    pub answer_timeout: Duration,
    /// The RDMA device, and how its connections try.
    pub rdma: Settings,
}

impl Default for Options {
    fn default() -> Self {
        Self::from(&Config::default())
    }
}

impl From<&Config> for Options {
    fn from(config: &Config) -> Self {
        let auth = match config.cluster.auth {
            gleaner_config::Auth::Munge => {
                Auth::Munge { socket: config.cluster.munge_socket.clone() }
            }
            gleaner_config::Auth::SingleUser => Auth::SingleUser,
        };
        let user = nix::unistd::User::from_name(&config.harvester.user);
        Self {
            harvester: config.harvester.address.clone(),
            auth,
            harvester_uids: user.ok().flatten().map(|user| user.uid.as_raw()).into_iter().collect(),
            connect_timeout: config.client.connect_timeout,
            answer_timeout: config.client.timeout,
            rdma: Settings {
                device: config.rdma.device.clone(),
                mtu_max: Mtu::within(config.rdma.mtu),
                timers: Timers::new(
                    config.rdma.answer_timeout,
                    config.rdma.retries,
                    config.rdma.no_room_pause,
                ),
            },
        }
    }
}
