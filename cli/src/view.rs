//! What is shown of the wire's types: the fields that `--json` promises, with their units in their names.
//!
//! The wire may grow and rename; these structs only change together with `output::JSON_VERSION`.

use gleaner::harvester::types::{self, EndReason, Trigger};
use serde::Serialize;

/// The cluster at a glance.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    pub(crate) cluster: String,
    pub(crate) version: String,
    pub(crate) mode: String,
    pub(crate) switched_off: bool,
    pub(crate) term: u64,
    pub(crate) uptime_ms: u64,
    pub(crate) nodes_total: u32,
    pub(crate) nodes_idle: u32,
    pub(crate) nodes_opted_in: u32,
    pub(crate) nodes_granted: u32,
    pub(crate) nodes_leased: u32,
    pub(crate) cores_granted: u32,
    pub(crate) cores_leased: u32,
    pub(crate) leases_live: u32,
    pub(crate) executors: u32,
    pub(crate) picture_age_ms: Option<u64>,
    pub(crate) picture_took_us: u64,
    pub(crate) slurm_error: Option<String>,
    pub(crate) store_error: Option<String>,
    pub(crate) vacates: u64,
    pub(crate) warnings: Vec<String>,
}

impl From<types::Status> for Status {
    fn from(status: types::Status) -> Self {
        Self {
            cluster: status.cluster,
            version: status.version,
            mode: status.mode,
            switched_off: status.switched_off,
            term: status.term,
            uptime_ms: status.uptime_ms,
            nodes_total: status.nodes_total,
            nodes_idle: status.nodes_idle,
            nodes_opted_in: status.nodes_opted_in,
            nodes_granted: status.nodes_granted,
            nodes_leased: status.nodes_leased,
            cores_granted: status.cores_granted,
            cores_leased: status.cores_leased,
            leases_live: status.leases_live,
            executors: status.executors,
            picture_age_ms: known(status.picture_age_ms),
            picture_took_us: status.picture_took_us,
            slurm_error: text(status.slurm_error),
            store_error: text(status.store_error),
            vacates: status.vacates,
            warnings: status.warnings,
        }
    }
}

/// A node.
#[derive(Debug, Serialize)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) slurm_state: String,
    pub(crate) partitions: Vec<String>,
    pub(crate) opted_in: bool,
    pub(crate) state: String,
    pub(crate) reason: Option<String>,
    pub(crate) cores: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) cores_granted: u32,
    pub(crate) cores_leased: u32,
    pub(crate) grant_epoch: u64,
    pub(crate) idle_ms: Option<u64>,
    pub(crate) executor: bool,
    pub(crate) executor_version: Option<String>,
    pub(crate) limitations: Vec<String>,
    pub(crate) expected_idle_in_ms: Option<u64>,
    pub(crate) hold_job_id: Option<u32>,
}

impl From<types::Node> for Node {
    fn from(node: types::Node) -> Self {
        Self {
            name: node.name,
            slurm_state: node.slurm_state,
            partitions: node.partitions,
            opted_in: node.opted_in,
            state: node.state,
            reason: text(node.reason),
            cores: node.cores,
            memory_bytes: node.memory_bytes,
            cores_granted: node.cores_granted,
            cores_leased: node.cores_leased,
            grant_epoch: node.grant_epoch,
            idle_ms: known(node.idle_ms),
            executor: node.executor,
            executor_version: text(node.executor_version),
            limitations: node.limitations,
            expected_idle_in_ms: known(node.expected_idle_in_ms),
            hold_job_id: (node.hold_job_id != 0).then_some(node.hold_job_id),
        }
    }
}

/// A lease's usage. CPU time is the kernel's; executing and polling are the worker's claim, clamped to it.
#[derive(Debug, Serialize)]
pub(crate) struct Usage {
    pub(crate) allocated_core_ns: u64,
    pub(crate) cpu_ns: u64,
    pub(crate) executing_ns: u64,
    pub(crate) polling_ns: u64,
    pub(crate) calls: u64,
    pub(crate) memory_peak_bytes: u64,
}

impl From<types::Usage> for Usage {
    fn from(usage: types::Usage) -> Self {
        Self {
            allocated_core_ns: usage.allocated_core_ns,
            cpu_ns: usage.cpu_ns,
            executing_ns: usage.executing_ns,
            polling_ns: usage.polling_ns,
            calls: usage.calls,
            memory_peak_bytes: usage.memory_peak_bytes,
        }
    }
}

/// A lease.
#[derive(Debug, Serialize)]
pub(crate) struct Lease {
    pub(crate) lease_id: u64,
    pub(crate) node: String,
    pub(crate) uid: u32,
    pub(crate) user: String,
    pub(crate) account: Option<String>,
    pub(crate) cores: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) state: String,
    pub(crate) created_unix_ms: i64,
    pub(crate) ended_unix_ms: Option<i64>,
    pub(crate) expires_in_ms: Option<u64>,
    pub(crate) end_reason: Option<String>,
    pub(crate) end_detail: Option<String>,
    pub(crate) usage: Option<Usage>,
}

impl From<types::LeaseInfo> for Lease {
    fn from(lease: types::LeaseInfo) -> Self {
        let live = lease.ended_unix_ms == 0;
        let reason = lease.end_reason();
        Self {
            lease_id: lease.lease_id,
            node: lease.node,
            uid: lease.uid,
            user: lease.user,
            account: text(lease.account),
            cores: lease.cores,
            memory_bytes: lease.memory_bytes,
            state: lease.state,
            created_unix_ms: lease.created_unix_ms,
            ended_unix_ms: (!live).then_some(lease.ended_unix_ms),
            expires_in_ms: if live { known(lease.expires_in_ms) } else { None },
            end_reason: (reason != EndReason::Unspecified).then(|| word(reason.as_str_name())),
            end_detail: text(lease.end_detail),
            usage: lease.usage.map(Usage::from),
        }
    }
}

/// A report; `report` holds each figure's definition.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) since_unix_ms: i64,
    pub(crate) until_unix_ms: i64,
    pub(crate) coverage: f64,
    pub(crate) total_core_seconds: f64,
    pub(crate) idle_core_seconds: f64,
    pub(crate) grantable_core_seconds: f64,
    pub(crate) harvested_core_seconds: f64,
    pub(crate) leased_core_seconds: f64,
    pub(crate) executed_core_seconds: f64,
    pub(crate) executing_core_seconds: f64,
    pub(crate) polling_core_seconds: f64,
    pub(crate) calls: u64,
    pub(crate) leases: u64,
    pub(crate) vacates: Vec<Vacate>,
    pub(crate) gaps: Vec<Gap>,
}

/// A vacate: what triggered it, and each step's end in microseconds after the trigger.
#[derive(Debug, Serialize)]
pub(crate) struct Vacate {
    pub(crate) unix_ms: i64,
    pub(crate) node: String,
    pub(crate) trigger: String,
    pub(crate) job_id: Option<u32>,
    pub(crate) leases: u32,
    pub(crate) processes: u32,
    pub(crate) grant_epoch: u64,
    pub(crate) fence_us: u64,
    pub(crate) kill_us: u64,
    pub(crate) gone_us: u64,
    pub(crate) release_us: u64,
    pub(crate) answer_us: u64,
    pub(crate) hook_us: Option<u64>,
}

/// A time in which Slurm was not observed.
#[derive(Debug, Serialize)]
pub(crate) struct Gap {
    pub(crate) from_unix_ms: i64,
    pub(crate) until_unix_ms: i64,
    pub(crate) why: String,
}

impl From<types::Report> for Report {
    fn from(report: types::Report) -> Self {
        Self {
            since_unix_ms: report.since_unix_ms,
            until_unix_ms: report.until_unix_ms,
            coverage: report.coverage,
            total_core_seconds: report.total_core_seconds,
            idle_core_seconds: report.idle_core_seconds,
            grantable_core_seconds: report.grantable_core_seconds,
            harvested_core_seconds: report.harvested_core_seconds,
            leased_core_seconds: report.leased_core_seconds,
            executed_core_seconds: report.executed_core_seconds,
            executing_core_seconds: report.executing_core_seconds,
            polling_core_seconds: report.polling_core_seconds,
            calls: report.calls,
            leases: report.leases,
            vacates: report.vacates.into_iter().map(Vacate::from).collect(),
            gaps: report.gaps.into_iter().map(Gap::from).collect(),
        }
    }
}

impl From<types::VacateInfo> for Vacate {
    fn from(vacate: types::VacateInfo) -> Self {
        let trigger = word(vacate.trigger().as_str_name())
            .replace(&word(Trigger::Unspecified.as_str_name()), "unknown");
        let steps = vacate.steps.unwrap_or_default();
        Self {
            unix_ms: vacate.unix_ms,
            node: vacate.node,
            trigger,
            job_id: (vacate.job_id != 0).then_some(vacate.job_id),
            leases: vacate.leases,
            processes: vacate.processes,
            grant_epoch: vacate.grant_epoch,
            fence_us: steps.fence_us,
            kill_us: steps.kill_us,
            gone_us: steps.gone_us,
            release_us: steps.release_us,
            answer_us: steps.answer_us,
            hook_us: (vacate.hook_us != 0).then_some(vacate.hook_us),
        }
    }
}

impl From<types::Gap> for Gap {
    fn from(gap: types::Gap) -> Self {
        Self { from_unix_ms: gap.from_unix_ms, until_unix_ms: gap.until_unix_ms, why: gap.why }
    }
}

/// The wire's -1 is "not known".
fn known(number: i64) -> Option<u64> {
    u64::try_from(number).ok()
}

/// The wire's empty text is "none".
fn text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// `BATCH_JOB` as people read it.
fn word(name: &str) -> String {
    name.to_ascii_lowercase().replace('_', "-")
}
