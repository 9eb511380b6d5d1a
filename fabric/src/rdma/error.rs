//! Why something with RDMA did not work, with the remedy.
#![forbid(unsafe_code)]

use std::{fmt, io};

/// Why RDMA cannot be used, or a verb failed.
#[derive(Debug, thiserror::Error)]
pub enum RdmaError {
    /// The library is not installed, or too old.
    #[error(
        "no RDMA device: cannot load libibverbs.so.1 ({detail}); install libibverbs1 and ibverbs-providers (Debian) or \
         libibverbs (RHEL, SUSE), version 32 or later"
    )]
    NoLibrary {
        /// The loader's words.
        detail: String,
    },
    /// The kernel shows none.
    #[error(
        "no RDMA device: the kernel shows none that speaks InfiniBand or RoCE; load its driver (`rdma link` lists them), \
         and let users open /dev/infiniband/uverbs*"
    )]
    NoDevice,
    /// Not the one that was named.
    #[error("no RDMA device {wanted:?}: there are {there:?}; correct the name")]
    NoSuchDevice {
        /// What was asked for.
        wanted: String,
        /// What there is.
        there: Vec<String>,
    },
    /// No port of it is up.
    #[error(
        "RDMA device {device} has no active port: connect its cable, set its interface up, or start the subnet manager \
         (`rdma link` shows each port's state)"
    )]
    NoPort {
        /// The device.
        device: String,
    },
    /// No address of the port reaches the peer's.
    #[error(
        "RDMA device {device} has no GID like the peer's {peer}: both ends need the same kind (InfiniBand, RoCE v1 or v2) and \
         IP version; give the interface such an address"
    )]
    NoGid {
        /// The device.
        device: String,
        /// The peer's address.
        peer: String,
    },
    /// A verb failed.
    #[error("RDMA device {device}: cannot {step}: {source}{remedy}")]
    Verb {
        /// The device.
        device: String,
        /// What was tried.
        step: &'static str,
        /// The system's answer.
        source: io::Error,
        /// What helps, if it is known.
        remedy: Remedy,
    },
    /// The peer cannot be reached through its endpoint.
    #[error("RDMA device {device}: the peer does not answer: {status}")]
    Unreachable {
        /// The device.
        device: String,
        /// What the first write came back with.
        status: WorkStatus,
    },
}

/// What helps against a system error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Unknown.
    None,
    /// Pinned memory is limited.
    LockedMemory,
    /// The device, or the cgroup, has no more.
    Objects,
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "",
            Self::LockedMemory => "; raise the limit on locked memory (`ulimit -l`, LimitMEMLOCK=)",
            Self::Objects => {
                "; the device or the rdma cgroup (rdma.max) has no more: use fewer links"
            }
        })
    }
}

/// How a work request ended, when not well: `ibv_wc_status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkStatus(pub u32);

impl WorkStatus {
    /// Nobody answered all retries.
    pub const RETRY_EXCEEDED: Self = Self(12);
    /// The queue pair failed before it came to this one.
    pub const FLUSHED: Self = Self(5);
    /// The peer's device refused the key, the address or the right.
    pub const REMOTE_ACCESS: Self = Self(10);
}

impl fmt::Display for WorkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            1 => "local length error",
            2 => "local queue pair operation error",
            4 => "local protection error",
            5 => "flushed after an earlier error",
            7 => "bad response",
            8 => "local access error",
            9 => "remote invalid request",
            10 => "remote access error",
            11 => "remote operation error",
            12 => "no answer after all retries",
            13 => "the peer had no room after all retries",
            16 => "the peer aborted",
            19 => "fatal error",
            20 => "response timeout",
            _ => "error",
        };
        write!(f, "{text} (work completion status {})", self.0)
    }
}
