//! Records as rows: which statement each one is, and with which values. Contains no SQL.
//!
//! Called by [`super::writer`]. The same rows go into the database or, when that fails, into [`super::journal`]: that
//! is why they are plain data with stable names.

use gleaner_harvester_core::event::{Usage, Vacated};
use gleaner_harvester_core::record::{JobRecord, LeaseRecord, Record, Transition};
use gleaner_lease::issuer::Numbers;
use serde::{Deserialize, Serialize};

/// A statement of [`super::operations`]; its name is in journals, so it is never given another meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Statement {
    Term,
    Alive,
    Setting,
    Lease,
    LeaseRenewed,
    LeaseEnding,
    LeaseEnded,
    Usage,
    Vacate,
    Job,
    TransitionEnds,
    TransitionBegins,
    Watch,
    Drain,
    Resume,
    Audit,
}

/// One value of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// One statement with its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    pub(super) statement: Statement,
    pub(super) values: Vec<Value>,
}

/// The kill switch's name in the settings.
pub(super) const SWITCH: &str = "switched_off";
/// The name of the first unused lease id in the settings.
pub(super) const LEASE_IDS: &str = "next_lease";
/// The name of the first unused epoch in the settings.
pub(super) const EPOCHS: &str = "next_epoch";
/// Stands for a user that could not be identified in an audit record.
pub(crate) const NOBODY_KNOWN: u32 = u32::MAX;

fn row(statement: Statement, values: impl Into<Vec<Value>>) -> Row {
    Row { statement, values: values.into() }
}

/// The rows of one record, in order. Storing them twice is harmless.
pub(super) fn rows_of(record: &Record) -> Vec<Row> {
    let one = match record {
        Record::Term { term, grant_ttl, unix_ms } => {
            row(Statement::Term, [int(term.0), int(grant_ttl.as_nanos()), int(*unix_ms)])
        }
        Record::Alive { term, unix_ms } => row(Statement::Alive, [int(term.0), int(*unix_ms)]),
        Record::Numbers(Numbers { lease, epoch }) => {
            return vec![setting(LEASE_IDS, *lease, "", 0), setting(EPOCHS, *epoch, "", 0)];
        }
        Record::Lease(lease) => lease_row(lease),
        Record::LeaseRenewed { lease, expires } => {
            row(Statement::LeaseRenewed, [int(lease.0), int(expires.0)])
        }
        Record::LeaseEnding { lease, reason } => {
            row(Statement::LeaseEnding, [int(lease.0), int(*reason as u8)])
        }
        Record::LeaseEnded { lease, reason, detail, unix_ms } => row(
            Statement::LeaseEnded,
            [int(lease.0), int(*reason as u8), text(detail), int(*unix_ms)],
        ),
        Record::Usage { lease, usage, unix_ms } => usage_row(lease.0, usage, *unix_ms),
        Record::Vacate { node, vacated } => vacate_row(node.as_str(), vacated),
        Record::Job(job) => job_row(job),
        Record::Transition(transition) => return transition_rows(transition).into(),
        Record::Watch { term, unix_ms, gap } => {
            let gap = gap.as_deref().map_or(Value::Null, text);
            row(Statement::Watch, [int(term.0), int(*unix_ms), gap])
        }
        Record::Drain { node, reason, unix_ms } => {
            row(Statement::Drain, [text(node.as_str()), text(reason), int(*unix_ms)])
        }
        Record::Resume { node } => row(Statement::Resume, [text(node.as_str())]),
        Record::Switch { off, unix_ms } => {
            let reason = off.as_deref().unwrap_or_default();
            setting(SWITCH, off.is_some().into(), reason, *unix_ms)
        }
        Record::Audit { who, action, outcome, unix_ms } => {
            let uid = if who.uid.0 == NOBODY_KNOWN { Value::Null } else { int(who.uid.0) };
            row(
                Statement::Audit,
                [int(*unix_ms), uid, text(&who.user), text(action), text(outcome)],
            )
        }
    };
    vec![one]
}

fn setting(name: &str, number: u64, value: &str, unix_ms: i64) -> Row {
    row(Statement::Setting, [text(name), int(number), text(value), int(unix_ms)])
}

fn lease_row(record: &LeaseRecord) -> Row {
    row(
        Statement::Lease,
        [
            int(record.lease.0),
            bytes(&record.request_id),
            text(record.node.as_str()),
            int(record.epoch.0),
            int(record.uid.0),
            int(record.gid),
            text(&record.user),
            text(&record.account),
            int(record.cores),
            int(record.memory_bytes),
            bytes(&record.client_key),
            int(record.expires.0),
            bytes(&record.boot.0),
            bytes(&record.instance.0),
            int(record.created_unix_ms),
        ],
    )
}

fn usage_row(lease: u64, usage: &Usage, unix_ms: i64) -> Row {
    row(
        Statement::Usage,
        [
            int(lease),
            int(unix_ms),
            int(usage.allocated_core_ns),
            int(usage.cpu_ns),
            int(usage.executing_ns),
            int(usage.polling_ns),
            int(usage.calls),
            int(usage.memory_peak_bytes),
        ],
    )
}

fn vacate_row(node: &str, vacated: &Vacated) -> Row {
    let steps = &vacated.steps;
    row(
        Statement::Vacate,
        [
            bytes(&vacated.record_id),
            text(node),
            int(vacated.trigger as u8),
            int(vacated.epoch.0),
            int(vacated.job.0),
            int(vacated.job_uid.0),
            int(vacated.leases),
            int(vacated.processes),
            int(vacated.memory_bytes),
            int(steps.fence_us),
            int(steps.kill_us),
            int(steps.gone_us),
            int(steps.release_us),
            int(steps.answer_us),
            int(vacated.stamp.0),
            int(vacated.unix_ms),
        ],
    )
}

fn job_row(record: &JobRecord) -> Row {
    row(
        Statement::Job,
        [
            bytes(&record.instance.0),
            int(record.seq),
            text(record.node.as_str()),
            int(record.job.0),
            int(record.job_uid.0),
            int(u8::from(record.ended)),
            int(record.hook_us),
            int(record.unix_ms),
        ],
    )
}

fn transition_rows(record: &Transition) -> [Row; 2] {
    let Transition { node, term, unix_ms, cores } = record;
    let key = [text(node.as_str()), int(term.0), int(*unix_ms)];
    let counts = [cores.total, cores.idle, cores.grantable, cores.granted, cores.leased].map(int);
    let begins: Vec<Value> = key.iter().cloned().chain(counts).collect();
    [row(Statement::TransitionEnds, key), row(Statement::TransitionBegins, begins)]
}

/// What a column holds at most; a peer that claims more is cut off there.
fn int(value: impl TryInto<i64>) -> Value {
    Value::Integer(value.try_into().unwrap_or(i64::MAX))
}

fn text(value: &str) -> Value {
    Value::Text(value.into())
}

fn bytes(value: &[u8]) -> Value {
    Value::Bytes(value.into())
}
