//! Reads of the `outcomes` and `withdrawn` tables.

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row};

use super::{LocalStore, usage};
use crate::{BatchTotals, OutcomeReader, OutcomeSummary, RunningTotals, SortOrder, StoreError};
use domain::job::{BatchId, JobId};
use domain::outcome::{JobFailure, Outcome, OutcomeStatus};
use state::sqlite::parsed;

#[async_trait]
impl OutcomeReader for LocalStore {
    async fn outcome(
        &self,
        batch: &BatchId,
        custom_id: &str,
    ) -> Result<Option<Outcome>, StoreError> {
        let (batch, custom_id) = (batch.clone(), custom_id.to_owned());
        self.read(move |c| find(c, &batch, &custom_id)).await
    }

    async fn outcome_by_id(
        &self,
        batch: &BatchId,
        job: JobId,
    ) -> Result<Option<Outcome>, StoreError> {
        let batch = batch.clone();
        self.read(move |c| find_by_id(c, &batch, job)).await
    }

    async fn outcomes(
        &self,
        batch: &BatchId,
        order: SortOrder,
    ) -> Result<BoxStream<'static, Result<Outcome, StoreError>>, StoreError> {
        let sql = match order {
            SortOrder::AsStored => AS_STORED,
            SortOrder::ByPosition => BY_POSITION,
        };
        Ok(self.stream(batch, sql, read))
    }

    async fn outcome_summaries(
        &self,
        batch: &BatchId,
    ) -> Result<BoxStream<'static, Result<OutcomeSummary, StoreError>>, StoreError> {
        Ok(self.stream(batch, SUMMARIES, read_summary))
    }

    async fn totals(&self, batch: &BatchId) -> Result<BatchTotals, StoreError> {
        let batch = batch.clone();
        self.read(move |c| usage::totals(c, &batch)).await
    }

    async fn running_totals(
        &self,
        batch: &BatchId,
        since: Timestamp,
    ) -> Result<RunningTotals, StoreError> {
        let batch = batch.clone();
        self.read(move |c| usage::running(c, &batch, since)).await
    }
}

fn find(c: &Connection, batch: &BatchId, custom_id: &str) -> rusqlite::Result<Option<Outcome>> {
    let sql = "SELECT * FROM outcomes WHERE batch_id = ?1 AND custom_id = ?2";
    c.prepare_cached(sql)?.query_row([batch.as_str(), custom_id], read).optional()
}

/// Finds an outcome by a scan of the batch's custom_ids alone.
fn find_by_id(c: &Connection, batch: &BatchId, job: JobId) -> rusqlite::Result<Option<Outcome>> {
    let mut names = c.prepare_cached("SELECT custom_id FROM outcomes WHERE batch_id = ?1")?;
    let mut names = names.query_map([batch.as_str()], |row| row.get::<_, String>(0))?;
    let is_it = |name: &rusqlite::Result<String>| {
        name.as_ref().map_or(true, |name| JobId::new(batch, name) == job)
    };
    match names.find(is_it).transpose()? {
        Some(name) => find(c, batch, &name),
        None => Ok(None),
    }
}

/// The plus keeps SQLite off the index of names, which would fetch rows all over the table and then
/// sort them.
const AS_STORED: &str = "SELECT * FROM outcomes WHERE +batch_id = ?1 ORDER BY seq";

/// Only (position, seq) pairs go through SQLite's sorter, which spills to disk; the bodies are fetched
/// after it. The LIMIT, which limits nothing, is what keeps the order: SQLite drops an ORDER BY inside
/// a join as pointless if there is none.
const BY_POSITION: &str =
    "SELECT o.* FROM (SELECT seq AS at, position FROM outcomes WHERE +batch_id = ?1
                      ORDER BY position LIMIT -1) CROSS JOIN outcomes o ON o.seq = at";

const SUMMARIES: &str =
    "SELECT ending, error_code, prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, attempts, deployment, model, latency_ms, finished_at, metadata, service_tier,
    throttled, deadline, error_message
    FROM outcomes WHERE +batch_id = ?1
    UNION ALL SELECT NULL, NULL, prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, attempts, deployment, model, latency_ms, finished_at, metadata, service_tier,
    throttled, NULL, NULL
    FROM withdrawn WHERE batch_id = ?1";

fn read_summary(row: &Row<'_>) -> rusqlite::Result<OutcomeSummary> {
    Ok(OutcomeSummary {
        ending: match row.get_ref(0)? {
            ValueRef::Null => None,
            _ => Some(parsed(row, 0, OutcomeStatus::from_name)?),
        },
        failure: read_failure(row, 1, 15)?,
        usage: usage::read_usage(row, 2)?,
        attempts: row.get(6)?,
        deployment: row.get(7)?,
        model: row.get(8)?,
        latency_ms: row.get(9)?,
        finished_at: parsed(row, 10, |at| at.parse().ok())?,
        metadata: row.get(11)?,
        service_tier: row.get(12)?,
        throttled: row.get(13)?,
        deadline: read_deadline(row, 14)?,
    })
}

fn read_failure(
    row: &Row<'_>,
    code: usize,
    message: usize,
) -> rusqlite::Result<Option<JobFailure>> {
    let (code, message): (Option<_>, Option<_>) = (row.get(code)?, row.get(message)?);
    Ok(code.zip(message).map(|(code, message)| JobFailure { code, message }))
}

fn read_deadline(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => parsed(row, column, |at| at.parse().ok()).map(Some),
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<Outcome> {
    let batch_id = parsed(row, 1, |name| name.parse().ok())?;
    let custom_id: String = row.get(2)?;
    Ok(Outcome {
        job_id: JobId::new(&batch_id, &custom_id),
        batch_id,
        custom_id,
        position: row.get(3)?,
        digest: row.get::<_, i64>(4)?.cast_unsigned(),
        ending: parsed(row, 5, OutcomeStatus::from_name)?,
        status_code: row.get(6)?,
        request_id: row.get(7)?,
        failure: read_failure(row, 8, 9)?,
        usage: usage::read_usage(row, 10)?,
        attempts: row.get(14)?,
        deployment: row.get(15)?,
        model: row.get(16)?,
        latency_ms: row.get(17)?,
        finished_at: parsed(row, 18, |at| at.parse().ok())?,
        metadata: row.get(19)?,
        body: row.get::<_, Option<String>>(20)?.map(Into::into),
        service_tier: row.get(21)?,
        throttled: row.get(22)?,
        deadline: read_deadline(row, 23)?,
    })
}
