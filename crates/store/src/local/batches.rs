//! The `batches` table.

use std::cmp::Reverse;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::LocalStore;
use crate::{Batch, BatchSenders, BatchState, BatchStore, StoreError};
use domain::job::BatchId;
use state::sqlite::parsed;

const BATCHES: &str =
    "SELECT batch_id, state, jobs, prompt_tokens, created_at, inputs, reason, senders
     FROM batches";

#[async_trait]
impl BatchStore for LocalStore {
    async fn create_batch(&self, batch: &Batch) -> Result<bool, StoreError> {
        let batch = batch.clone();
        self.write(move |c| create(c, &batch)).await
    }

    async fn add_senders(&self, id: &BatchId, senders: BatchSenders) -> Result<(), StoreError> {
        let id = id.clone();
        self.write(move |c| add_senders(c, &id, senders)).await
    }

    async fn put_batch(&self, batch: &Batch) -> Result<(), StoreError> {
        let batch = batch.clone();
        self.write(move |c| put(c, &batch)).await
    }

    async fn change_state(
        &self,
        id: &BatchId,
        from: &[BatchState],
        to: BatchState,
        reason: Option<&str>,
    ) -> Result<Option<Batch>, StoreError> {
        let (id, from, reason) = (id.clone(), from.to_vec(), reason.map(str::to_owned));
        let change = move |c: &Connection| change_state(c, &id, &from, to, reason.as_deref());
        self.write(change).await
    }

    async fn batch(&self, id: &BatchId) -> Result<Option<Batch>, StoreError> {
        let id = id.clone();
        self.read(move |c| find(c, &id)).await
    }

    async fn batches(&self) -> Result<Vec<Batch>, StoreError> {
        let mut batches = self.read(list).await?;
        // Not by SQL: as text, "16:00:00Z" is later than "16:00:00.5Z".
        batches.sort_by_key(|batch| Reverse(batch.created_at));
        Ok(batches)
    }
}

/// Creates a batch; returns false if there is one.
fn create(c: &Connection, batch: &Batch) -> rusqlite::Result<bool> {
    let inputs = serde_json::to_string(&batch.inputs)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    let created = c
        .prepare_cached(
            "INSERT OR IGNORE INTO batches
                 (batch_id, state, jobs, prompt_tokens, created_at, inputs, reason, senders)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            batch.id.as_str(),
            batch.state.as_str(),
            batch.jobs,
            batch.prompt_tokens,
            batch.created_at.to_string(),
            inputs,
            batch.reason,
            batch.senders.as_str(),
        ])?;
    Ok(created == 1)
}

/// Creates or overwrites a batch; the state, reason and senders of an existing one stay.
fn put(c: &Connection, batch: &Batch) -> rusqlite::Result<()> {
    if create(c, batch)? {
        return Ok(());
    }
    let inputs = serde_json::to_string(&batch.inputs)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    c.prepare_cached(
        "UPDATE batches SET jobs = ?2, prompt_tokens = ?3, created_at = ?4, inputs = ?5
         WHERE batch_id = ?1",
    )?
    .execute(params![
        batch.id.as_str(),
        batch.jobs,
        batch.prompt_tokens,
        batch.created_at.to_string(),
        inputs,
    ])?;
    Ok(())
}

/// Must run in a transaction, as [`change_state`].
fn add_senders(c: &Connection, id: &BatchId, senders: BatchSenders) -> rusqlite::Result<()> {
    if find(c, id)?.is_some_and(|batch| batch.senders < senders) {
        c.prepare_cached("UPDATE batches SET senders = ?2 WHERE batch_id = ?1")?
            .execute(params![id.as_str(), senders.as_str()])?;
    }
    Ok(())
}

/// Must run in a transaction that no other write can interleave with, as all writes do.
fn change_state(
    c: &Connection,
    id: &BatchId,
    from: &[BatchState],
    to: BatchState,
    reason: Option<&str>,
) -> rusqlite::Result<Option<Batch>> {
    let Some(batch) = find(c, id)? else { return Ok(None) };
    if !from.contains(&batch.state) {
        return Ok(Some(batch));
    }
    c.prepare_cached("UPDATE batches SET state = ?2, reason = ?3 WHERE batch_id = ?1")?
        .execute(params![id.as_str(), to.as_str(), reason])?;
    Ok(Some(Batch { state: to, reason: reason.map(str::to_owned), ..batch }))
}

fn find(c: &Connection, id: &BatchId) -> rusqlite::Result<Option<Batch>> {
    let sql = format!("{BATCHES} WHERE batch_id = ?1");
    c.prepare_cached(&sql)?.query_row([id.as_str()], read).optional()
}

fn list(c: &Connection) -> rusqlite::Result<Vec<Batch>> {
    c.prepare_cached(BATCHES)?.query_map([], read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Batch> {
    Ok(Batch {
        id: parsed(row, 0, |name| name.parse().ok())?,
        state: parsed(row, 1, BatchState::from_name)?,
        jobs: row.get(2)?,
        prompt_tokens: row.get(3)?,
        created_at: parsed(row, 4, |at: &str| at.parse::<Timestamp>().ok())?,
        inputs: parsed(row, 5, |inputs| serde_json::from_str(inputs).ok())?,
        reason: row.get(6)?,
        senders: parsed(row, 7, BatchSenders::from_name)?,
    })
}
