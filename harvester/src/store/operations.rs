//! All SQL of the harvester. Called by the facade and the writer beside it; domain types in and out.
//!
//! Statements are idempotent: a journal may be taken in twice when the machine dies at the wrong moment.

use std::time::Duration;

use gleaner_harvester_core::{
    event::{StepTimes, Trigger, Usage},
    record::{CoreCounts, LeaseRecord, Restored},
};
use gleaner_lease::{
    clock::{BootId, Instance, Stamp},
    issuer::Numbers,
    state::EndReason,
};
use gleaner_proto::ids::{Epoch, JobId, LeaseId, NodeName, Term, Uid};
use sqlx::{
    Row as _, SqlSafeStr, SqliteConnection,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::SqliteRow,
};

use super::{
    StoreError,
    report::{StoredVacate, Stretch, UsageTotals, WatchRow},
    rows::{EPOCHS, LEASE_IDS, Row, SWITCH, Statement, Value},
    types::EndedLease,
};

impl Statement {
    fn sql(self) -> &'static str {
        match self {
            Self::Term => {
                "INSERT INTO terms (term, grant_ttl_ns, began_unix_ms, alive_unix_ms) VALUES (?1, ?2, ?3, ?3)
                 ON CONFLICT (term) DO NOTHING"
            }
            Self::Alive => {
                "UPDATE terms SET alive_unix_ms = max(alive_unix_ms, ?2) WHERE term = ?1"
            }
            Self::Setting => {
                "INSERT INTO settings (name, number, text, unix_ms) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (name) DO UPDATE SET number = excluded.number, text = excluded.text,
                     unix_ms = excluded.unix_ms"
            }
            Self::Lease => {
                "INSERT INTO leases (lease, request_id, node, epoch, uid, gid, user_name, account, cores,
                     memory_bytes, client_key, expires_ns, boot, instance, created_unix_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
                 ON CONFLICT (lease) DO NOTHING"
            }
            Self::LeaseRenewed => {
                "UPDATE leases SET expires_ns = max(expires_ns, ?2) WHERE lease = ?1"
            }
            Self::LeaseEnding => "UPDATE leases SET ending = ?2 WHERE lease = ?1",
            Self::LeaseEnded => {
                "UPDATE leases SET end_reason = ?2, end_detail = ?3, ended_unix_ms = ?4
                 WHERE lease = ?1 AND end_reason IS NULL"
            }
            Self::Usage => {
                "INSERT INTO usages (lease, unix_ms, allocated_core_ns, cpu_ns, executing_ns, polling_ns, calls,
                     memory_peak_bytes)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (lease, unix_ms) DO UPDATE SET
                     allocated_core_ns = max(allocated_core_ns, excluded.allocated_core_ns),
                     cpu_ns = max(cpu_ns, excluded.cpu_ns),
                     executing_ns = max(executing_ns, excluded.executing_ns),
                     polling_ns = max(polling_ns, excluded.polling_ns),
                     calls = max(calls, excluded.calls),
                     memory_peak_bytes = max(memory_peak_bytes, excluded.memory_peak_bytes)"
            }
            Self::Vacate => {
                "INSERT INTO vacates (record_id, node, trigger_kind, epoch, job, job_uid, leases, processes,
                     memory_bytes, fence_us, kill_us, gone_us, release_us, answer_us, stamp_ns, unix_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
                 ON CONFLICT (record_id) DO NOTHING"
            }
            Self::Job => {
                "INSERT INTO jobs (instance, seq, node, job, job_uid, ended, hook_us, unix_ms)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (instance, seq) DO NOTHING"
            }
            Self::TransitionEnds => {
                "UPDATE transitions SET ends_unix_ms = ?3
                 WHERE node = ?1 AND term = ?2 AND begins_unix_ms < ?3
                     AND (ends_unix_ms IS NULL OR ends_unix_ms > ?3)"
            }
            Self::TransitionBegins => {
                "INSERT INTO transitions (node, term, begins_unix_ms, total_cores, idle_cores, grantable_cores,
                     granted_cores, leased_cores)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (node, term, begins_unix_ms) DO UPDATE SET total_cores = excluded.total_cores,
                     idle_cores = excluded.idle_cores, grantable_cores = excluded.grantable_cores,
                     granted_cores = excluded.granted_cores, leased_cores = excluded.leased_cores"
            }
            Self::Watch => {
                "INSERT INTO watches (term, unix_ms, gap) VALUES (?1, ?2, ?3)
                 ON CONFLICT (term, unix_ms) DO UPDATE SET gap = excluded.gap"
            }
            Self::Drain => {
                "INSERT INTO drains (node, reason, unix_ms) VALUES (?1, ?2, ?3)
                 ON CONFLICT (node) DO UPDATE SET reason = excluded.reason, unix_ms = excluded.unix_ms"
            }
            Self::Resume => "DELETE FROM drains WHERE node = ?1",
            Self::Audit => {
                "INSERT INTO audits (unix_ms, uid, user_name, action, outcome) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO NOTHING"
            }
        }
    }
}

/// The schema's history; a step that was released is never changed.
pub(super) fn migrator() -> Migrator {
    let steps = [(1, "records", include_str!("../../migrations/0001_records.sql"))];
    let migration = |(version, name, sql): (i64, &'static str, &'static str)| {
        Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(steps.map(migration).into())
}

/// Writes, durably, what changes nothing.
pub(super) async fn prove_writable(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    // Nobody uses this number; setting it writes the file's first page even if it stays the same.
    sqlx::query("PRAGMA user_version = 0").execute(connection).await.map(drop)
}

/// Carries out one row's statement.
pub(super) async fn apply(connection: &mut SqliteConnection, row: &Row) -> Result<(), sqlx::Error> {
    let mut query = sqlx::query(row.statement.sql());
    for value in &row.values {
        query = match value {
            Value::Null => query.bind(None::<i64>),
            Value::Integer(value) => query.bind(*value),
            Value::Text(value) => query.bind(value.as_str()),
            Value::Bytes(value) => query.bind(value.as_slice()),
        };
    }
    query.execute(connection).await.map(|_| ())
}

/// What a harvester that starts must know.
pub(super) async fn restore(connection: &mut SqliteConnection) -> Result<Restored, StoreError> {
    let (term, grant_ttl, vacates): (i64, i64, i64) = sqlx::query_as(
        "SELECT COALESCE(MAX(term), 0), COALESCE(MAX(grant_ttl_ns), 0), (SELECT COUNT(*) FROM vacates)
         FROM terms",
    )
    .fetch_one(&mut *connection)
    .await?;
    let next_lease = setting(connection, LEASE_IDS).await?.map_or(0, |(number, _)| number);
    let next_epoch = setting(connection, EPOCHS).await?.map_or(0, |(number, _)| number);
    let switched_off = setting(connection, SWITCH).await?.filter(|(number, _)| *number == 1);
    let leases = sqlx::query(
        "SELECT lease, request_id, node, epoch, uid, gid, user_name, account, cores, memory_bytes, client_key,
             expires_ns, boot, instance, ending, created_unix_ms
         FROM leases WHERE end_reason IS NULL ORDER BY lease",
    );
    let drained = sqlx::query("SELECT node, reason FROM drains ORDER BY node");
    Ok(Restored {
        last_term: Term(unsigned(term)),
        grant_ttl_max: Duration::from_nanos(unsigned(grant_ttl)),
        numbers: Numbers { lease: unsigned(next_lease), epoch: unsigned(next_epoch) },
        leases: read_all(leases.fetch_all(&mut *connection).await?, read_lease)?,
        drained: read_all(drained.fetch_all(&mut *connection).await?, |row| {
            Ok((node(row)?, row.try_get("reason")?))
        })?,
        switched_off: switched_off.map(|(_, reason)| reason),
        vacates: unsigned(vacates),
    })
}

async fn setting(
    connection: &mut SqliteConnection,
    name: &str,
) -> Result<Option<(i64, String)>, sqlx::Error> {
    sqlx::query_as("SELECT number, text FROM settings WHERE name = ?1")
        .bind(name)
        .fetch_optional(connection)
        .await
}

fn read_lease(row: &SqliteRow) -> Result<LeaseRecord, StoreError> {
    let ending: Option<i32> = row.try_get("ending")?;
    Ok(LeaseRecord {
        lease: LeaseId(number(row, "lease")?),
        request_id: array(row, "request_id")?,
        node: node(row)?,
        epoch: Epoch(number(row, "epoch")?),
        uid: Uid(number(row, "uid")?),
        gid: number(row, "gid")?,
        user: row.try_get("user_name")?,
        account: row.try_get("account")?,
        cores: number(row, "cores")?,
        memory_bytes: number(row, "memory_bytes")?,
        client_key: array(row, "client_key")?,
        expires: Stamp(number(row, "expires_ns")?),
        boot: BootId(array(row, "boot")?),
        instance: Instance(array(row, "instance")?),
        ending: ending.and_then(EndReason::from_number),
        created_unix_ms: row.try_get("created_unix_ms")?,
    })
}

/// Leases that ended, newest first, with what they used.
pub(super) async fn ended_leases(
    connection: &mut SqliteConnection,
    limit: u32,
) -> Result<Vec<EndedLease>, StoreError> {
    let rows = sqlx::query(
        "SELECT l.*, u.* FROM
             (SELECT * FROM leases WHERE end_reason IS NOT NULL ORDER BY ended_unix_ms DESC, lease DESC LIMIT ?1) l
         LEFT JOIN usages u ON u.lease = l.lease
             AND u.unix_ms = (SELECT MAX(unix_ms) FROM usages WHERE lease = l.lease)",
    )
    .bind(limit)
    .fetch_all(connection)
    .await?;
    read_all(rows, |row| {
        let reason: i32 = row.try_get("end_reason")?;
        Ok(EndedLease {
            lease: LeaseId(unsigned(row.try_get(0)?)),
            node: node(row)?,
            uid: Uid(number(row, "uid")?),
            user: row.try_get("user_name")?,
            account: row.try_get("account")?,
            cores: number(row, "cores")?,
            memory_bytes: number(row, "memory_bytes")?,
            created_unix_ms: row.try_get("created_unix_ms")?,
            ended_unix_ms: row.try_get("ended_unix_ms")?,
            end_reason: EndReason::from_number(reason),
            end_detail: row.try_get("end_detail")?,
            usage: Usage {
                allocated_core_ns: optional(row, "allocated_core_ns")?,
                cpu_ns: optional(row, "cpu_ns")?,
                executing_ns: optional(row, "executing_ns")?,
                polling_ns: optional(row, "polling_ns")?,
                calls: optional(row, "calls")?,
                memory_peak_bytes: optional(row, "memory_peak_bytes")?,
            },
        })
    })
}

/// When the first harvester began.
pub(super) async fn first_record(
    connection: &mut SqliteConnection,
) -> Result<Option<i64>, StoreError> {
    Ok(sqlx::query_scalar("SELECT MIN(began_unix_ms) FROM terms").fetch_one(connection).await?)
}

/// The stretches of the period in which a node's cores were something, clipped to the life of their term.
pub(super) fn stretches(
    since: i64,
    until: i64,
    current: Term,
) -> sqlx::query::Query<'static, sqlx::Sqlite, sqlx::sqlite::SqliteArguments> {
    sqlx::query(
        "SELECT t.term, t.begins_unix_ms AS begins,
             COALESCE(t.ends_unix_ms, CASE WHEN t.term = ?3 THEN ?2 ELSE h.alive_unix_ms END) AS ends,
             total_cores, idle_cores, grantable_cores, granted_cores, leased_cores
         FROM transitions t JOIN terms h ON h.term = t.term
         WHERE t.begins_unix_ms < ?2 AND (t.ends_unix_ms IS NULL OR t.ends_unix_ms > ?1)",
    )
    .bind(since)
    .bind(until)
    .bind(signed(current.0))
}

/// Reads a row of [`stretches`].
pub(super) fn read_stretch(row: &SqliteRow) -> Result<Stretch, StoreError> {
    Ok(Stretch {
        term: Term(number(row, "term")?),
        begins: row.try_get("begins")?,
        ends: row.try_get("ends")?,
        cores: CoreCounts {
            total: number(row, "total_cores")?,
            idle: number(row, "idle_cores")?,
            grantable: number(row, "grantable_cores")?,
            granted: number(row, "granted_cores")?,
            leased: number(row, "leased_cores")?,
        },
    })
}

/// Every watch of terms that touch the period, in order, each with its term's end.
pub(super) async fn watches(
    connection: &mut SqliteConnection,
    since: i64,
    until: i64,
    current: Term,
) -> Result<Vec<WatchRow>, StoreError> {
    let rows = sqlx::query(
        "SELECT w.term, w.unix_ms, w.gap, CASE WHEN w.term = ?3 THEN ?2 ELSE h.alive_unix_ms END AS term_ends
         FROM watches w JOIN terms h ON h.term = w.term
         WHERE w.unix_ms < ?2 AND (h.alive_unix_ms >= ?1 OR w.term = ?3)
         ORDER BY w.term, w.unix_ms",
    )
    .bind(since)
    .bind(until)
    .bind(signed(current.0))
    .fetch_all(connection)
    .await?;
    read_all(rows, |row| {
        Ok(WatchRow {
            term: Term(number(row, "term")?),
            unix_ms: row.try_get("unix_ms")?,
            gap: row.try_get("gap")?,
            term_ends: row.try_get("term_ends")?,
        })
    })
}

/// What leases used within the period: the growth of their figures from the last sample before it to the last in it.
pub(super) async fn usage_totals(
    connection: &mut SqliteConnection,
    since: i64,
    until: i64,
) -> Result<UsageTotals, StoreError> {
    let row = sqlx::query(
        "WITH latest AS (
             SELECT lease, MAX(cpu_ns) AS cpu, MAX(executing_ns) AS executing, MAX(polling_ns) AS polling,
                 MAX(calls) AS calls
             FROM usages WHERE unix_ms >= ?1 AND unix_ms < ?2 GROUP BY lease),
         before AS (
             SELECT lease, MAX(cpu_ns) AS cpu, MAX(executing_ns) AS executing, MAX(polling_ns) AS polling,
                 MAX(calls) AS calls
             FROM usages WHERE unix_ms < ?1 AND lease IN (SELECT lease FROM latest) GROUP BY lease)
         SELECT COALESCE(TOTAL(max(0, l.cpu - COALESCE(b.cpu, 0))), 0) / 1e9 AS cpu,
             COALESCE(TOTAL(max(0, l.executing - COALESCE(b.executing, 0))), 0) / 1e9 AS executing,
             COALESCE(TOTAL(max(0, l.polling - COALESCE(b.polling, 0))), 0) / 1e9 AS polling,
             CAST(TOTAL(max(0, l.calls - COALESCE(b.calls, 0))) AS INTEGER) AS calls,
             (SELECT COUNT(*) FROM leases WHERE created_unix_ms >= ?1 AND created_unix_ms < ?2) AS leases
         FROM latest l LEFT JOIN before b ON b.lease = l.lease",
    )
    .bind(since)
    .bind(until)
    .fetch_one(connection)
    .await?;
    Ok(UsageTotals {
        cpu_s: row.try_get("cpu")?,
        executing_s: row.try_get("executing")?,
        polling_s: row.try_get("polling")?,
        calls: number(&row, "calls")?,
        leases: number(&row, "leases")?,
    })
}

/// The newest vacates of the period, oldest first, each with what its job waited in the hook.
pub(super) async fn vacates(
    connection: &mut SqliteConnection,
    since: i64,
    until: i64,
    limit: u32,
) -> Result<Vec<StoredVacate>, StoreError> {
    let rows = sqlx::query(
        "SELECT * FROM (
             SELECT v.*, COALESCE((SELECT MAX(j.hook_us) FROM jobs j
                 WHERE j.job = v.job AND j.node = v.node AND j.ended = 0 AND v.job <> 0), 0) AS hook_us
             FROM vacates v WHERE v.unix_ms >= ?1 AND v.unix_ms < ?2 ORDER BY v.unix_ms DESC LIMIT ?3)
         ORDER BY unix_ms",
    )
    .bind(since)
    .bind(until)
    .bind(limit)
    .fetch_all(connection)
    .await?;
    read_all(rows, |row| {
        Ok(StoredVacate {
            unix_ms: row.try_get("unix_ms")?,
            node: node(row)?,
            trigger: Trigger::from_number(row.try_get("trigger_kind")?),
            job: JobId(number(row, "job")?),
            leases: number(row, "leases")?,
            processes: number(row, "processes")?,
            steps: StepTimes {
                fence_us: number(row, "fence_us")?,
                kill_us: number(row, "kill_us")?,
                gone_us: number(row, "gone_us")?,
                release_us: number(row, "release_us")?,
                answer_us: number(row, "answer_us")?,
            },
            epoch: Epoch(number(row, "epoch")?),
            hook_us: number(row, "hook_us")?,
        })
    })
}

/// What is too old, or finer than it needs to be, one statement each with the moment before which it applies.
const PRUNE: [&str; 7] = [
    "DELETE FROM transitions WHERE (node, term, begins_unix_ms) IN
         (SELECT node, term, begins_unix_ms FROM transitions WHERE ends_unix_ms < ?1 LIMIT ?2)",
    "DELETE FROM usages WHERE (lease, unix_ms) IN (SELECT lease, unix_ms FROM usages WHERE unix_ms < ?1 LIMIT ?2)",
    "DELETE FROM vacates WHERE record_id IN (SELECT record_id FROM vacates WHERE unix_ms < ?1 LIMIT ?2)",
    "DELETE FROM jobs WHERE (instance, seq) IN (SELECT instance, seq FROM jobs WHERE unix_ms < ?1 LIMIT ?2)",
    "DELETE FROM audits WHERE id IN (SELECT id FROM audits WHERE unix_ms < ?1 LIMIT ?2)",
    "DELETE FROM leases WHERE lease IN
         (SELECT lease FROM leases WHERE end_reason IS NOT NULL AND ended_unix_ms < ?1 LIMIT ?2)",
    "DELETE FROM watches WHERE (term, unix_ms) IN (SELECT w.term, w.unix_ms FROM watches w
         JOIN terms t ON t.term = w.term WHERE t.alive_unix_ms < ?1 LIMIT ?2)",
];

/// Within one hour, the last sample of a lease says it all once the day is over.
const THIN: &str = "DELETE FROM usages WHERE (lease, unix_ms) IN (
         SELECT u.lease, u.unix_ms FROM usages u WHERE u.unix_ms < ?1 AND u.unix_ms >= ?3 AND EXISTS (
             SELECT 1 FROM usages v WHERE v.lease = u.lease AND v.unix_ms > u.unix_ms
                 AND v.unix_ms / 3600000 = u.unix_ms / 3600000)
         LIMIT ?2)";

/// Deletes at most `limit` rows of each table; says how many went.
pub(super) async fn prune(
    connection: &mut SqliteConnection,
    before: i64,
    limit: u32,
) -> Result<u64, sqlx::Error> {
    let mut gone = 0;
    for sql in PRUNE {
        let done = sqlx::query(sql).bind(before).bind(limit).execute(&mut *connection).await?;
        gone += done.rows_affected();
    }
    Ok(gone)
}

/// Thins at most `limit` usage samples between the two moments; says how many went.
pub(super) async fn thin(
    connection: &mut SqliteConnection,
    from: i64,
    before: i64,
    limit: u32,
) -> Result<u64, sqlx::Error> {
    let done = sqlx::query(THIN).bind(before).bind(limit).bind(from).execute(connection).await?;
    Ok(done.rows_affected())
}

fn read_all<T>(
    rows: Vec<SqliteRow>,
    read: impl Fn(&SqliteRow) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    rows.iter().map(read).collect()
}

fn node(row: &SqliteRow) -> Result<NodeName, StoreError> {
    let name: String = row.try_get("node")?;
    NodeName::new(&name).map_err(|_| StoreError::Damaged { column: "node" })
}

fn array<const N: usize>(row: &SqliteRow, column: &'static str) -> Result<[u8; N], StoreError> {
    let bytes: Vec<u8> = row.try_get(column)?;
    bytes.try_into().map_err(|_| StoreError::Damaged { column })
}

fn number<T: TryFrom<i64>>(row: &SqliteRow, column: &'static str) -> Result<T, StoreError> {
    let value: i64 = row.try_get(column)?;
    T::try_from(value).map_err(|_| StoreError::Damaged { column })
}

fn optional(row: &SqliteRow, column: &'static str) -> Result<u64, StoreError> {
    let value: Option<i64> = row.try_get(column)?;
    Ok(unsigned(value.unwrap_or(0)))
}

fn unsigned(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
