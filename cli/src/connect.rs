//! From the configuration to a client.

use gleaner::{Client, Options};
use gleaner_config::{Auth, Config, Loaded, Sources};
use nix::unistd::User;

use crate::{arguments::Common, exit::Failure};

/// Reads the configuration that the flags and the environment name.
pub(crate) fn load(common: &Common) -> Result<Loaded, Failure> {
    Ok(Sources::from_process(common.config.clone(), common.set.clone()).load()?)
}

/// How a client reaches the configured cluster.
pub(crate) fn options(config: &Config) -> Options {
    let user = User::from_name(&config.harvester.user).ok().flatten();
    Options {
        harvester: config.harvester.address.clone(),
        auth: match config.cluster.auth {
            Auth::Munge => gleaner_identity::Auth::Munge {
                socket: config.cluster.munge_socket.clone(),
            },
            Auth::SingleUser => gleaner_identity::Auth::SingleUser,
        },
        harvester_uids: user.map(|user| user.uid.as_raw()).into_iter().collect(),
        connect_timeout: config.client.connect_timeout,
        answer_timeout: config.client.timeout,
    }
}

/// A client of the configured cluster, and the configuration.
pub(crate) fn client(common: &Common) -> Result<(Client, Config), Failure> {
    let config = load(common)?.config;
    Ok((Client::connect(options(&config))?, config))
}
