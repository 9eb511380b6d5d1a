//! What survives a restart, and what reports are made of: SQLite, written by one task, in groups, durably.
//!
//! The driver hands [`Batch`]es in and gets their outcome from a channel; gRPC asks for reports and lists. A batch is
//! stored whole or not at all. When the database fails, batches that may wait go to the [`journal`], and the database
//! gets them when it works again. SQL is in [`operations`] alone.
//!
//! ```text
//!   driver ── Batch ──▶ writer ──▶ SQLite (WAL, synchronous=FULL)
//!     ▲                   │ fails └──▶ journal ──▶ SQLite, later
//!     └──── Outcome ──────┘
//! ```

mod journal;
mod operations;
mod report;
mod rows;
mod types;
mod writer;

use std::path::{Path, PathBuf};

use gleaner_harvester_core::{
    effect::Need,
    event::Ticket,
    record::{Record, Restored},
};
use gleaner_proto::ids::Term;
use sqlx::{
    ConnectOptions, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;

use crate::tune::{
    DATABASE_BUSY, ENDED_LEASES_MAX, JOURNAL_BYTES_MAX, READ_BOUND, READERS_MAX,
    REPORT_VACATES_MAX, STORE_QUEUE_MAX,
};

pub use journal::JournalError;
pub use report::{Gap, Report, StoredVacate};
pub(crate) use rows::NOBODY_KNOWN;
pub use types::EndedLease;

/// Records that are stored together or not at all.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Named in the outcome; `None`: nobody waits for it.
    pub ticket: Option<Ticket>,
    /// What to store, in order.
    pub records: Vec<Record>,
    /// What to do if the database fails.
    pub need: Need,
}

/// What became of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whose.
    pub ticket: Ticket,
    /// Stored, or why not.
    pub result: Result<(), String>,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened, or its schema not brought up to date.
    #[error(
        "cannot open the database {path}: {source}; check that the file and its directory can be written, and that the disk is not full"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::Error,
    },
    /// The schema is not one of this version's.
    #[error(
        "the database {path} cannot be brought to this version's schema: {source}; if a newer version wrote it, run that one"
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// A query failed.
    #[error("the database failed: {0}; check that its disk has space, works and can be written")]
    Query(#[from] sqlx::Error),
    /// A value that this version did not write.
    #[error("the database holds a {column} that no Gleaner wrote: restore it from a backup")]
    Damaged {
        /// Where.
        column: &'static str,
    },
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// The store, for everybody but its writer; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    batches: mpsc::Sender<Batch>,
    readers: SqlitePool,
    error: watch::Receiver<Option<String>>,
}

/// A store that was just opened.
#[derive(Debug)]
pub struct Opened {
    /// The store.
    pub store: Store,
    /// What the harvester must know.
    pub restored: Restored,
    /// What becomes of batches that have a ticket. Never full while the driver drains it.
    pub outcomes: mpsc::Receiver<Outcome>,
    /// Ends when the store and all its clones are gone, with everything written.
    pub writer: tokio::task::JoinHandle<()>,
}

impl Store {
    /// Opens the database (made if need be, its schema brought up to date) and takes in what the journal still holds.
    pub async fn open(database: &Path, journal: &Path) -> Result<Opened, StoreError> {
        let options = options(database);
        let mut connection = connect(&options).await?;
        let (mut journal, left) = journal::Journal::open(journal, JOURNAL_BYTES_MAX)?;
        if !left.is_empty() {
            writer::store(&mut connection, left.iter().flatten().collect()).await?;
            journal.clear()?;
        }
        let restored = operations::restore(&mut connection).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(READ_BOUND)
            .connect_lazy_with(options.clone().read_only(true).create_if_missing(false));
        let (batches, queue) = mpsc::channel(STORE_QUEUE_MAX);
        let (answers, outcomes) = mpsc::channel(STORE_QUEUE_MAX);
        let (failure, error) = watch::channel(None);
        let writer = writer::Writer::new(options, connection, journal, answers, failure);
        let writer = tokio::spawn(writer.run(queue));
        Ok(Opened { store: Self { batches, readers, error }, restored, outcomes, writer })
    }

    /// Hands a batch to the writer without waiting; gives it back when too many wait already.
    pub fn offer(&self, batch: Batch) -> Result<(), Box<Batch>> {
        self.batches.try_send(batch).map_err(|refused| Box::new(refused.into_inner()))
    }

    /// Why records are not being stored; `None`: they are.
    pub fn error(&self) -> Option<String> {
        self.error.borrow().clone()
    }

    /// A period's report. `since` 0 or before the first record: from the first record on.
    pub async fn report(
        &self,
        since: i64,
        until: i64,
        current: Term,
    ) -> Result<Report, StoreError> {
        let mut reader = self.readers.begin().await?;
        let first = operations::first_record(&mut reader).await?.unwrap_or(until);
        let since = since.max(first).min(until);
        let watches = operations::watches(&mut reader, since, until, current).await?;
        let mut sum = report::Sum::new(since, until, &watches);
        let mut rows = operations::stretches(since, until, current).fetch(&mut *reader);
        while let Some(row) = rows.next().await {
            sum.add(operations::read_stretch(&row?)?);
        }
        drop(rows);
        let usage = operations::usage_totals(&mut reader, since, until).await?;
        let vacates = operations::vacates(&mut reader, since, until, REPORT_VACATES_MAX).await?;
        Ok(sum.finish(usage, vacates))
    }

    /// Ended leases, newest first.
    pub async fn ended_leases(&self, limit: u32) -> Result<Vec<EndedLease>, StoreError> {
        let mut reader = self.readers.acquire().await?;
        operations::ended_leases(&mut reader, limit.min(ENDED_LEASES_MAX)).await
    }
}

fn options(database: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(database)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(DATABASE_BUSY)
        .disable_statement_logging()
}

/// A connection to write by, its schema up to date.
async fn connect(options: &SqliteConnectOptions) -> Result<SqliteConnection, StoreError> {
    let path = || options.get_filename().to_owned();
    let opened = options.connect().await;
    let mut connection = opened.map_err(|source| StoreError::Open { path: path(), source })?;
    let migrated = operations::migrator().run_direct(None, &mut connection, false).await;
    migrated.map_err(|source| StoreError::Schema { path: path(), source })?;
    Ok(connection)
}
