//! What goes wrong, each kind with its cause and its remedy. Every public function of the crate returns one of these.
//!
//! [`CallError`] is special: with `Ok` it is the whole list of a call's endings (OK, FAILED, EVICTED, UNKNOWN).

use std::{fmt, time::Duration};

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The harvester's address cannot be one.
    #[error(
        "harvester address {address:?} is no host:port: correct [harvester] address in the configuration"
    )]
    Address {
        /// What was configured.
        address: String,
    },
    /// This user cannot prove who they are.
    #[error("cannot prove who is calling: {0}")]
    Identity(#[from] gleaner_identity::IdentityError),
    /// The runtime for the harvester's calls could not start.
    #[error("cannot start the runtime for the harvester's calls: {0}")]
    Runtime(#[source] std::io::Error),
}

/// Why a call to the harvester came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum HarvesterError {
    /// Nobody answers there.
    #[error(
        "the harvester at {address} cannot be reached ({detail}): see that gleaner-harvester runs there, and that [harvester] address is right"
    )]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// What the connection said.
        detail: String,
    },
    /// It took too long.
    #[error("the harvester at {address} did not answer {method} within {waited:?}")]
    TimedOut {
        /// Where it is.
        address: String,
        /// What was asked.
        method: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// It said no, and why.
    #[error("{reason}")]
    Refused {
        /// The harvester's own sentence.
        reason: String,
        /// gRPC's name of the kind of refusal.
        code: String,
    },
    /// Somebody else answered.
    #[error("the answer to {method} from {address} is not the harvester's: {why}")]
    Forged {
        /// Where it came from.
        address: String,
        /// What was asked.
        method: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The caller's own credential could not be made.
    #[error("cannot prove who is calling: {0}")]
    Identity(#[from] gleaner_identity::IdentityError),
    /// The system gives no randomness, hence no key for the leases and no number for the request.
    #[error("cannot ask for leases: the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

impl HarvesterError {
    /// What was asked for was given, and is over.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Refused { code, .. } if code == "NotFound")
    }
}

/// Why there is no pool.
#[derive(Debug, thiserror::Error)]
pub enum AcquireError {
    /// The request makes no sense.
    #[error("the request cannot be met anywhere: {0}")]
    Request(String),
    /// The harvester gave no leases.
    #[error(transparent)]
    Harvester(#[from] HarvesterError),
    /// Leases were given, but too few of their executors let the client in.
    #[error("{attached} of at least {needed} leased nodes could be attached; {node}: {why}")]
    Attach {
        /// How many did.
        attached: u32,
        /// How many were asked for at least.
        needed: u32,
        /// One that did not.
        node: String,
        /// Why not.
        why: AttachError,
    },
}

/// Why bytes are no [`crate::Share`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// They were cut, changed, or are something else.
    #[error(
        "these bytes are no share of leases: {0}; pass on what Share::to_bytes gave, all of it"
    )]
    Malformed(&'static str),
    /// The process that shares is of another release.
    #[error(
        "the share is of protocol {theirs}, and this process speaks {ours}: use one release of Gleaner in all of them"
    )]
    Protocol {
        /// The sharer's.
        theirs: u32,
        /// This library's.
        ours: u32,
    },
}

/// Why shared leases were not joined.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The request makes no sense.
    #[error("the request cannot be met anywhere: {0}")]
    Request(String),
    /// The pool that shared had no lease then.
    #[error(
        "nothing is shared: the pool had no lease when it made the share; share again when Pool::leases names one"
    )]
    Nothing,
    /// No executor let this client in.
    #[error(
        "none of {leases} shared leases could be joined; {node}: {why}; share again from a pool that calls on them"
    )]
    Attach {
        /// How many were shared.
        leases: usize,
        /// The node of one of them.
        node: String,
        /// Why not.
        why: AttachError,
    },
    /// The background keep-alive was asked for, and there is none.
    #[error(
        "the renewing thread could not start: {0}; raise the limit on threads, or renew on call"
    )]
    Renewer(#[source] std::io::Error),
}

/// Why an executor did not let the client in, or dropped its session.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Nobody answers there.
    #[error("{step} {address}: {source}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The executor's address.
        address: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The executor there does not hold the key that the harvester named.
    #[error(
        "the program at {address} is not the executor that the harvester leased: its key differs"
    )]
    Impostor {
        /// The address.
        address: String,
    },
    /// It answered what makes no sense.
    #[error("the executor at {address} broke the protocol: {what}")]
    Protocol {
        /// The address.
        address: String,
        /// What it did.
        what: String,
    },
    /// It said no, and why.
    #[error("the executor refused: {message}")]
    Refused {
        /// Its own sentence.
        message: String,
    },
    /// The lease was over before the session began.
    #[error("the lease ended while attaching: {0}")]
    Evicted(String),
    /// Shared memory was asked for, and the executor is on another node.
    #[error(
        "no shared memory with node {node}: its executor's socket {socket:?} is not on this node; \
         call from that node, or do not force a transport"
    )]
    Elsewhere {
        /// The node.
        node: String,
        /// The socket.
        socket: String,
    },
    /// The memory that the executor passed cannot be used.
    #[error("node {node}: {source}")]
    Memory {
        /// The node.
        node: String,
        /// Why.
        source: gleaner_fabric::shm::SegmentError,
    },
    /// No RDMA between this node and that one.
    #[error("node {node}: {source}")]
    Rdma {
        /// The node.
        node: String,
        /// Why.
        source: gleaner_fabric::rdma::RdmaError,
    },
    /// The executor there does not serve this client by RDMA.
    #[error("node {node} serves no calls by RDMA: {why}")]
    NoRdmaThere {
        /// The node.
        node: String,
        /// Why not.
        why: String,
    },
}

impl AttachError {
    /// Whether another transport to the same executor may do better.
    pub(crate) fn is_of_the_way(&self) -> bool {
        matches!(
            self,
            Self::Io { .. }
                | Self::Impostor { .. }
                | Self::Memory { .. }
                | Self::Rdma { .. }
                | Self::NoRdmaThere { .. }
        )
    }
}

/// Why there is no function to call.
#[derive(Debug, thiserror::Error)]
pub enum FunctionError {
    /// The file cannot be read.
    #[error("cannot read the library {path}: {source}")]
    Read {
        /// Which.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is larger than any executor takes.
    #[error(
        "the library {path} has {bytes} bytes, more than {} an executor takes",
        gleaner_proto::control::LIBRARY_MAX
    )]
    TooLarge {
        /// Which.
        path: String,
        /// Its size.
        bytes: u64,
    },
    /// An executor, or the local loader, refused it.
    #[error("function {name:?} cannot be called on {node}: {message}")]
    Refused {
        /// The function.
        name: String,
        /// Where.
        node: String,
        /// Why.
        message: String,
    },
    /// The pool has no lease left, and could not get another one.
    #[error("no lease to open the function on: {0}")]
    NoLease(String),
}

/// How a call ended, other than well. Each call ends exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// FAILED: the call itself is at fault, or its bound was reached. Never run again.
    Failed(Failure),
    /// EVICTED: it had started when its node was taken back, and is not declared idempotent.
    Evicted {
        /// Where.
        node: String,
        /// Why the lease ended, in words.
        reason: String,
    },
    /// UNKNOWN: it may or may not have run; no verdict came in time.
    Unknown {
        /// Where.
        node: String,
        /// What was seen last.
        reason: String,
    },
}

/// Why a call FAILED.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The function returned an error.
    Function {
        /// Its own code.
        code: u32,
        /// Its own message, if it gave one.
        message: String,
    },
    /// The function's reply is longer than the caller left room for.
    ReplyTooLarge {
        /// The room.
        capacity: u32,
    },
    /// The input, or the room for the reply, is more than a session's arena holds.
    TooLarge {
        /// What was asked for, in bytes.
        bytes: u64,
        /// The most that fits.
        max: u64,
    },
    /// The function crashed, ended its process, wrote past its output, or ate its memory.
    WorkerDied {
        /// Where.
        node: String,
        /// How.
        detail: String,
    },
    /// The time that the caller left it was over.
    Deadline {
        /// How long that was.
        after: Duration,
    },
    /// The caller cancelled it.
    Cancelled,
    /// It never ran: the pool has no lease, and could get none.
    NoLease {
        /// Why not.
        reason: String,
    },
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(failure) => write!(f, "FAILED: {failure}"),
            Self::Evicted { node, reason } => write!(
                f,
                "EVICTED: the call had started on {node} when its lease ended ({reason}); declare it idempotent to have it run again"
            ),
            Self::Unknown { node, reason } => {
                write!(f, "UNKNOWN: whether the call ran on {node} is not known ({reason})")
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function { code, message } if message.is_empty() => {
                write!(f, "the function returned error {code}")
            }
            Self::Function { code, message } => {
                write!(f, "the function returned error {code}: {message}")
            }
            Self::ReplyTooLarge { capacity } => write!(
                f,
                "the function's reply is longer than the {capacity} bytes left for it; raise reply_capacity"
            ),
            Self::TooLarge { bytes, max } => write!(
                f,
                "a call of {bytes} bytes does not fit; a session of this pool takes {max}: raise arena_bytes"
            ),
            Self::WorkerDied { node, detail } => write!(f, "the worker on {node} died: {detail}"),
            Self::Deadline { after } => write!(f, "it had not ended after {after:?}"),
            Self::Cancelled => write!(f, "the caller cancelled it"),
            Self::NoLease { reason } => write!(f, "no lease to run it on: {reason}"),
        }
    }
}

impl std::error::Error for CallError {}
