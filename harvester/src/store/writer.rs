//! The one task that writes: takes batches in groups, one transaction each, and turns to the journal when that fails.
//!
//! Started by [`super::Store::open`]. It never gives up: a database that failed is tried again every second, by the
//! next batch or by the clock, and what the journal holds goes in first.

use std::{collections::VecDeque, path::Path, time::Duration};

use gleaner_harvester_core::{effect::Need, event::Ticket};
use sqlx::{Connection, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    Batch, Outcome, StoreError, connect,
    journal::Journal,
    operations,
    rows::{Row, rows_of},
};
use crate::{
    clock,
    tune::{
        PRUNE_INTERVAL, PRUNE_ROWS_MAX, PRUNE_STEP, RETENTION, STORE_GROUP_MAX, STORE_RETRY,
        USAGE_FINE, USAGE_THINNED,
    },
};

pub(super) struct Writer {
    options: SqliteConnectOptions,
    connection: Option<SqliteConnection>,
    journal: Journal,
    answers: mpsc::Sender<Outcome>,
    failure: watch::Sender<Option<String>>,
    /// Set while the database fails: when to try it again.
    retry_at: Option<Instant>,
    prune_at: Instant,
}

/// One batch as rows.
struct Job {
    ticket: Option<Ticket>,
    rows: Vec<Row>,
    need: Need,
}

impl Writer {
    pub(super) fn new(
        options: SqliteConnectOptions,
        connection: SqliteConnection,
        journal: Journal,
        answers: mpsc::Sender<Outcome>,
        failure: watch::Sender<Option<String>>,
    ) -> Self {
        let prune_at = Instant::now() + PRUNE_STEP;
        Self {
            options,
            connection: Some(connection),
            journal,
            answers,
            failure,
            retry_at: None,
            prune_at,
        }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Batch>) {
        loop {
            let wake = self.retry_at.unwrap_or(self.prune_at);
            tokio::select! {
                biased;
                batch = queue.recv() => match batch {
                    Some(first) => {
                        let group = gather(first, &mut queue);
                        self.take(group).await;
                    }
                    None => break,
                },
                () = tokio::time::sleep_until(wake) => self.on_time().await,
            }
        }
        if !self.journal.is_empty() {
            self.retry_at = None;
            self.write(Vec::new()).await;
        }
        if let Some(connection) = self.connection.take() {
            // The file is whole whether or not it is closed in order.
            let _ = connection.close().await;
        }
    }

    async fn take(&mut self, group: Vec<Job>) {
        for (ticket, result) in self.write(group).await {
            // The driver is gone: nobody waits.
            let _ = self.answers.send(Outcome { ticket, result }).await;
        }
    }

    async fn on_time(&mut self) {
        if self.retry_at.is_some() {
            self.write(Vec::new()).await;
            return;
        }
        let more = match self.connection.as_mut() {
            Some(connection) => prune(connection).await,
            None => Ok(false),
        };
        match more {
            Ok(more) => {
                self.prune_at = Instant::now() + if more { PRUNE_STEP } else { PRUNE_INTERVAL };
            }
            Err(error) => {
                self.prune_at = Instant::now() + PRUNE_INTERVAL;
                tracing::warn!(%error, "old records could not be deleted");
            }
        }
    }

    /// Stores a group, and what the journal holds before it; whatever fails goes to the journal or is refused.
    async fn write(&mut self, group: Vec<Job>) -> Vec<(Ticket, Result<(), String>)> {
        let stored = match self.retry_at.filter(|at| Instant::now() < *at) {
            Some(_) => Err(self.failure.borrow().clone().unwrap_or_default()),
            None => self.try_database(&group).await.map_err(|error| error.to_string()),
        };
        match &stored {
            Ok(()) => self.recovered(),
            Err(error) => self.failed(error),
        }
        let mut outcomes = Vec::new();
        for Job { ticket, rows, need } in group {
            let result = match (&stored, need) {
                (Ok(()), _) => Ok(()),
                (Err(error), Need::Store) => Err(error.clone()),
                (Err(_), Need::Journal) => {
                    self.journal.append(&rows).map_err(|error| error.to_string())
                }
            };
            if let Err(error) = &result
                && need == Need::Journal
            {
                tracing::error!(%error, "a record is lost or delayed");
            }
            outcomes.extend(ticket.map(|ticket| (ticket, result)));
        }
        outcomes
    }

    async fn try_database(&mut self, group: &[Job]) -> Result<(), StoreError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = connect(&self.options).await?;
                // A read-only file can be opened, and an empty group would be stored in it without an error.
                operations::prove_writable(&mut connection).await?;
                connection
            }
        };
        // On an error the connection is dropped: it may be in a transaction or broken.
        if !self.journal.is_empty() {
            let left = self.journal.read()?;
            store(&mut connection, left.iter().flatten().collect()).await?;
            self.journal.clear()?;
        }
        store(&mut connection, group.iter().flat_map(|job| &job.rows).collect()).await?;
        self.connection = Some(connection);
        Ok(())
    }

    fn recovered(&mut self) {
        if self.retry_at.take().is_some() {
            tracing::info!(database = %self.database().display(), "the database takes records again");
            self.failure.send_replace(None);
        }
    }

    fn failed(&mut self, error: &str) {
        if self.retry_at.is_none_or(|at| Instant::now() >= at) {
            if self.retry_at.is_none() {
                tracing::error!(database = %self.database().display(), %error,
                    "the database does not take records: no new leases; the rest is journalled");
            }
            self.retry_at = Some(Instant::now() + STORE_RETRY);
            self.failure.send_replace(Some(error.to_owned()));
        }
    }

    fn database(&self) -> &Path {
        self.options.get_filename()
    }
}

/// Stores all rows in one transaction.
pub(super) async fn store(
    connection: &mut SqliteConnection,
    rows: Vec<&Row>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    for row in rows {
        operations::apply(&mut transaction, row).await?;
    }
    transaction.commit().await?;
    Ok(())
}

fn gather(first: Batch, queue: &mut mpsc::Receiver<Batch>) -> Vec<Job> {
    let mut batches = VecDeque::from([first]);
    while batches.len() < STORE_GROUP_MAX
        && let Ok(batch) = queue.try_recv()
    {
        batches.push_back(batch);
    }
    let job = |Batch { ticket, records, need }: Batch| Job {
        ticket,
        rows: records.iter().flat_map(rows_of).collect(),
        need,
    };
    batches.into_iter().map(job).collect()
}

/// One step of deleting what is too old; true if there may be more.
async fn prune(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let now = clock::unix_ms();
    let ago = |duration: Duration| now - i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let old = operations::prune(connection, ago(RETENTION), PRUNE_ROWS_MAX).await?;
    let thinned =
        operations::thin(connection, ago(USAGE_THINNED), ago(USAGE_FINE), PRUNE_ROWS_MAX).await?;
    Ok(old + thinned > 0)
}
