//! Where questions are asked: the whole service on a private Slurm, a client of it, and whose CPU is whose.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use gleaner::{Client, Library, Options};
use gleaner_testkit::{Service, poll_until};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

/// How long harvesting may take.
const HARVEST_BOUND: Duration = Duration::from_secs(30);
/// How long the last lease's worker may take to go.
const ALONE_BOUND: Duration = Duration::from_secs(10);
/// The node on which everything is measured.
pub const NODE: &str = "n1";

/// Round trips of one round.
#[derive(Debug, Clone, Copy)]
pub struct Trips {
    /// At the start, not counted.
    pub warm_up: u64,
    /// Counted.
    pub counted: u64,
}

impl Trips {
    /// So many, and a tenth of that before.
    pub const fn of(counted: u64) -> Self {
        Self { warm_up: counted.div_ceil(10), counted }
    }

    /// All of them.
    pub fn all(self) -> u64 {
        self.warm_up + self.counted
    }
}

/// A running service and what to call on it.
pub struct Stage {
    /// The service.
    pub service: Service,
    /// Functions to call.
    pub library: Library,
}

/// This thread's CPU, and the worker's, which the baseline's peer shares.
#[derive(Debug, Clone, Copy)]
pub struct Cpus {
    /// The caller's.
    pub caller: usize,
    /// The worker's.
    pub worker: usize,
}

impl Stage {
    /// One node, all defaults.
    pub fn simple() -> Result<Self> {
        Self::on(Service::with_nodes(1).start()?, 1)
    }

    /// On a service that was just started; returns when all its nodes are harvested.
    pub fn on(service: Service, nodes: u64) -> Result<Self> {
        let library = Library::from_file(service.programs().test_functions())?;
        service.wait_harvested(nodes, HARVEST_BOUND);
        Ok(Self { service, library })
    }

    /// A client of the service.
    pub fn client(&self) -> Result<Client> {
        Ok(Client::connect(Options::from(self.service.config()))?)
    }

    /// The process of the one leased worker. That of the last lease may not be gone yet, and is waited for.
    pub fn only_worker(&self) -> Result<i32> {
        let mut workers = Vec::new();
        let alone = poll_until(ALONE_BOUND, || {
            workers = self.service.leased_workers(NODE);
            workers.len() == 1
        });
        ensure!(alone, "{} workers hold a lease, not one", workers.len());
        Ok(workers[0])
    }

    /// Where the one leased worker is pinned, and a CPU beside it, on which this thread is pinned then.
    pub fn pin_beside_worker(&self) -> Result<Cpus> {
        let worker = self.only_worker()?;
        for task in fs::read_dir(format!("/proc/{worker}/task")).context("read its threads")? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
            if let Some(Ok(worker)) = allowed.map(|list| list.trim().parse::<usize>()) {
                let caller = usize::from(worker == 0);
                pin(caller)?;
                return Ok(Cpus { caller, worker });
            }
        }
        bail!("no thread of the worker is pinned to one CPU")
    }
}

/// Keeps this thread on one CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu).context("the CPU's number is too high")?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("pin to CPU {cpu}"))
}

/// Lets this thread run anywhere again, and what it starts from now on.
pub fn unpin() -> Result<()> {
    let mut set = CpuSet::new();
    (0..CpuSet::count()).try_for_each(|cpu| set.set(cpu)).context("name all CPUs")?;
    sched_setaffinity(Pid::from_raw(0), &set).context("unpin")
}
