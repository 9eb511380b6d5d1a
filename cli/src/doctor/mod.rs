//! `gleaner doctor`: everything that must be in place, and what to do about what is not.
//!
//! Looks at this machine and at the harvester; repairs nothing. What a machine does not have to have (an executor's
//! socket on a login node) is told as such and is no fault.

mod cluster;
mod machine;
mod rdma;
mod slurm;

use std::{path::Path, process::ExitCode};

use gleaner_config::Loaded;
use serde::Serialize;

use crate::{
    arguments::Common,
    connect::load,
    exit::{Code, Failure},
    output,
};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Health {
    /// As it must be.
    Good,
    /// It works, but not as well as it could.
    Warning,
    /// It must be repaired.
    Bad,
    /// Does not concern this machine.
    Absent,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    name: &'static str,
    health: Health,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn good(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, health: Health::Good, detail: detail.into(), remedy: None }
    }

    fn absent(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, health: Health::Absent, detail: detail.into(), remedy: None }
    }

    fn warning(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, health: Health::Warning, detail: detail.into(), remedy: Some(remedy.into()) }
    }

    fn bad(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, health: Health::Bad, detail: detail.into(), remedy: Some(remedy.into()) }
    }
}

/// Looks at everything and prints it. Not healthy if one finding is bad.
pub(crate) fn run(common: &Common) -> Result<ExitCode, Failure> {
    let findings = match load(common) {
        Ok(loaded) => examine(&loaded),
        Err(failure) => vec![Finding::bad(
            "configuration",
            failure.message,
            "correct it; `gleaner config check` looks again",
        )],
    };
    output::print(common.json, "doctor", &findings, |findings| text(findings));
    let healthy = findings.iter().all(|finding| finding.health != Health::Bad);
    Ok(if healthy { ExitCode::SUCCESS } else { Code::Unhealthy.into() })
}

fn examine(loaded: &Loaded) -> Vec<Finding> {
    let config = &loaded.config;
    let source = loaded
        .path
        .as_ref()
        .map_or_else(|| "defaults alone".into(), |path| path.display().to_string());
    let mut findings = vec![Finding::good("configuration", source)];
    findings.push(cluster::munge(config));
    findings.extend(cluster::harvester(config));
    findings.extend(slurm::examine(&config.slurm));
    findings.extend(machine::executors(&config.executor.run_dir));
    findings.push(machine::cgroup());
    findings.extend(machine::huge_pages(Path::new(machine::HUGE_PAGES_DIR)));
    findings.push(machine::clock_source());
    findings.push(machine::clock_rate());
    findings.extend(rdma::examine(config));
    findings
}

fn text(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.health {
            Health::Good => "ok  ",
            Health::Warning => "WARN",
            Health::Bad => "BAD ",
            Health::Absent => "-   ",
        };
        text +=
            &format!("{mark}  {:width$}  {}\n", finding.name, finding.detail.replace('\n', "; "));
        if let Some(remedy) = &finding.remedy {
            text += &format!("{:6}{:width$}  → {remedy}\n", "", "");
        }
    }
    text
}
