//! The main job, end to end, on a private Slurm: harvest, lease, call, vacate, report.
//!
//! Run it with `make demo`. It starts everything itself, leaves nothing behind, and writes every figure that it shows to
//! `target/demo/summary.json`. Ctrl-C at any time ends all of it: every daemon dies with this process.

mod calls;
mod compute;
mod impact;
mod jobs;
mod report;
mod screen;
mod summary;

use std::{
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use gleaner::{Client, Library, Options};
use gleaner_testkit::{
    Service, poll_until,
    service::Programs,
    slurm::{Builder, Cluster},
};

use crate::{impact::Impact, screen::Timeline, summary::Summary};

/// Nodes of the private Slurm.
const NODES: u16 = 4;
/// How long harvesting all nodes may take.
const HARVEST_BOUND: Duration = Duration::from_secs(20);
/// Where the figures go.
const SUMMARY: &str = "target/demo/summary.json";

fn main() -> ExitCode {
    let mut summary = Summary { version: 1, nodes: usize::from(NODES), ..Summary::default() };
    let ran = run(&mut summary);
    summary.ok = ran.is_ok();
    let written = summary.write(Path::new(SUMMARY));
    match ran.and(written) {
        Ok(()) => {
            println!("\nEvery figure is in {SUMMARY}; nothing is left running.");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(summary: &mut Summary) -> Result<()> {
    let programs = Programs::find()?;
    let service = harvest(&programs, summary)?;
    let plain = plain_cluster()?;
    let client = Client::connect(Options::from(service.config()))?;
    let library = Library::from_file(programs.test_functions())?;
    calls::measure(&client, &library, summary)?;
    let mut timeline = Timeline::default();
    compute::run(&service.cluster, &client, &library, summary, &mut timeline)?;
    report::note_vacates(&client, summary, &mut timeline)?;
    screen::heading("What happened, by the wall clock");
    timeline.print();
    let wait_harvested = || wait_harvested(&service);
    let impact = Impact {
        harvested: &service.cluster,
        plain: &plain,
        client: &client,
        library: &library,
        wait_harvested: &wait_harvested,
    };
    impact.measure(summary)?;
    report::print(&service, &client, summary)?;
    ensure!(summary.calls_failed == 0, "{} calls failed", summary.calls_failed);
    Ok(())
}

/// A private Slurm, the harvester and an executor a node; returns when every idle node is harvested.
fn harvest(programs: &Programs, summary: &mut Summary) -> Result<Service> {
    screen::heading(&format!("A private Slurm of {NODES} nodes, and Gleaner on it"));
    let began = Instant::now();
    let hook = programs.path("gleaner-hook");
    let cluster = cluster().hook(hook).start()?;
    screen::line(&format!("Slurm: all {NODES} nodes idle after {:.2?}", began.elapsed()));
    let began = Instant::now();
    let service = Service::on(cluster).start()?;
    wait_harvested(&service)?;
    summary.nodes_harvested = u32::from(NODES);
    summary.harvested_after_ms = calls::millis(began.elapsed());
    screen::line(&format!("Gleaner: all {NODES} harvested after {:.2?}", began.elapsed()));
    Ok(service)
}

/// A Slurm of the same shape for comparison: its Prolog and Epilog do nothing, and nobody harvests it.
fn plain_cluster() -> Result<Cluster> {
    let empty = "/bin/true";
    Ok(cluster().prolog(empty).epilog(empty).start()?)
}

/// Both clusters alike. Batch jobs are scheduled when they are submitted, not at the next second's tick: else the phase of
/// that tick would be all that their start times show.
fn cluster() -> Builder {
    let at_once = "SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0";
    Cluster::builder().nodes(NODES).cpus(2).extra_conf(at_once)
}

fn wait_harvested(service: &Service) -> Result<()> {
    let mut granted = 0;
    let all = poll_until(HARVEST_BOUND, || {
        let status = service.status().ok();
        granted = status.and_then(|s| s["nodes_granted"].as_u64()).unwrap_or(granted);
        granted == u64::from(NODES)
    });
    ensure!(all, "only {granted} of {NODES} nodes were harvested within {HARVEST_BOUND:?}");
    Ok(())
}
