//! What is stored: written by [`crate::effect::Effect::Persist`], read back as [`Restored`] when a harvester starts.
//!
//! ```text
//!   Term, Numbers ──▶ Lease ──▶ LeaseEnding ──▶ LeaseEnded   what must survive a restart
//!   Drain, Resume, Switch                                    what an admin said
//!   Transition, Watch, Alive, Usage, Vacate, Job, Audit      what reports are made of
//! ```
//!
//! **How a report is computed, exactly.** Each [`Transition`] says how many cores of a node are idle, grantable, granted and
//! leased from its moment on. It lasts until the node's next transition of the same term or, if there is none, until
//! that term's last [`Record::Alive`] or [`Record::Watch`]: what a killed harvester did not see is not counted. [`Record::Watch`]
//! opens a watched stretch (`gap: None`) or ends it with the cause; it lasts likewise. Coverage is the
//! watched share of a period, its complement are the gaps. Idle and grantable are zero outside watched stretches, since
//! nobody knows; granted and leased are known to the harvester all the same.

use std::time::Duration;

use gleaner_lease::{
    clock::{BootId, Instance, Stamp},
    issuer::Numbers,
    state::EndReason,
};
use gleaner_proto::ids::{Epoch, JobId, LeaseId, NodeName, Term, Uid};

use crate::event::{Identity, Usage, Vacated};

/// One thing to store. Times are the harvester's wall clock, for people and reports.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// A harvester began; terms only grow. Stored with its first [`Record::Numbers`].
    Term {
        /// Its term.
        term: Term,
        /// The longest grant that it gives.
        grant_ttl: Duration,
        /// When.
        unix_ms: i64,
    },
    /// All lease ids and epochs below these may have been used; replaces the older record.
    Numbers(Numbers),
    /// A lease was issued.
    Lease(LeaseRecord),
    /// A lease was renewed until then, on its executor's clock. The latest moment counts, not the latest record.
    LeaseRenewed {
        /// Which.
        lease: LeaseId,
        /// Its end on the executor's clock.
        expires: Stamp,
    },
    /// A lease shall end, and its executor has not said yet that it has.
    LeaseEnding {
        /// Which.
        lease: LeaseId,
        /// Why.
        reason: EndReason,
    },
    /// A lease ended. The first record of a lease counts.
    LeaseEnded {
        /// Which.
        lease: LeaseId,
        /// Why.
        reason: EndReason,
        /// More, for people.
        detail: String,
        /// When.
        unix_ms: i64,
    },
    /// What a lease has used so far. A sample: figures only grow.
    Usage {
        /// Which.
        lease: LeaseId,
        /// So far.
        usage: Usage,
        /// When.
        unix_ms: i64,
    },
    /// A node was vacated. Stored once for each `vacated.record_id`.
    Vacate {
        /// Which.
        node: NodeName,
        /// What its executor says.
        vacated: Vacated,
    },
    /// A hook's message: its job began or ended on that node. Stored once for each (instance, seq).
    Job(JobRecord),
    /// How many cores are what, from now on.
    Transition(Transition),
    /// Slurm is seen from now on, or is not any more.
    Watch {
        /// Whose view.
        term: Term,
        /// When.
        unix_ms: i64,
        /// `None`: seen. Else why not, for people.
        gap: Option<String>,
    },
    /// The harvester of that term was alive then. The latest moment of a term counts, not the latest record.
    Alive {
        /// Which.
        term: Term,
        /// When.
        unix_ms: i64,
    },
    /// A node was drained; replaces an older one.
    Drain {
        /// Which.
        node: NodeName,
        /// Why.
        reason: String,
        /// When.
        unix_ms: i64,
    },
    /// A node may be used again.
    Resume {
        /// Which.
        node: NodeName,
    },
    /// The kill switch.
    Switch {
        /// Off, with the reason, or on.
        off: Option<String>,
        /// When.
        unix_ms: i64,
    },
    /// The audit trail.
    Audit {
        /// Who.
        who: Identity,
        /// What was asked.
        action: String,
        /// What became of it.
        outcome: String,
        /// When.
        unix_ms: i64,
    },
}

/// A lease as it was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Its number.
    pub lease: LeaseId,
    /// The request that it answers, with `uid`.
    pub request_id: [u8; 16],
    /// Its node.
    pub node: NodeName,
    /// The grant's epoch.
    pub epoch: Epoch,
    /// Whose.
    pub uid: Uid,
    /// In which group its worker runs.
    pub gid: u32,
    /// The user's name.
    pub user: String,
    /// The account it runs under.
    pub account: String,
    /// Cores.
    pub cores: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// The key that its token names.
    pub client_key: [u8; 32],
    /// Its end on the executor's clock.
    pub expires: Stamp,
    /// The boot whose clock that is.
    pub boot: BootId,
    /// The life of the agent that it was issued to.
    pub instance: Instance,
    /// Why it shall end, if that was stored and its end was not.
    pub ending: Option<EndReason>,
    /// When it was issued, for people.
    pub created_unix_ms: i64,
}

/// A hook's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobRecord {
    /// The node.
    pub node: NodeName,
    /// The executor that told it.
    pub instance: Instance,
    /// The event's number in that executor's life.
    pub seq: u64,
    /// The job.
    pub job: JobId,
    /// Its user.
    pub job_uid: Uid,
    /// False: prolog; true: epilog.
    pub ended: bool,
    /// What the job waited for us, microseconds.
    pub hook_us: u64,
    /// When the harvester heard it.
    pub unix_ms: i64,
}

/// Cores of one node, from `unix_ms` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The node.
    pub node: NodeName,
    /// Whose view.
    pub term: Term,
    /// From when on.
    pub unix_ms: i64,
    /// How many of its cores are what.
    pub cores: CoreCounts,
}

/// How many of a node's cores are what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CoreCounts {
    /// All that Slurm counts.
    pub total: u32,
    /// Of a node that is idle in Slurm's eyes and may be scheduled.
    pub idle: u32,
    /// Of those, what policy lets Gleaner take.
    pub grantable: u32,
    /// Under a grant that its executor may still be using.
    pub granted: u32,
    /// Under leases that may still run.
    pub leased: u32,
}

/// What a store hands to a harvester that starts.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Restored {
    /// The highest term stored; 0 if there is none.
    pub last_term: Term,
    /// The longest grant of any stored term.
    pub grant_ttl_max: Duration,
    /// The stored numbers; the default if there are none.
    pub numbers: Numbers,
    /// The leases with no `LeaseEnded`, and their newest `expires`.
    pub leases: Vec<LeaseRecord>,
    /// Drained nodes and why.
    pub drained: Vec<(NodeName, String)>,
    /// The kill switch, if it is off, and why.
    pub switched_off: Option<String>,
    /// How many vacates are stored.
    pub vacates: u64,
}
