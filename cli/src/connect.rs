//! From the configuration to a client.

use gleaner::{Client, Options};
use gleaner_config::{Config, Loaded, Sources};

use crate::{arguments::Common, exit::Failure};

/// Reads the configuration that the flags and the environment name.
pub(crate) fn load(common: &Common) -> Result<Loaded, Failure> {
    Ok(Sources::from_process(common.config.clone(), common.set.clone()).load()?)
}

/// A client of the configured cluster, and the configuration.
pub(crate) fn client(common: &Common) -> Result<(Client, Config), Failure> {
    let config = load(common)?.config;
    Ok((Client::connect(Options::from(&config))?, config))
}
