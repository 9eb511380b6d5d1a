//! What the core wants done. The daemon's driver carries these out in order, and answers [`Effect::Persist`] only.

use std::time::Duration;

use gleaner_lease::{state::EndReason, token::Claims};
use gleaner_proto::ids::{Epoch, LeaseId, NodeName, Term};

use crate::{
    event::{CallId, Conn, Ticket},
    record::Record,
    refusal::Refusal,
};

/// One thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Send a message on an executor's stream. A stream that is gone, or too slow to take it, is simply lost:
    /// close it, and tell the core by `ExecutorLost`.
    Send {
        /// The stream.
        conn: Conn,
        /// The node at its other end.
        node: NodeName,
        /// The message.
        message: ToExecutor,
    },
    /// Store these records, all or none, then tell the core by `Persisted`.
    Persist {
        /// To be named in the answer.
        ticket: Ticket,
        /// What to store, in order; storing the same record twice must be harmless.
        records: Vec<Record>,
        /// What to do if the store fails.
        need: Need,
    },
    /// Answer a call.
    Reply {
        /// Which.
        call: CallId,
        /// The answer.
        result: Result<Reply, Refusal>,
    },
    /// Look at Slurm's nodes (and jobs) now instead of at the period's end.
    LookSoon,
    /// Something that people should read in the log.
    Log {
        /// Whether somebody must act on it.
        warn: bool,
        /// One sentence.
        message: String,
    },
}

/// What a failing store means for a persist effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Only the store will do: answer its failure. Leases, and what widens what may be done.
    Store,
    /// Write to the local journal if the store fails, to be stored later, and answer success once that is durable.
    /// Answer failure only if the journal fails too. What ends or narrows something, and what has happened.
    Journal,
}

/// A message for an executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToExecutor {
    /// It is registered. The driver adds key, credential, protocol and cluster.
    Registered {
        /// The epoch from now on; the one it named if it resumes.
        epoch: Epoch,
        /// This harvester's term.
        term: Term,
        /// How often to send a heartbeat.
        heartbeat: Duration,
    },
    /// It may use this share, from the stamp of the heartbeat that this answers.
    Grant {
        /// Under this epoch.
        epoch: Epoch,
        /// The heartbeat's number.
        answers_seq: u64,
        /// For how long.
        ttl: Duration,
        /// Cores.
        cores: u32,
        /// Memory.
        memory_bytes: u64,
    },
    /// Leave the node: everything of epochs up to this one.
    Vacate {
        /// The last epoch that ends.
        epoch: Epoch,
        /// Why.
        reason: EndReason,
    },
    /// End one lease.
    Revoke {
        /// Which.
        lease: LeaseId,
        /// Why.
        reason: EndReason,
    },
    /// Its events up to this number are stored.
    Ack {
        /// The number.
        seq: u64,
    },
    /// It is not wanted; the stream is to be closed after this. The reason is in the log effect beside it.
    Refused(JoinRefusal),
}

/// Why an executor is not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefusal {
    /// Not root, not the executor user, and not for itself alone.
    #[error(
        "only root or the executor user may register a node for everybody: start it by one of those, or let it serve its own user alone"
    )]
    NotTrusted,
    /// Single-user for somebody else.
    #[error("an executor that serves one user must be registered by that user")]
    OtherUser,
    /// It has seen a later harvester.
    #[error(
        "this executor has obeyed a harvester of term {seen}, this one's term is {term}: a newer harvester runs elsewhere, or this one's store was set back; stop one of them"
    )]
    OldTerm {
        /// The executor's.
        seen: Term,
        /// Ours.
        term: Term,
    },
    /// It offers nothing.
    #[error(
        "the executor offers no cores or no memory: check executor.cores and executor.memory in its configuration"
    )]
    Nothing,
    /// Another executor serves this node, or may still be using it.
    #[error(
        "another executor serves this node, or did until a moment ago: run one only, and try again"
    )]
    Taken,
    /// Its epoch cannot be stored.
    #[error(
        "the harvester's store does not take records now, and a registration needs one: see the harvester's store error; it is tried again when the executor dials again"
    )]
    Store,
    /// Not a node of this cluster.
    #[error(
        "Slurm has no node of this name, or has not been seen yet: start the executor with the node's name in Slurm (--node)"
    )]
    NoSuchNode,
    /// It came late or twice.
    #[error("the registration is older than what the node has sent since: register again")]
    Replayed,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// The leases.
    Leases(Vec<Leased>),
    /// The ids that were live and the caller's.
    Released(Vec<LeaseId>),
    /// The nodes that were drained or resumed.
    Nodes(Vec<NodeName>),
    /// The kill switch's position.
    Switched {
        /// Off?
        off: bool,
        /// How many nodes are being left.
        vacating: u32,
    },
}

/// One lease in an answer. The driver signs the claims into the token.
#[derive(Debug, Clone, PartialEq)]
pub struct Leased {
    /// What the token says: id, cores, memory, epoch, expiry and all.
    pub claims: Claims,
    /// Its node.
    pub node: NodeName,
    /// Where the executor listens.
    pub address: String,
    /// Its local socket.
    pub local_socket: String,
    /// The key that the client pins.
    pub executor_key: [u8; 32],
    /// For how long it is safe from now on.
    pub safe_for: Duration,
}
