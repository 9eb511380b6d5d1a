//! Batch jobs that tell when they began: what an admin looks at first.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use gleaner_testkit::{poll_until, slurm::Cluster};

use crate::screen::unix_ms;

/// How long any one job of the demo may take.
const BOUND: Duration = Duration::from_secs(30);

/// One job's times, in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JobTimes {
    pub(crate) submitted: f64,
    pub(crate) began: f64,
}

impl JobTimes {
    /// Submission to first instruction.
    pub(crate) fn start_ms(self) -> f64 {
        self.began - self.submitted
    }
}

/// Runs an exclusive `srun` on a node (or any) to its end; its task notes the time and works for `seconds`.
pub(crate) fn srun(cluster: &Cluster, node: Option<&str>, seconds: f64) -> Result<JobTimes> {
    let task = format!("date +%s%N; sleep {seconds}");
    let place = node.map(|node| format!("--nodelist={node}"));
    let mut arguments = vec!["--exclusive", "-N1", "-n1"];
    arguments.extend(place.as_deref());
    arguments.extend(["sh", "-c", &task]);
    let submitted = unix_ms(SystemTime::now());
    let printed = cluster.srun(&arguments)?;
    Ok(JobTimes { submitted, began: parse_nanos(&printed)? })
}

/// Submits an exclusive batch job and waits until it has begun and ended.
pub(crate) fn sbatch(cluster: &Cluster, node: Option<&str>, seconds: f64) -> Result<JobTimes> {
    let note = note_file(cluster);
    let script =
        format!("date +%s%N > {0}.new && mv {0}.new {0}\nsleep {seconds}\n", note.display());
    let place = node.map(|node| format!("--nodelist={node}"));
    let mut arguments = vec!["--exclusive", "-N1", "--output=/dev/null"];
    arguments.extend(place.as_deref());
    let submitted = unix_ms(SystemTime::now());
    let job = cluster.sbatch(&arguments, &script)?;
    let mut printed = None;
    poll_until(BOUND, || {
        printed = fs::read_to_string(&note).ok();
        printed.is_some()
    });
    let printed = printed.with_context(|| format!("job {job} did not begin within {BOUND:?}"))?;
    fs::remove_file(&note).with_context(|| format!("remove {}", note.display()))?;
    cluster.wait_job(job, "COMPLETED", BOUND);
    Ok(JobTimes { submitted, began: parse_nanos(&printed)? })
}

fn note_file(cluster: &Cluster) -> PathBuf {
    cluster.dir().join("began")
}

fn parse_nanos(printed: &str) -> Result<f64> {
    let nanos: u64 =
        printed.trim().parse().with_context(|| format!("the job printed {printed:?}"))?;
    Ok(nanos as f64 / 1e6)
}
