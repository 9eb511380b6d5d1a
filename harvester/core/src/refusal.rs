//! Why a call is refused, in one sentence with the cause, the figures and what to do about it.
//!
//! Made by `acquire` and `admin`, shown to people as it is. The daemon maps [`Refusal::kind`] to a gRPC code.

use gleaner_proto::{
    hostlist::BadHostlist,
    ids::{JobId, LeaseId, NodeName},
};

use crate::moment::Clock;

/// What sort of refusal it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalKind {
    /// The request can never succeed as it is.
    Invalid,
    /// What it asked for was given and is over: only another request can succeed.
    Over,
    /// The caller may not.
    Denied,
    /// Nothing is free, or a quota is used up: later it may succeed.
    Exhausted,
    /// The service cannot now, for everybody.
    Unavailable,
}

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A figure makes no sense.
    #[error("{field} is {value}: {remedy}")]
    Invalid {
        /// Which.
        field: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        remedy: &'static str,
    },
    /// Slurm has no such partition.
    #[error(
        "partition {name} does not exist in Slurm; it has {known}: name one of those, or none for any"
    )]
    UnknownPartition {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// The site offers nothing there.
    #[error(
        "no node {place} is offered: the site's policy opts in {offered}; ask your administrator, or name another partition"
    )]
    NotOffered {
        /// `in partition batch` or `of the cluster`.
        place: String,
        /// What is opted in.
        offered: String,
    },
    /// The site only watches.
    #[error(
        "Gleaner only observes here (policy.mode = \"observe\"), so nothing is leased; enforcing, it would now offer {would} nodes: ask your administrator to set policy.mode = \"enforce\""
    )]
    Observing {
        /// Nodes that would be granted.
        would: u32,
    },
    /// The kill switch.
    #[error(
        "Gleaner is switched off ({reason}): nothing is leased until an administrator runs `gleaner on`"
    )]
    SwitchedOff {
        /// The admin's words.
        reason: String,
    },
    /// Slurm has not been seen for too long.
    #[error(
        "Slurm has not been seen for {age}, and nothing is leased on a picture older than {max} ({error}): try again when slurmctld answers"
    )]
    Stale {
        /// How old the picture is, in words.
        age: String,
        /// The bound, in words.
        max: String,
        /// The last failure.
        error: String,
    },
    /// The account may not lease.
    #[error(
        "account {account:?} may not lease here; policy.accounts has {allowed}: name one of those"
    )]
    Account {
        /// What was named.
        account: String,
        /// What may.
        allowed: String,
    },
    /// Too many cores.
    #[error(
        "user {user} holds {held} cores and may lease {quota} at a time; {wanted} more are wanted: release some, or ask for {left} at most"
    )]
    QuotaCores {
        /// Whose.
        user: String,
        /// Held now.
        held: u32,
        /// The policy's figure.
        quota: u32,
        /// What this request needs at least.
        wanted: u32,
        /// What is left.
        left: u32,
    },
    /// Too many leases.
    #[error(
        "user {user} holds {held} leases and may hold {quota} at a time; {wanted} more are wanted: release some first"
    )]
    QuotaLeases {
        /// Whose.
        user: String,
        /// Held now.
        held: u32,
        /// The policy's figure.
        quota: u32,
        /// What this request needs at least.
        wanted: u32,
    },
    /// Nothing fits.
    #[error(transparent)]
    NoRoom(Box<NoRoom>),
    /// The request id was used before, for something else.
    #[error("this request id was used with another key: make a new one for each request")]
    RequestReused,
    /// The request's leases are over.
    #[error("the leases of this request have ended: ask again with a new request id")]
    RequestOver,
    /// The store failed.
    #[error(
        "the lease could not be stored, so it was not given: {error}; try again once the harvester's store takes records"
    )]
    Store {
        /// The store's error.
        error: String,
    },
    /// An admin's command could not be stored and was not carried out.
    #[error(
        "this could not be stored, so nothing was changed: {error}; try again once the harvester's store takes records"
    )]
    NotStored {
        /// The store's error.
        error: String,
    },
    /// An admin's command is carried out and could not be stored.
    #[error(
        "this is in effect, but could not be stored and will be forgotten when the harvester restarts: {error}; repeat it once the harvester's store takes records"
    )]
    Forgotten {
        /// The store's error.
        error: String,
    },
    /// The node of a lease has not been heard from since the harvester restarted.
    #[error(
        "the executor of {node}, where this request's lease is, has not come back since the harvester restarted: try again in a moment"
    )]
    Rejoining {
        /// The node.
        node: NodeName,
    },
    /// No lease id is left, since the store fails.
    #[error(
        "no lease can be given because the harvester's store does not take records ({error}): try again later"
    )]
    Numbers {
        /// The store's error, if it said one.
        error: String,
    },
    /// The node was taken back while the lease was being stored.
    #[error(
        "lease {lease} ended before it was given: Slurm took {node} back meanwhile; ask again with a new request id"
    )]
    Overtaken {
        /// The lease.
        lease: LeaseId,
        /// Its node.
        node: NodeName,
    },
    /// Admins only.
    #[error("user {user} is no administrator of Gleaner: ask one of policy.admins")]
    NotAdmin {
        /// Who asked.
        user: String,
    },
    /// Not a hostlist.
    #[error("{0}")]
    Hostlist(#[from] BadHostlist),
    /// No node named.
    #[error("the node list is empty: name the nodes, as in n[1-4]")]
    NoNodes,
    /// Nodes that nobody knows.
    #[error("Slurm has no node {nodes}: correct the list; nothing was changed")]
    UnknownNodes {
        /// Which, as a hostlist.
        nodes: String,
    },
}

/// Why no node, or too few, can take a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NoRoom {
    /// The partition asked for; empty: any.
    pub partition: String,
    /// Cores wanted on each node.
    pub cores: u32,
    /// Memory wanted on each node.
    pub memory_bytes: u64,
    /// Nodes wanted at least.
    pub nodes_min: u32,
    /// Nodes that fit.
    pub fitting: u32,
    /// Nodes that are harvested but too small or too full: how many have how many free cores.
    pub smaller: Vec<(u32, u32)>,
    /// Of those, nodes with the cores but not the memory, and the most that one of them has free.
    pub short_of_memory: Option<(u32, u64)>,
    /// Nodes that would fit, and why each kind is not to be had: how many, and the words.
    pub others: Vec<(u32, &'static str)>,
    /// When the next node is expected.
    pub next: Option<Expected>,
}

/// When a node is expected to be idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// Unix seconds.
    pub unix_s: i64,
    /// Whose time limit says so.
    pub job: JobId,
}

impl std::error::Error for NoRoom {}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes = |count: u32| if count == 1 { "node" } else { "nodes" };
        match self.fitting {
            0 => f.write_str("no idle node")?,
            fitting => write!(
                f,
                "only {fitting} idle {} of the {} wanted",
                nodes(fitting),
                self.nodes_min
            )?,
        }
        if !self.partition.is_empty() {
            write!(f, " in partition {}", self.partition)?;
        }
        let has = if self.fitting > 1 { "have" } else { "has" };
        write!(f, " {has} {}", count(self.cores, "core"))?;
        if self.memory_bytes > 0 {
            write!(f, " and {}", bytes(self.memory_bytes))?;
        }
        f.write_str(" free")?;
        for (number, cores) in &self.smaller {
            let is = if *number == 1 { "is" } else { "are" };
            let each = if *number == 1 { "" } else { " each" };
            write!(
                f,
                "; {number} {} {is} idle with {}{each}",
                nodes(*number),
                count(*cores, "core")
            )?;
        }
        if let Some((number, most)) = self.short_of_memory {
            let has = if number == 1 { "has" } else { "have" };
            write!(
                f,
                "; {number} {} {has} the cores but at most {} free",
                nodes(number),
                bytes(most)
            )?;
        }
        for (number, why) in &self.others {
            let is = if *number == 1 { "is" } else { "are" };
            write!(f, "; {number} {} {is} {why}", nodes(*number))?;
        }
        match self.next {
            Some(Expected { unix_s, job }) => {
                write!(f, "; next expected at {} (job {job}'s time limit)", Clock(unix_s))
            }
            None => f.write_str("; no running job's time limit says when the next is expected: ask for less, or try again"),
        }
    }
}

fn count(number: u32, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// Bytes in the largest unit that leaves no fraction, or with one digit.
fn bytes(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        Some((name, unit)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} bytes"),
    }
}

impl Refusal {
    /// What sort of refusal it is.
    pub fn kind(&self) -> RefusalKind {
        match self {
            Self::Invalid { .. }
            | Self::UnknownPartition { .. }
            | Self::RequestReused
            | Self::Hostlist(_)
            | Self::NoNodes
            | Self::UnknownNodes { .. } => RefusalKind::Invalid,
            Self::RequestOver => RefusalKind::Over,
            Self::Account { .. } | Self::NotAdmin { .. } => RefusalKind::Denied,
            Self::QuotaCores { .. }
            | Self::QuotaLeases { .. }
            | Self::NoRoom(_)
            | Self::Overtaken { .. } => RefusalKind::Exhausted,
            Self::NotOffered { .. }
            | Self::Observing { .. }
            | Self::SwitchedOff { .. }
            | Self::Stale { .. }
            | Self::Store { .. }
            | Self::NotStored { .. }
            | Self::Forgotten { .. }
            | Self::Rejoining { .. }
            | Self::Numbers { .. } => RefusalKind::Unavailable,
        }
    }
}
