//! `gleaner report`: each figure with its definition, the period's coverage and its gaps.

use gleaner::harvester::types;
use serde::Serialize;

use crate::{
    arguments::{Common, Report},
    connect::client,
    exit::Failure,
    figures::{microseconds, moment, share, unix_ms},
    output, view,
};

/// Takes one figure out of a report.
type Figure = fn(&view::Report) -> f64;

/// A figure of core time: its name, what it means, and the one that it is a share of.
struct Definition {
    name: &'static str,
    means: &'static str,
    value: Figure,
    of: Option<(&'static str, Figure)>,
}

const TOTAL: Figure = |report| report.total_core_seconds;
const IDLE: Figure = |report| report.idle_core_seconds;
const GRANTABLE: Figure = |report| report.grantable_core_seconds;
const HARVESTED: Figure = |report| report.harvested_core_seconds;
const LEASED: Figure = |report| report.leased_core_seconds;
const EXECUTED: Figure = |report| report.executed_core_seconds;

const DEFINITIONS: [Definition; 8] = [
    Definition {
        name: "total",
        means: "cores of every node that Slurm has, while observed",
        value: TOTAL,
        of: None,
    },
    Definition {
        name: "idle",
        means: "cores of nodes idle in Slurm's eyes",
        value: IDLE,
        of: Some(("total", TOTAL)),
    },
    Definition {
        name: "grantable",
        means: "of those, what the policy let Gleaner take",
        value: GRANTABLE,
        of: Some(("idle", IDLE)),
    },
    Definition {
        name: "harvested",
        means: "under a grant: an executor held them",
        value: HARVESTED,
        of: Some(("grantable", GRANTABLE)),
    },
    Definition {
        name: "leased",
        means: "under a lease",
        value: LEASED,
        of: Some(("harvested", HARVESTED)),
    },
    Definition {
        name: "executed",
        means: "CPU time of leases, by the kernel's accounts",
        value: EXECUTED,
        of: Some(("leased", LEASED)),
    },
    Definition {
        name: "  in functions",
        means: "the workers' claim, clamped to CPU time",
        value: |report| report.executing_core_seconds,
        of: Some(("executed", EXECUTED)),
    },
    Definition {
        name: "  waiting hot",
        means: "the workers' claim, clamped to CPU time",
        value: |report| report.polling_core_seconds,
        of: Some(("executed", EXECUTED)),
    },
];

/// The report as JSON: the figures, and what each means.
#[derive(Debug, Serialize)]
struct Defined {
    #[serde(flatten)]
    report: view::Report,
    definitions: std::collections::BTreeMap<String, &'static str>,
}

/// Asks for a period's report and prints it.
pub(crate) fn run(common: &Common, report: &Report) -> Result<(), Failure> {
    let (client, _) = client(common)?;
    let request = types::GetReportRequest {
        since_unix_ms: unix_ms(report.since),
        until_unix_ms: report.until.map_or(0, unix_ms),
    };
    let report = view::Report::from(client.harvester().report(request)?);
    let definitions =
        DEFINITIONS.iter().map(|figure| (figure.name.trim().to_owned(), figure.means)).collect();
    output::print(common.json, "report", &Defined { report, definitions }, |defined| {
        text(&defined.report)
    });
    Ok(())
}

fn text(report: &view::Report) -> String {
    let mut parts = vec![
        format!("{} to {}", moment(report.since_unix_ms), moment(report.until_unix_ms)),
        format!(
            "coverage {:.2} %: the share of the period in which Slurm was observed; nothing is assumed for the rest",
            100.0 * report.coverage
        ),
        String::new(),
        figures(report),
        String::new(),
        format!("{} leases, {} calls", report.leases, report.calls),
    ];
    if !report.vacates.is_empty() {
        parts.extend([String::new(), vacates(&report.vacates)]);
    }
    if !report.gaps.is_empty() {
        let gap = |gap: &view::Gap| {
            vec![moment(gap.from_unix_ms), moment(gap.until_unix_ms), gap.why.clone()]
        };
        parts.extend([
            String::new(),
            output::table(&["GAP FROM", "UNTIL", "WHY"], report.gaps.iter().map(gap)),
        ]);
    }
    parts.join("\n")
}

fn figures(report: &view::Report) -> String {
    let row = |figure: &Definition| {
        let value = (figure.value)(report);
        let of =
            figure.of.map(|(name, whole)| format!("{} of {name}", share(value, whole(report))));
        vec![
            figure.name.to_owned(),
            format!("{value:.1}"),
            of.unwrap_or_default(),
            figure.means.to_owned(),
        ]
    };
    output::table(&["CORES", ">CORE-SECONDS", ">SHARE", "MEANING"], DEFINITIONS.iter().map(row))
}

fn vacates(vacates: &[view::Vacate]) -> String {
    let row = |vacate: &view::Vacate| {
        vec![
            moment(vacate.unix_ms),
            vacate.node.clone(),
            vacate.trigger.clone(),
            vacate.job_id.map_or_else(|| "-".into(), |job| job.to_string()),
            vacate.leases.to_string(),
            vacate.processes.to_string(),
            microseconds(vacate.fence_us),
            microseconds(vacate.kill_us),
            microseconds(vacate.gone_us),
            microseconds(vacate.release_us),
            microseconds(vacate.answer_us),
            vacate.hook_us.map_or_else(|| "-".into(), microseconds),
        ]
    };
    let header = [
        "VACATED",
        "NODE",
        "TRIGGER",
        ">JOB",
        ">LEASES",
        ">PROCS",
        ">FENCED",
        ">KILLED",
        ">GONE",
        ">RELEASED",
        ">ANSWERED",
        ">JOB WAITED",
    ];
    let note = "steps: time from the trigger's arrival on the node to the end of each";
    format!("{}\n{note}", output::table(&header, vacates.iter().map(row)))
}
