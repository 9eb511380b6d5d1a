//! What a site allows: which nodes may be taken, when, by whom and for how long. By default nothing.
//!
//! The daemon fills [`Policy`] from the configuration, with names expanded and users resolved; `judge` applies it.

use std::{collections::BTreeSet, time::Duration};

use gleaner_proto::ids::{NodeName, Uid};

use crate::picture::NodeView;

/// Whether anything is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Watch and record; grant nothing.
    #[default]
    Observe,
    /// Take what is opted in.
    Enforce,
}

impl Mode {
    /// The configuration's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

/// How leases are laid onto nodes that fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// Fill nodes that are already in use first: fewer leases meet a batch job.
    #[default]
    Pack,
    /// Emptiest nodes first: more memory bandwidth each.
    Spread,
}

/// Everything that a site decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Observe or enforce.
    pub mode: Mode,
    /// Partitions whose nodes are opted in.
    pub partitions: BTreeSet<String>,
    /// Nodes that are opted in, expanded.
    pub nodes: BTreeSet<NodeName>,
    /// Features that opt a node in.
    pub features: BTreeSet<String>,
    /// How long a node must have been idle.
    pub min_idle: Duration,
    /// Idle nodes of each partition that are left free.
    pub reserve_nodes: u32,
    /// A grant's length.
    pub grant_ttl: Duration,
    /// How often executors are told to send a heartbeat.
    pub heartbeat: Duration,
    /// The longest lease.
    pub lease_ttl_max: Duration,
    /// How long before a planned job's start a grant ends.
    pub planned_margin: Duration,
    /// A picture older than this is not acted upon: no lease, no renewed grant.
    pub picture_max_age: Duration,
    /// How long a hook's word holds a node that Slurm keeps calling idle, if its job never shows.
    pub hold_max: Duration,
    /// How leases are laid.
    pub placement: Placement,
    /// Cores that one user may lease at a time.
    pub cores_per_user: Option<u32>,
    /// Leases that one user may hold at a time.
    pub leases_per_user: Option<u32>,
    /// Accounts that may lease; empty: all.
    pub accounts: BTreeSet<String>,
    /// Who may drain, resume and switch off, beside root.
    pub admins: BTreeSet<Uid>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: Mode::Observe,
            partitions: BTreeSet::new(),
            nodes: BTreeSet::new(),
            features: BTreeSet::new(),
            min_idle: Duration::ZERO,
            reserve_nodes: 0,
            grant_ttl: Duration::from_secs(10),
            heartbeat: Duration::from_secs(1),
            lease_ttl_max: Duration::from_secs(3600),
            planned_margin: Duration::from_secs(5),
            picture_max_age: Duration::from_secs(10),
            hold_max: Duration::from_secs(60),
            placement: Placement::Pack,
            cores_per_user: None,
            leases_per_user: None,
            accounts: BTreeSet::new(),
            admins: BTreeSet::new(),
        }
    }
}

impl Policy {
    /// Whether the site offers this node at all.
    pub fn opts_in(&self, node: &NodeView) -> bool {
        self.nodes.contains(&node.name)
            || node.partitions.iter().any(|name| self.partitions.contains(name))
            || node.features.iter().any(|name| self.features.contains(name))
    }

    /// What is opted in, for people.
    pub(crate) fn offer(&self) -> String {
        let named = |what: &str, names: Vec<&str>| {
            (!names.is_empty()).then(|| format!("{what} {}", names.join(", ")))
        };
        let offers = [
            named("partitions", self.partitions.iter().map(String::as_str).collect()),
            named("nodes", self.nodes.iter().map(NodeName::as_str).collect()),
            named("features", self.features.iter().map(String::as_str).collect()),
        ];
        let offers: Vec<String> = offers.into_iter().flatten().collect();
        if offers.is_empty() { "nothing".into() } else { offers.join("; ") }
    }

    /// Whether this user may drain, resume and switch off.
    pub fn is_admin(&self, uid: Uid) -> bool {
        uid == Uid(0) || self.admins.contains(&uid)
    }

    /// What the policy names and the cluster does not have, one sentence each.
    pub fn unknown_names<'a>(&self, nodes: impl Iterator<Item = &'a NodeView>) -> Vec<String> {
        let (mut names, mut partitions, mut features) =
            (BTreeSet::new(), BTreeSet::<&str>::new(), BTreeSet::<&str>::new());
        for node in nodes {
            names.insert(&node.name);
            partitions.extend(node.partitions.iter().map(String::as_str));
            features.extend(node.features.iter().map(String::as_str));
        }
        let mut warnings = Vec::new();
        let mut missing = |kind: &str, name: &str, list: &str| {
            warnings.push(format!(
                "policy.{list} names {kind} {name:?}, which Slurm does not have: nothing is harvested by it; \
                 correct the name or take it out"
            ));
        };
        for name in self.partitions.iter().filter(|name| !partitions.contains(name.as_str())) {
            missing("partition", name, "partitions");
        }
        for name in self.nodes.iter().filter(|name| !names.contains(name)) {
            missing("node", name.as_str(), "nodes");
        }
        for name in self.features.iter().filter(|name| !features.contains(name.as_str())) {
            missing("feature", name, "features");
        }
        warnings
    }
}
