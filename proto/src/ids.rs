//! Names and numbers that identify things across processes. Newtypes, so that no two are mixed up.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// A lease's number, never used twice in a cluster's life.
    LeaseId(u64)
}
number! {
    /// A node's grant epoch: new at each registration of its executor and each whole-node vacate. 0 is none.
    Epoch(u64)
}
number! {
    /// A Slurm job's number. 0 is none.
    JobId(u32)
}
number! {
    /// The harvester's term: fences a harvester that was replaced.
    Term(u64)
}
number! {
    /// A user's number on the cluster.
    Uid(u32)
}

/// A node's name in Slurm. Not its host name: executors are told it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeName(String);

/// Longest node name that is taken, in bytes: a DNS label's length is 63, Slurm allows more; this bounds tokens.
pub const NODE_NAME_MAX: usize = 128;

/// Why a text is no node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no node name: use 1 to {NODE_NAME_MAX} letters, digits, '-', '_' or '.'")]
pub struct BadNodeName {
    text: String,
}

impl NodeName {
    /// Takes letters, digits, `-`, `_` and `.`, which also makes the name safe as one path component.
    pub fn new(text: &str) -> Result<Self, BadNodeName> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let starts_plain = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        if starts_plain && text.len() <= NODE_NAME_MAX && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            let text = text.chars().take(NODE_NAME_MAX).collect();
            Err(BadNodeName { text })
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for NodeName {
    type Err = BadNodeName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_are_one_path_component() {
        assert!(NodeName::new("nid001-a.b_c").is_ok());
        for bad in ["", "..", "a/b", "a b", "-x", &"x".repeat(NODE_NAME_MAX + 1)] {
            assert!(NodeName::new(bad).is_err(), "{bad:?}");
        }
    }
}
