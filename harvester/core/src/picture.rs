//! What Slurm says of its nodes and jobs, as plain types, and which node states may be touched at all.
//!
//! `harvester/src/slurm` fills these from Slurm's answers; the rest of this crate reads them. Nothing here knows a
//! policy: [`NodeState::untouchable`] holds for every site.

use std::fmt;

use gleaner_proto::ids::{JobId, NodeName};

/// The base state of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Base {
    /// Not known, or a word that this version has not heard of.
    #[default]
    Unknown,
    /// Does not answer, or was set down.
    Down,
    /// Nothing runs there.
    Idle,
    /// All of it is allocated.
    Allocated,
    /// Some of it is allocated.
    Mixed,
    /// In an error state, as Slurm reports it.
    Error,
    /// A dynamic or cloud node that does not exist yet.
    Future,
}

/// What Slurm adds to the base state, one bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Flags(pub u32);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Drained or draining.
    pub const DRAIN: Self = Self(1);
    /// Failed or failing.
    pub const FAIL: Self = Self(1 << 1);
    /// In maintenance.
    pub const MAINT: Self = Self(1 << 2);
    /// In a reservation that is active now.
    pub const RESERVED: Self = Self(1 << 3);
    /// A job's end is being worked on.
    pub const COMPLETING: Self = Self(1 << 4);
    /// Powering up or down, or asked to.
    pub const POWERING: Self = Self(1 << 5);
    /// Powered down.
    pub const POWERED_DOWN: Self = Self(1 << 6);
    /// A reboot was asked for or issued.
    pub const REBOOT: Self = Self(1 << 7);
    /// The backfill scheduler has planned a job here.
    pub const PLANNED: Self = Self(1 << 8);
    /// slurmd does not answer.
    pub const NOT_RESPONDING: Self = Self(1 << 9);
    /// Blocked by a job that wants the node for itself.
    pub const BLOCKED: Self = Self(1 << 10);
    /// A cloud or dynamic node: says nothing about its state.
    pub const CLOUD: Self = Self(1 << 11);
    /// A word that this version has not heard of.
    pub const UNKNOWN: Self = Self(1 << 12);

    /// Whether all of `other` is set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Base state and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NodeState {
    /// The base state.
    pub base: Base,
    /// What is added to it.
    pub flags: Flags,
}

/// The words of `scontrol` and `sinfo` for what forbids a node, and their bits.
const WORDS: &[(&str, Flags)] = &[
    ("DRAIN", Flags::DRAIN),
    ("DRAINING", Flags::DRAIN),
    ("DRAINED", Flags::DRAIN),
    ("FAIL", Flags::FAIL),
    ("FAILING", Flags::FAIL),
    ("MAINT", Flags::MAINT),
    ("MAINTENANCE", Flags::MAINT),
    ("RESERVED", Flags::RESERVED),
    ("COMPLETING", Flags::COMPLETING),
    ("COMPLETE", Flags::COMPLETING),
    ("COMP", Flags::COMPLETING),
    ("POWER_UP", Flags::POWERING),
    ("POWERING_UP", Flags::POWERING),
    ("POWER_DOWN", Flags::POWERING),
    ("POWERING_DOWN", Flags::POWERING),
    ("POWERED_DOWN", Flags::POWERED_DOWN),
    ("REBOOT", Flags::REBOOT),
    ("REBOOT_REQUESTED", Flags::REBOOT),
    ("REBOOT_ISSUED", Flags::REBOOT),
    ("PLANNED", Flags::PLANNED),
    ("NOT_RESPONDING", Flags::NOT_RESPONDING),
    ("NO_RESPOND", Flags::NOT_RESPONDING),
    ("BLOCKED", Flags::BLOCKED),
    ("CLOUD", Flags::CLOUD),
    ("DYNAMIC", Flags::CLOUD),
    ("DYNAMIC_NORM", Flags::CLOUD),
    ("DYNAMIC_FUTURE", Flags::CLOUD),
];

/// The one-character marks that Slurm hangs on a state's word.
const MARKS: &[(char, Flags)] = &[
    ('*', Flags::NOT_RESPONDING),
    ('~', Flags::POWERED_DOWN),
    ('#', Flags::POWERING),
    ('!', Flags::POWERING),
    ('%', Flags::POWERING),
    ('$', Flags::MAINT),
    ('@', Flags::REBOOT),
    ('^', Flags::REBOOT),
    ('-', Flags::PLANNED),
];

/// The flags that forbid a node at every site, with the word that is shown, the gravest first.
const FORBIDDING: &[(Flags, &str)] = &[
    (Flags::NOT_RESPONDING, "NOT_RESPONDING"),
    (Flags::FAIL, "FAIL"),
    (Flags::DRAIN, "DRAIN"),
    (Flags::MAINT, "MAINT"),
    (Flags::REBOOT, "REBOOT"),
    (Flags::POWERED_DOWN, "POWERED_DOWN"),
    (Flags::POWERING, "POWERING"),
    (Flags::RESERVED, "RESERVED"),
    (Flags::COMPLETING, "COMPLETING"),
    (Flags::BLOCKED, "BLOCKED"),
    (Flags::UNKNOWN, "a state that this version does not know"),
];

impl NodeState {
    /// Idle, with nothing added.
    pub const IDLE: Self = Self { base: Base::Idle, flags: Flags::NONE };

    /// Reads `IDLE+DRAIN+CLOUD` as `scontrol` writes it, and `idle*` or `draining` as `sinfo` does. Whatever is not
    /// understood becomes [`Flags::UNKNOWN`], so that the node is left alone.
    pub fn parse(text: &str) -> Self {
        let mut state = Self::default();
        for word in text.trim().split('+') {
            let mut word = word;
            while let Some((mark, flag)) = MARKS.iter().find(|(mark, _)| word.ends_with(*mark)) {
                state.flags = state.flags.with(*flag);
                word = &word[..word.len() - mark.len_utf8()];
            }
            state.add(&word.to_ascii_uppercase());
        }
        state
    }

    fn add(&mut self, word: &str) {
        let base = match word {
            "IDLE" => Base::Idle,
            "ALLOCATED" | "ALLOC" => Base::Allocated,
            "MIXED" | "MIX" => Base::Mixed,
            "DOWN" => Base::Down,
            "ERROR" => Base::Error,
            "FUTURE" => Base::Future,
            "UNKNOWN" => Base::Unknown,
            _ => {
                let known = WORDS.iter().find(|(known, _)| *known == word);
                let flag = known.map_or(Flags::UNKNOWN, |(_, flag)| *flag);
                self.flags = self.flags.with(flag);
                // sinfo folds base and flag into one word; these say that nothing else runs there.
                if matches!(word, "RESERVED" | "PLANNED") && self.base == Base::Unknown {
                    self.base = Base::Idle;
                }
                return;
            }
        };
        self.base = base;
    }

    /// Why a node in this state may never be touched, whatever the policy: the word that forbids it.
    pub fn untouchable(self) -> Option<&'static str> {
        let forbidding = FORBIDDING.iter().find(|(flag, _)| self.flags.contains(*flag));
        forbidding.map(|(_, word)| *word).or(match self.base {
            Base::Idle | Base::Allocated | Base::Mixed => None,
            Base::Down => Some("DOWN"),
            Base::Error => Some("ERROR"),
            Base::Future => Some("FUTURE"),
            Base::Unknown => Some("a state that this version does not know"),
        })
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.base {
            Base::Unknown => "UNKNOWN",
            Base::Down => "DOWN",
            Base::Idle => "IDLE",
            Base::Allocated => "ALLOCATED",
            Base::Mixed => "MIXED",
            Base::Error => "ERROR",
            Base::Future => "FUTURE",
        })?;
        let shown = [(Flags::PLANNED, "PLANNED"), (Flags::CLOUD, "CLOUD")];
        for (flag, word) in FORBIDDING.iter().chain(&shown) {
            if self.flags.contains(*flag) {
                let word = if *flag == Flags::UNKNOWN { "UNKNOWN_FLAG" } else { word };
                write!(f, "+{word}")?;
            }
        }
        Ok(())
    }
}

/// One node as Slurm describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// Its name in Slurm.
    pub name: NodeName,
    /// Base state and flags.
    pub state: NodeState,
    /// The partitions that it is in.
    pub partitions: Vec<String>,
    /// Its active features.
    pub features: Vec<String>,
    /// CPUs that Slurm counts there.
    pub cpus: u32,
    /// Of those, allocated to jobs.
    pub alloc_cpus: u32,
    /// Memory in Slurm's configuration, MiB.
    pub real_memory_mb: u64,
    /// Of that, allocated to jobs, MiB.
    pub alloc_memory_mb: u64,
    /// When the backfill scheduler plans a job here, Unix seconds, if the reader knows it.
    pub planned_start_unix_s: Option<i64>,
}

impl NodeView {
    /// Whether any job has a part of it.
    pub fn occupied(&self) -> bool {
        self.alloc_cpus > 0
            || self.alloc_memory_mb > 0
            || matches!(self.state.base, Base::Allocated | Base::Mixed)
            || self.state.flags.contains(Flags::COMPLETING)
    }
}

/// One look at all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Every node of the cluster.
    pub nodes: Vec<NodeView>,
    /// When the query was SENT, on the harvester's `CLOCK_BOOTTIME`: what it shows may be as old as that.
    pub asked_ns: u64,
    /// How long the query took, microseconds.
    pub took_us: u64,
}

/// One running job, or one that the backfill scheduler has planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobView {
    /// Its number.
    pub id: JobId,
    /// Where it runs, or is planned to run.
    pub nodes: Vec<NodeName>,
    /// Running: its time limit's end. Unix seconds; `None` if it has no limit.
    pub end_unix_s: Option<i64>,
    /// Pending: its planned start, Unix seconds. `None` for a running job.
    pub start_unix_s: Option<i64>,
}
