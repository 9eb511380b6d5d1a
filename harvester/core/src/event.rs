//! What the core is told. The daemon's driver makes these from Slurm, the gRPC streams, the store and the clock.
//!
//! Plain types only: the wire's generated messages stay in the daemon's `grpc` folder. Lengths and numbers that peers
//! sent are checked in here, not there.

use std::time::Duration;

use gleaner_lease::{
    clock::{BootId, Instance, Stamp},
    state::EndReason,
};
use gleaner_proto::ids::{Epoch, JobId, LeaseId, NodeName, Term, Uid};

use crate::{
    picture::{JobView, Picture},
    policy::Policy,
};

/// One `Join` stream; the driver numbers them from 1, never twice in its life. A node's newest one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Conn(pub u64);

/// One unary call that waits for a [`crate::effect::Effect::Reply`]; the driver's number, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// One persist effect; the core's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Everything that happens to a harvester.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A look at Slurm's nodes succeeded.
    Picture(Picture),
    /// A look at Slurm failed; the cause, for people.
    PictureFailed {
        /// What went wrong.
        error: String,
    },
    /// All running jobs, and the planned ones; replaces what was known.
    Jobs(Vec<JobView>),
    /// The first message of an executor's stream, its credential checked.
    Joined(Join),
    /// A heartbeat of an executor.
    Heartbeat(Heartbeat),
    /// A numbered event of an executor: acknowledged once it is stored.
    Executor {
        /// Its stream.
        conn: Conn,
        /// Its number in the agent's life.
        seq: u64,
        /// What happened.
        what: ExecutorEvent,
    },
    /// A stream is gone.
    ExecutorLost {
        /// Which.
        conn: Conn,
    },
    /// A client wants leases.
    Acquire(Acquire),
    /// A client gives leases back.
    Release {
        /// Who waits.
        call: CallId,
        /// The caller.
        who: Identity,
        /// The leases.
        leases: Vec<LeaseId>,
    },
    /// An admin's command.
    Admin {
        /// Who waits.
        call: CallId,
        /// The caller.
        who: Identity,
        /// What is asked.
        command: AdminCommand,
    },
    /// A persist effect was carried out, or failed with this error.
    Persisted {
        /// Whose.
        ticket: Ticket,
        /// The store's answer.
        result: Result<(), String>,
    },
    /// The configuration was read again.
    Reconfigured(Policy),
    /// Time passes: at least every [`crate::TICK`].
    Tick,
}

/// Who calls: the uid and gid are the credential's, user and account are resolved from them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The credential's uid.
    pub uid: Uid,
    /// The credential's gid.
    pub gid: u32,
    /// The user's name, or the uid in digits.
    pub user: String,
}

/// The `Register` message, with the credential's word on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Join {
    /// The stream.
    pub conn: Conn,
    /// The node that it serves.
    pub node: NodeName,
    /// The credential's uid.
    pub caller: Uid,
    /// Whether that uid is root or the configured executor user, who may register any node for everybody.
    pub trusted: bool,
    /// Its key, which clients pin.
    pub public_key: [u8; 32],
    /// Where clients reach it.
    pub address: String,
    /// The agent's local socket.
    pub local_socket: String,
    /// The boot that its stamps belong to.
    pub boot: BootId,
    /// New at each start of the agent.
    pub instance: Instance,
    /// Its clock when it sent the message.
    pub stamp: Stamp,
    /// Cores that it offers.
    pub cores: u32,
    /// Memory that it offers.
    pub memory_bytes: u64,
    /// Set: it serves this uid alone.
    pub single_user: Option<Uid>,
    /// What it cannot do, for people.
    pub limitations: Vec<String>,
    /// Its version.
    pub version: String,
    /// The grant epoch that this same instance still serves; 0: none.
    pub resume_epoch: Epoch,
    /// The highest term that it has seen.
    pub last_term: Term,
    /// A prolog was seen there and its epilog not yet; 0: none.
    pub hold_job: JobId,
}

/// A heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// The stream.
    pub conn: Conn,
    /// Its number.
    pub seq: u64,
    /// The executor's clock when it sent it.
    pub stamp: Stamp,
    /// The grant epoch that it serves; 0: none.
    pub epoch: Epoch,
    /// Its leases' usage and ends so far.
    pub leases: Vec<LeaseReport>,
}

/// One lease in a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseReport {
    /// Which.
    pub lease: LeaseId,
    /// What it has used.
    pub usage: Usage,
    /// Its end on the executor's clock.
    pub expires: Stamp,
}

/// What a lease has used so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Leased cores times time held.
    pub allocated_core_ns: u64,
    /// The kernel's CPU time.
    pub cpu_ns: u64,
    /// The worker's claim: inside functions.
    pub executing_ns: u64,
    /// The worker's claim: waiting hot.
    pub polling_ns: u64,
    /// Functions returned.
    pub calls: u64,
    /// Most memory held.
    pub memory_peak_bytes: u64,
}

/// What an executor reports, numbered and kept by it until acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecutorEvent {
    /// The prolog of a job ran: it is starting there.
    JobStarting {
        /// The job.
        job: JobId,
        /// Its user.
        job_uid: Uid,
        /// What it waited for us, microseconds.
        hook_us: u64,
    },
    /// The epilog of a job ran.
    JobEnded {
        /// The job.
        job: JobId,
        /// Its user.
        job_uid: Uid,
        /// What it waited for us, microseconds.
        hook_us: u64,
    },
    /// The node was left.
    Vacated(Vacated),
    /// A lease has ended there and nothing of it is left.
    LeaseEnded {
        /// Which.
        lease: LeaseId,
        /// Why.
        reason: EndReason,
        /// More, for people.
        detail: String,
        /// What it used in all.
        usage: Usage,
    },
    /// A client renewed its lease at the executor.
    LeaseRenewed {
        /// Which.
        lease: LeaseId,
        /// Its new end on the executor's clock.
        expires: Stamp,
    },
}

/// What made an executor leave. The same names and numbers as on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Trigger {
    /// The hook's message.
    Prolog = 1,
    /// The hook killed by itself.
    HookAlone = 2,
    /// The harvester's view of Slurm.
    Poll = 3,
    /// Nobody renewed the grant.
    GrantEnd = 4,
    /// An admin's drain.
    Drain = 5,
    /// The kill switch.
    SwitchOff = 6,
    /// The keeper lost its agent.
    AgentDead = 7,
    /// Leftovers of a killed keeper.
    KeeperStart = 8,
    /// The executor was asked to stop.
    Shutdown = 9,
}

impl Trigger {
    /// The trigger with that number on the wire.
    pub fn from_number(number: i32) -> Option<Self> {
        use Trigger::*;
        [Prolog, HookAlone, Poll, GrantEnd, Drain, SwitchOff, AgentDead, KeeperStart, Shutdown]
            .into_iter()
            .find(|trigger| *trigger as i32 == number)
    }

    /// Why the leases of that node ended.
    pub fn end_reason(self) -> EndReason {
        match self {
            Self::Prolog | Self::HookAlone | Self::Poll => EndReason::BatchJob,
            Self::GrantEnd => EndReason::GrantEnded,
            Self::Drain => EndReason::Drained,
            Self::SwitchOff => EndReason::SwitchedOff,
            Self::AgentDead | Self::KeeperStart | Self::Shutdown => EndReason::ExecutorLost,
        }
    }
}

/// A vacate, as the executor tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vacated {
    /// Made by the node; the same record is stored once.
    pub record_id: [u8; 16],
    /// What made it leave.
    pub trigger: Trigger,
    /// The epoch that ended.
    pub epoch: Epoch,
    /// The batch job; 0: none.
    pub job: JobId,
    /// Its user.
    pub job_uid: Uid,
    /// Leases ended.
    pub leases: u32,
    /// Processes killed.
    pub processes: u32,
    /// Memory freed.
    pub memory_bytes: u64,
    /// Microseconds from the trigger to the end of each step.
    pub steps: StepTimes,
    /// When the trigger arrived, on the executor's clock.
    pub stamp: Stamp,
    /// The same moment on the node's wall clock, for people.
    pub unix_ms: i64,
}

/// Microseconds from a trigger's arrival to the end of each step of a vacate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct StepTimes {
    pub fence_us: u64,
    pub kill_us: u64,
    pub gone_us: u64,
    pub release_us: u64,
    pub answer_us: u64,
}

/// A client's request for leases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acquire {
    /// Who waits.
    pub call: CallId,
    /// The caller.
    pub who: Identity,
    /// The account that it names; empty: none.
    pub account: String,
    /// Made by the client; the same one gets the same leases.
    pub request_id: [u8; 16],
    /// The client's key, which the tokens name.
    pub client_key: [u8; 32],
    /// Fewer nodes than this: refused.
    pub nodes_min: u32,
    /// Not more nodes than this.
    pub nodes_max: u32,
    /// Cores on each node.
    pub cores: u32,
    /// Memory on each node.
    pub memory_bytes: u64,
    /// For how long; capped by the policy.
    pub ttl: Duration,
    /// Only nodes of this partition; empty: any.
    pub partition: String,
    /// Not these nodes.
    pub avoid: Vec<NodeName>,
}

/// What an admin may ask. Hostlists are Slurm's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminCommand {
    /// Vacate these nodes and keep off.
    Drain {
        /// Which.
        nodelist: String,
        /// Why, for people.
        reason: String,
    },
    /// The drained nodes may be used again.
    Resume {
        /// Which.
        nodelist: String,
    },
    /// Vacate everything, and take nothing until switched on.
    SwitchOff {
        /// Why, for people.
        reason: String,
    },
    /// Go on.
    SwitchOn,
}
