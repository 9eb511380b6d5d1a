//! Where the harvester is and how to speak to it: the configuration's `[client]` section, resolved once.

use std::time::Duration;

use gleaner_identity::Auth;

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
}

impl Default for Options {
    fn default() -> Self {
        Self {
            harvester: "127.0.0.1:7410".into(),
            auth: Auth::Munge { socket: None },
            harvester_uids: Vec::new(),
            connect_timeout: Duration::from_secs(3),
            answer_timeout: Duration::from_secs(10),
        }
    }
}
