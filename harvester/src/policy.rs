//! The core's policy from the configuration: hostlists expanded, users looked up. Called at start and by each reload.

use gleaner_config::{Config, Mode};
use gleaner_harvester_core::policy::{self, Policy};
use gleaner_proto::{
    hostlist::{self, BadHostlist},
    ids::Uid,
};
use nix::unistd::{User, geteuid};

use crate::tune::PICTURE_AGE_MIN;

/// Why the configuration makes no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Not a hostlist.
    #[error("policy.nodes: {0}")]
    Nodes(#[from] BadHostlist),
    /// Nobody of that name.
    #[error(
        "{key} names user {user:?}, whom this machine does not know: correct it, or take it out"
    )]
    User {
        /// Where.
        key: &'static str,
        /// Who.
        user: String,
    },
}

/// What the site allows.
pub(crate) fn policy(config: &Config) -> Result<Policy, PolicyError> {
    let set = &config.policy;
    let mut nodes = std::collections::BTreeSet::new();
    for list in &set.nodes {
        nodes.extend(hostlist::expand(list)?);
    }
    let named = set.admins.iter().map(|user| uid("policy.admins", user).map(Uid));
    // Who could kill this process may as well ask it to stop: without root that is the one user it serves.
    let own = std::iter::once(Ok(Uid(geteuid().as_raw())));
    let looks = config.slurm.poll * 3 + config.slurm.timeout;
    Ok(Policy {
        mode: match set.mode {
            Mode::Observe => policy::Mode::Observe,
            Mode::Enforce => policy::Mode::Enforce,
        },
        partitions: set.partitions.iter().cloned().collect(),
        nodes,
        features: set.features.iter().cloned().collect(),
        min_idle: set.min_idle,
        reserve_nodes: set.reserve_nodes,
        grant_ttl: set.grant_ttl,
        heartbeat: config.harvester.heartbeat,
        lease_ttl_max: set.lease_ttl_max,
        picture_max_age: looks.max(PICTURE_AGE_MIN),
        cores_per_user: set.cores_per_user,
        leases_per_user: set.leases_per_user,
        accounts: set.accounts.iter().cloned().collect(),
        admins: named.chain(own).collect::<Result<_, _>>()?,
        ..Policy::default()
    })
}

/// The uid of a name, or of a number as a text.
pub(crate) fn uid(key: &'static str, user: &str) -> Result<u32, PolicyError> {
    if let Ok(uid) = user.parse() {
        return Ok(uid);
    }
    let found = User::from_name(user).ok().flatten();
    found
        .map(|found| found.uid.as_raw())
        .ok_or_else(|| PolicyError::User { key, user: user.into() })
}

#[cfg(test)]
mod tests {
    use gleaner_proto::ids::NodeName;

    use super::*;

    #[test]
    fn lists_are_expanded_and_admins_looked_up() {
        let mut config = Config::default();
        config.policy.nodes = vec!["n[1-3]".into(), "login".into()];
        config.policy.admins = vec!["root".into(), "4711".into()];
        let policy = policy(&config).unwrap();
        assert_eq!(policy.nodes.len(), 4);
        assert!(policy.nodes.contains(&NodeName::new("n2").unwrap()));
        assert_eq!(policy.admins, [Uid(0), Uid(4711), Uid(geteuid().as_raw())].into());
    }

    #[test]
    fn an_unknown_admin_is_named() {
        let mut config = Config::default();
        config.policy.admins = vec!["nobody-of-this-name".into()];
        let error = policy(&config).unwrap_err();
        assert!(error.to_string().contains("nobody-of-this-name"), "{error}");
    }
}
