//! What a private Slurm is to be like, and its `slurm.conf`.

use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use super::{Cluster, ClusterError};

/// Describes a private Slurm; [`start`](Self::start) brings it up.
#[derive(Debug, Clone)]
pub struct Builder {
    pub(super) nodes: u16,
    cpus: u32,
    memory_mb: u64,
    features: Vec<String>,
    partitions: Vec<String>,
    prolog: Option<PathBuf>,
    epilog: Option<PathBuf>,
    pub(super) hook: Option<PathBuf>,
    pub(super) hook_bound_ms: Option<u64>,
    extra_conf: String,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            nodes: 4,
            cpus: 2,
            memory_mb: 4000,
            features: Vec::new(),
            partitions: Vec::new(),
            prolog: None,
            epilog: None,
            hook: None,
            hook_bound_ms: None,
            extra_conf: String::new(),
        }
    }
}

/// The ports and paths that a configuration names.
pub(super) struct Layout<'a> {
    pub(super) dir: &'a Path,
    pub(super) host: &'a str,
    pub(super) user: &'a str,
    pub(super) controller_port: u16,
    pub(super) node_ports: &'a [u16],
    pub(super) own_host_names: bool,
}

impl Builder {
    /// How many nodes: `n1`, `n2`, ...
    pub fn nodes(mut self, nodes: u16) -> Self {
        self.nodes = nodes;
        self
    }

    /// CPUs of each node, more than the machine has if need be.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Memory of each node, in MiB.
    pub fn memory_mb(mut self, memory_mb: u64) -> Self {
        self.memory_mb = memory_mb;
        self
    }

    /// A feature that all nodes have.
    pub fn feature(mut self, feature: &str) -> Self {
        self.features.push(feature.to_owned());
        self
    }

    /// A partition, as `slurm.conf` has it after `PartitionName=`; none: one `batch` with all nodes.
    pub fn partition(mut self, line: &str) -> Self {
        self.partitions.push(line.to_owned());
        self
    }

    /// A Prolog script; `PrologFlags=Alloc` makes it run on all of a job's nodes.
    pub fn prolog(mut self, script: impl Into<PathBuf>) -> Self {
        self.prolog = Some(script.into());
        self
    }

    /// An Epilog script.
    pub fn epilog(mut self, script: impl Into<PathBuf>) -> Self {
        self.epilog = Some(script.into());
        self
    }

    /// Gleaner's hook as Prolog and Epilog of all nodes, told the cluster's own [`run_dir`](Cluster::run_dir).
    pub fn hook(mut self, program: impl Into<PathBuf>) -> Self {
        self.hook = Some(program.into());
        self
    }

    /// How long the hook may take, where that is not its own default: on a machine that builds meanwhile, a keeper that
    /// answers late is no fault.
    pub fn hook_bound_ms(mut self, bound_ms: u64) -> Self {
        self.hook_bound_ms = Some(bound_ms);
        self
    }

    /// More lines for `slurm.conf`; `@D@` stands for the cluster's directory.
    pub fn extra_conf(mut self, lines: &str) -> Self {
        self.extra_conf.push_str(lines);
        self.extra_conf.push('\n');
        self
    }

    /// Brings it up; returns when all nodes are idle.
    pub fn start(self) -> Result<Cluster, ClusterError> {
        Cluster::start(&self)
    }

    /// The whole `slurm.conf`.
    pub(super) fn text(&self, layout: &Layout<'_>) -> String {
        let Layout { dir, host, user, controller_port, .. } = layout;
        let dir = dir.display();
        let mut text = format!(
            "ClusterName=private
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={dir}/munge/sock
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
TmpFS={dir}/tmp/%n
SlurmctldPidFile={dir}/pids/slurmctld.pid
SlurmdPidFile={dir}/pids/slurmd-%n.pid
SlurmctldLogFile={dir}/log/slurmctld.log
SlurmdLogFile={dir}/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
PlugStackConfig={dir}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SlurmctldTimeout=120
SlurmdTimeout=120
SlurmdParameters=config_overrides
InactiveLimit=0
KillWait=5
SchedulerParameters=batch_sched_delay=0
Waittime=0
"
        );
        self.write_hooks(&mut text, layout.dir);
        text.push_str(&self.extra_conf.replace("@D@", &dir.to_string()));
        self.write_nodes(&mut text, layout);
        text
    }

    fn write_hooks(&self, text: &mut String, dir: &Path) {
        let hook = self.hook.as_ref().map(|_| hook_script(dir));
        let prolog = self.prolog.as_ref().or(hook.as_ref());
        if let Some(prolog) = prolog {
            let _ = writeln!(text, "PrologFlags=Alloc\nProlog={}", prolog.display());
        }
        if let Some(epilog) = self.epilog.as_ref().or(hook.as_ref()) {
            let _ = writeln!(text, "Epilog={}", epilog.display());
        }
    }

    fn write_nodes(&self, text: &mut String, layout: &Layout<'_>) {
        let features = if self.features.is_empty() {
            String::new()
        } else {
            format!(" Features={}", self.features.join(","))
        };
        for (index, port) in layout.node_ports.iter().enumerate() {
            let number = index + 1;
            let host =
                if layout.own_host_names { node_name(number) } else { layout.host.to_owned() };
            let (high, low) = (1 + number / 250, 1 + number % 250);
            let _ = writeln!(
                text,
                "NodeName={} NodeHostname={host} NodeAddr=127.0.{high}.{low} Port={port} CPUs={} \
                 RealMemory={}{features} State=UNKNOWN",
                node_name(number),
                self.cpus,
                self.memory_mb,
            );
        }
        if self.partitions.is_empty() {
            text.push_str("PartitionName=batch Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n");
        }
        for partition in &self.partitions {
            let _ = writeln!(text, "PartitionName={partition}");
        }
    }
}

/// A node's name from its number, counted from 1.
pub(super) fn node_name(number: usize) -> String {
    format!("n{number}")
}

/// Where the wrapper around Gleaner's hook lies.
pub(super) fn hook_script(dir: &Path) -> PathBuf {
    dir.join("hook.sh")
}
