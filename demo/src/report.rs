//! The vacates on the timeline, and the report at the end: the harvester's own records.

use anyhow::{Context, Result, ensure};
use gleaner::{
    Client,
    harvester::types::{GetReportRequest, StepTimes, VacateInfo},
};
use gleaner_testkit::Service;

use crate::{
    screen::{self, Timeline},
    summary::Summary,
};

/// Puts every vacate so far on the timeline.
pub(crate) fn note_vacates(
    client: &Client,
    summary: &mut Summary,
    timeline: &mut Timeline,
) -> Result<()> {
    let report = client.harvester().report(GetReportRequest::default()).context("report")?;
    for vacate in &report.vacates {
        let steps = vacate.steps.unwrap_or_default();
        summary.vacate_ms.push(gone_ms(&steps));
        let what = format!(
            "{}: job {} wants the node: {} leases, {} processes gone in {:.1} ms, hook {:.1} ms",
            vacate.node,
            vacate.job_id,
            vacate.leases,
            vacate.processes,
            gone_ms(&steps),
            hook_ms(vacate),
        );
        timeline.note_unix_ms(vacate.unix_ms as f64, what);
    }
    ensure!(!summary.vacate_ms.is_empty(), "no vacate was recorded");
    Ok(())
}

/// Prints the report and takes its figures into the summary.
pub(crate) fn print(service: &Service, client: &Client, summary: &mut Summary) -> Result<()> {
    screen::heading("gleaner report");
    let report = client.harvester().report(GetReportRequest::default()).context("report")?;
    summary.harvested_core_seconds = report.harvested_core_seconds;
    summary.leased_core_seconds = report.leased_core_seconds;
    summary.executed_core_seconds = report.executed_core_seconds;
    summary.vacate_ms =
        report.vacates.iter().map(|vacate| gone_ms(&vacate.steps.unwrap_or_default())).collect();
    summary.hook_ms = report.vacates.iter().map(hook_ms).filter(|ms| *ms > 0.0).collect();
    let printed = service.command(&["report"]).output().context("run gleaner report")?;
    print!("{}", String::from_utf8_lossy(&printed.stdout));
    ensure!(printed.status.success(), "gleaner report: {}", printed.status);
    Ok(())
}

fn gone_ms(steps: &StepTimes) -> f64 {
    steps.gone_us as f64 / 1e3
}

fn hook_ms(vacate: &VacateInfo) -> f64 {
    vacate.hook_us as f64 / 1e3
}
