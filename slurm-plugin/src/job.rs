//! The job, as slurmd describes it in the environment of Prolog and Epilog.

use std::env;

use gleaner_proto::{hook::HookKind, ids::NodeName};

/// The job, the node, and which hook this is.
#[derive(Debug)]
pub(crate) struct Job {
    /// Its number.
    pub(crate) id: u32,
    /// Its user; `u32::MAX` if slurmd did not say.
    pub(crate) uid: u32,
    /// Prolog or epilog.
    pub(crate) kind: HookKind,
    /// The node, as Slurm names it.
    pub(crate) node: NodeName,
}

impl Job {
    /// Reads the environment; an error says what is missing. What cannot be told from it is taken for a prolog: to
    /// vacate in vain harms nobody.
    pub(crate) fn from_environment(kind: Option<HookKind>) -> Result<Self, &'static str> {
        let text = |name: &str| env::var(name).unwrap_or_default();
        let id = text("SLURM_JOB_ID").parse();
        let id = id.map_err(
            |_| "no SLURM_JOB_ID in the environment: let slurmd run this as Prolog and Epilog",
        )?;
        let node = NodeName::new(&text("SLURMD_NODENAME"));
        let node = node.map_err(
            |_| "no SLURMD_NODENAME in the environment: let slurmd run this, not slurmctld",
        )?;
        let epilog = text("SLURM_SCRIPT_CONTEXT") == "epilog_slurmd";
        let said = if epilog { HookKind::Epilog } else { HookKind::Prolog };
        let uid = text("SLURM_JOB_UID").parse().unwrap_or(u32::MAX);
        Ok(Self { id, uid, kind: kind.unwrap_or(said), node })
    }
}
