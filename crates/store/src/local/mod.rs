//! The embedded store: the `outcomes`, `withdrawn`, `usage`, `minutes`, `batches`, `budgets`,
//! `payloads`, `shares` and `notes` tables of the state file.

mod batches;
mod budgets;
mod columns;
mod heartbeats;
mod kv_records;
mod outcomes;
mod payloads;
mod record;
mod usage;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use rusqlite::{Connection, Row};
use tokio::sync::mpsc;

use super::{StoreError, StoreMeter};
use domain::job::BatchId;
use state::sqlite::{Database, SqliteError};

/// Rows that cross from the reading thread at a time.
const CHUNK: usize = 128;

/// The embedded store; clones share it.
#[derive(Clone)]
pub struct LocalStore {
    database: Database,
}

impl LocalStore {
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        Ok(self.database.read(work).await?)
    }

    /// Runs a write in a transaction that no other write can interleave with; when this returns it
    /// is durable.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        Ok(self.database.write(work).await?)
    }

    /// Streams a batch's rows, which a thread of the database reads some chunks ahead.
    fn stream<T: Send + 'static>(
        &self,
        batch: &BatchId,
        sql: &'static str,
        read_row: fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> BoxStream<'static, Result<T, StoreError>> {
        let (send, receive) = mpsc::channel(4);
        let (database, batch) = (self.database.clone(), batch.clone());
        tokio::spawn(async move {
            let failed = send.clone();
            let read = database.read(move |c| read_in_chunks(c, &batch, (sql, read_row), &send));
            if let Err(error) = read.await {
                // A closed channel means that the stream was dropped.
                let _ = failed.send(Err(error.into())).await;
            }
        });
        let chunks = stream::unfold(receive, |mut receive| async {
            receive.recv().await.map(|chunk| (chunk, receive))
        });
        let rows = chunks.flat_map(|chunk: Result<Vec<T>, StoreError>| match chunk {
            Ok(rows) => stream::iter(rows.into_iter().map(Ok)).left_stream(),
            Err(error) => stream::once(async { Err(error) }).right_stream(),
        });
        rows.boxed()
    }
}

impl From<SqliteError> for StoreError {
    fn from(error: SqliteError) -> Self {
        if error.is_transient() {
            Self::Unavailable(error.into())
        } else {
            Self::Refused(error.into())
        }
    }
}

impl StoreMeter for LocalStore {}

fn read_in_chunks<T>(
    c: &Connection,
    batch: &BatchId,
    (sql, read_row): (&str, fn(&Row<'_>) -> rusqlite::Result<T>),
    send: &mpsc::Sender<Result<Vec<T>, StoreError>>,
) -> rusqlite::Result<()> {
    let mut select = c.prepare_cached(sql)?;
    let mut rows = select.query([batch.as_str()])?;
    let mut chunk = Vec::with_capacity(CHUNK);
    while let Some(row) = rows.next()? {
        chunk.push(read_row(row)?);
        if chunk.len() == CHUNK && send.blocking_send(Ok(std::mem::take(&mut chunk))).is_err() {
            return Ok(());
        }
    }
    let _ = send.blocking_send(Ok(chunk));
    Ok(())
}
