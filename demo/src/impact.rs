//! What a batch job notices: starts with Gleaner's workers busy on its node, beside starts on a Slurm without Gleaner.

use std::{thread, time::Duration};

use anyhow::{Context, Result};
use gleaner::{Client, Library, Request, Waiting};
use gleaner_testkit::slurm::Cluster;

use crate::{
    jobs::{self, JobTimes},
    screen,
    summary::{Pairs, Summary, median},
};

/// Interleaved pairs of each kind.
const PAIRS: usize = 5;
/// The pause before each start.
const SETTLE: Duration = Duration::from_millis(1200);

/// A way to start a job.
type Start = fn(&Cluster, Option<&str>, f64) -> Result<JobTimes>;

/// The two clusters that are compared, and the client that keeps one of them busy.
pub(crate) struct Impact<'a> {
    pub(crate) harvested: &'a Cluster,
    pub(crate) plain: &'a Cluster,
    pub(crate) client: &'a Client,
    pub(crate) library: &'a Library,
    /// Returns when every node of the harvested cluster is under a grant again.
    pub(crate) wait_harvested: &'a dyn Fn() -> Result<()>,
}

/// Measures one start after a pause: slurmctld defers a job that comes right after another one's end to its next
/// periodic pass, and the two sides must not differ in that.
fn settled(start: impl FnOnce() -> Result<f64>) -> Result<f64> {
    thread::sleep(SETTLE);
    start()
}

impl Impact<'_> {
    /// Measures the pairs, `srun` and `sbatch` apart.
    pub(crate) fn measure(&self, summary: &mut Summary) -> Result<()> {
        screen::heading(
            "What a batch job notices: submission to first instruction, interleaved pairs",
        );
        summary.batch_job_start_ms.srun = self.pairs("srun", jobs::srun)?;
        summary.batch_job_start_ms.sbatch = self.pairs("sbatch", jobs::sbatch)?;
        Ok(())
    }

    fn pairs(&self, name: &str, start: Start) -> Result<Pairs> {
        let mut pairs = Pairs::default();
        for pair in 0..PAIRS {
            let with = || self.with_gleaner(start).with_context(|| format!("{name}, pair {pair}"));
            let without = || Ok(start(self.plain, Some("n1"), 0.0)?.start_ms());
            pairs.with_gleaner.push(settled(with)?);
            pairs.without_gleaner.push(settled(without)?);
        }
        screen::line(&format!(
            "{name:<6} with Gleaner {:>6.0} ms, without {:>6.0} ms (medians of {PAIRS})",
            median(&pairs.with_gleaner),
            median(&pairs.without_gleaner)
        ));
        Ok(pairs)
    }

    /// One start on a node whose leased core is inside a function.
    fn with_gleaner(&self, start: Start) -> Result<f64> {
        (self.wait_harvested)()?;
        let request = Request::new().waiting(Waiting::Warm).patience(Duration::ZERO);
        let pool = self.client.acquire(request)?;
        let spin = pool.function(self.library, "spin")?;
        let node = pool
            .leases()
            .first()
            .map(|lease| lease.node.clone())
            .context("a pool without a lease")?;
        let busy = spin.submit(&Duration::from_secs(20).as_nanos().to_le_bytes()[..8])?;
        let times = start(self.harvested, Some(&node), 0.0);
        drop(busy);
        drop(pool);
        Ok(times?.start_ms())
    }
}
