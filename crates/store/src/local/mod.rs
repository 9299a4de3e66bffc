//! The embedded store: the `outcomes`, `withdrawn`, `usage`, `minutes`, `batches`, `budgets`,
//! `payloads`, `shares` and `notes` tables of the state file.

mod batches;
mod budgets;
mod heartbeats;
mod kv_records;
mod outcomes;
mod payloads;
mod usage;

use std::cmp::Reverse;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
use rusqlite::{Connection, Row};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{
    Batch, BatchState, BatchTotals, KvRecord, OutcomeSummary, Recorded, RunningTotals, SortOrder,
    Store, StoreError,
};
use domain::budget::{Budget, BudgetClaim, BudgetLimit};
use domain::heartbeat::Heartbeat;
use domain::job::{BatchId, JobId};
use domain::outcome::Outcome;
use state::sqlite::{Database, SqliteError};

/// The embedded store; clones share it.
#[derive(Clone)]
pub struct LocalStore {
    database: Database,
}

impl LocalStore {
    pub fn new(database: Database) -> Self {
        Self { database }
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
            let read =
                database.read(move |c| outcomes::read_in_chunks(c, &batch, (sql, read_row), &send));
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

#[async_trait]
impl Store for LocalStore {
    async fn record(&self, outcomes: Arc<Vec<Outcome>>) -> Result<Vec<Recorded>, StoreError> {
        if outcomes.is_empty() {
            return Ok(Vec::new());
        }
        Ok(self.database.write(move |c| outcomes::record(c, &outcomes)).await?)
    }

    async fn look_up(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        let jobs = outcomes::keys(batch, custom_ids);
        Ok(self
            .database
            .read(move |c| jobs.iter().map(|job| outcomes::look_up(c, job)).collect())
            .await?)
    }

    async fn outcome(
        &self,
        batch: &BatchId,
        custom_id: &str,
    ) -> Result<Option<Outcome>, StoreError> {
        let job = (batch.clone(), custom_id.to_owned());
        Ok(self.database.read(move |c| outcomes::find(c, &job)).await?)
    }

    async fn outcome_by_id(
        &self,
        batch: &BatchId,
        job: JobId,
    ) -> Result<Option<Outcome>, StoreError> {
        let batch = batch.clone();
        Ok(self.database.read(move |c| outcomes::find_by_id(c, &batch, job)).await?)
    }

    async fn reopen_dead(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        let jobs = outcomes::keys(batch, custom_ids);
        let withdraw =
            move |c: &Connection| jobs.iter().map(|job| outcomes::withdraw(c, job)).collect();
        Ok(self.database.write(withdraw).await?)
    }

    async fn outcomes(
        &self,
        batch: &BatchId,
        order: SortOrder,
    ) -> Result<BoxStream<'static, Result<Outcome, StoreError>>, StoreError> {
        let sql = match order {
            SortOrder::AsStored => outcomes::AS_STORED,
            SortOrder::ByPosition => outcomes::BY_POSITION,
        };
        Ok(self.stream(batch, sql, outcomes::read))
    }

    async fn outcome_summaries(
        &self,
        batch: &BatchId,
    ) -> Result<BoxStream<'static, Result<OutcomeSummary, StoreError>>, StoreError> {
        Ok(self.stream(batch, outcomes::SUMMARIES, outcomes::read_summary))
    }

    async fn totals(&self, batch: &BatchId) -> Result<BatchTotals, StoreError> {
        let batch = batch.clone();
        Ok(self.database.read(move |c| usage::totals(c, &batch)).await?)
    }

    async fn running_totals(
        &self,
        batch: &BatchId,
        since: Timestamp,
    ) -> Result<RunningTotals, StoreError> {
        let batch = batch.clone();
        Ok(self.database.read(move |c| usage::running(c, &batch, since)).await?)
    }

    async fn put_batch(&self, batch: &Batch) -> Result<(), StoreError> {
        let batch = batch.clone();
        Ok(self.database.write(move |c| batches::put(c, &batch)).await?)
    }

    async fn change_state(
        &self,
        id: &BatchId,
        from: &[BatchState],
        to: BatchState,
        reason: Option<&str>,
    ) -> Result<Option<Batch>, StoreError> {
        let (id, from, reason) = (id.clone(), from.to_vec(), reason.map(str::to_owned));
        let change =
            move |c: &Connection| batches::change_state(c, &id, &from, to, reason.as_deref());
        Ok(self.database.write(change).await?)
    }

    async fn limit_budget(
        &self,
        batch: &BatchId,
        limit: &BudgetLimit,
    ) -> Result<Budget, StoreError> {
        let (batch, limit) = (batch.clone(), limit.clone());
        Ok(self.database.write(move |c| budgets::limit(c, &batch, &limit)).await?)
    }

    async fn budget(&self, batch: &BatchId) -> Result<Option<Budget>, StoreError> {
        let batch = batch.clone();
        Ok(self.database.read(move |c| budgets::find(c, &batch)).await?)
    }

    async fn claim(
        &self,
        batch: &BatchId,
        claim: &BudgetClaim,
    ) -> Result<Option<(bool, Budget)>, StoreError> {
        let (batch, claim) = (batch.clone(), *claim);
        Ok(self.database.write(move |c| budgets::claim(c, &batch, &claim)).await?)
    }

    async fn batch(&self, id: &BatchId) -> Result<Option<Batch>, StoreError> {
        let id = id.clone();
        Ok(self.database.read(move |c| batches::find(c, &id)).await?)
    }

    async fn batches(&self) -> Result<Vec<Batch>, StoreError> {
        let mut batches = self.database.read(batches::list).await?;
        // Not by SQL: as text, "16:00:00Z" is later than "16:00:00.5Z".
        batches.sort_by_key(|batch| Reverse(batch.created_at));
        Ok(batches)
    }

    async fn put_payload(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let name = name.to_owned();
        Ok(self.database.write(move |c| payloads::put(c, &name, &bytes)).await?)
    }

    async fn get_payload(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let name = name.to_owned();
        Ok(self.database.read(move |c| payloads::get(c, &name)).await?)
    }

    async fn delete_payload(&self, name: &str) -> Result<(), StoreError> {
        let name = name.to_owned();
        Ok(self.database.write(move |c| payloads::delete(c, &name)).await?)
    }

    async fn put_heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        let word = heartbeat.clone();
        Ok(self.database.write(move |c| heartbeats::put(c, &word)).await?)
    }

    async fn heartbeats(&self) -> Result<Vec<Heartbeat>, StoreError> {
        Ok(self.database.read(heartbeats::read).await?)
    }

    async fn delete_heartbeat(&self, instance: Uuid) -> Result<(), StoreError> {
        Ok(self.database.write(move |c| heartbeats::remove(c, instance)).await?)
    }

    async fn put_kv(&self, note: &KvRecord, was: Option<&str>) -> Result<bool, StoreError> {
        let (note, was) = (note.clone(), was.map(str::to_owned));
        Ok(self.database.write(move |c| kv_records::put(c, &note, was.as_deref())).await?)
    }

    async fn get_kv(&self, kind: &str, id: &str) -> Result<Option<String>, StoreError> {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        Ok(self.database.read(move |c| kv_records::get(c, &kind, &id)).await?)
    }

    async fn list_kv(&self, kind: &str) -> Result<Vec<KvRecord>, StoreError> {
        let kind = kind.to_owned();
        Ok(self.database.read(move |c| kv_records::all(c, &kind)).await?)
    }

    async fn delete_kv(&self, kind: &str, id: &str) -> Result<(), StoreError> {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        Ok(self.database.write(move |c| kv_records::remove(c, &kind, &id)).await?)
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
