//! Reads of the `outcomes` and `withdrawn` tables.

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};

use super::columns::{ColumnReader, cost_columns, outcome_columns};
use super::{LocalStore, usage};
use crate::{BatchTotals, OutcomeReader, OutcomeSummary, RunningTotals, SortOrder, StoreError};
use domain::job::{BatchId, JobId};
use domain::outcome::{AnswerFinish, AnswerFlaw, Outcome, OutcomeStatus};

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
    let sql = concat!(
        "SELECT ",
        outcome_columns!(),
        " FROM outcomes WHERE batch_id = ?1 AND custom_id = ?2"
    );
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
const AS_STORED: &str =
    concat!("SELECT ", outcome_columns!(), " FROM outcomes WHERE +batch_id = ?1 ORDER BY seq");

/// Only (position, seq) pairs go through SQLite's sorter, which spills to disk; the bodies are fetched
/// after it. The LIMIT, which limits nothing, is what keeps the order: SQLite drops an ORDER BY inside
/// a join as pointless if there is none.
const BY_POSITION: &str = concat!(
    "SELECT ",
    outcome_columns!(),
    " FROM (SELECT seq AS at FROM outcomes WHERE +batch_id = ?1 ORDER BY position LIMIT -1)
      CROSS JOIN outcomes ON seq = at"
);

const SUMMARIES: &str = concat!(
    "SELECT ending, error_code, error_message, deadline, finish, ",
    cost_columns!(),
    " FROM outcomes WHERE +batch_id = ?1 UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, ",
    cost_columns!(),
    " FROM withdrawn WHERE batch_id = ?1"
);

fn read_summary(row: &Row<'_>) -> rusqlite::Result<OutcomeSummary> {
    let mut columns = ColumnReader::new(row);
    // In the order of SUMMARIES: struct fields are evaluated as they are written.
    Ok(OutcomeSummary {
        ending: columns.parse_optional(OutcomeStatus::from_name)?,
        failure: columns.failure()?,
        deadline: columns.parse_optional(|at| at.parse().ok())?,
        finish: columns.parse_optional(AnswerFinish::from_name)?,
        usage: columns.usage()?,
        attempts: columns.get()?,
        deployment: columns.get()?,
        model: columns.get()?,
        latency_ms: columns.get()?,
        finished_at: columns.parse(|at| at.parse().ok())?,
        metadata: columns.get()?,
        service_tier: columns.get()?,
        throttled: columns.get()?,
    })
}

fn read(row: &Row<'_>) -> rusqlite::Result<Outcome> {
    let mut columns = ColumnReader::new(row);
    let batch_id = columns.parse(|name| name.parse().ok())?;
    let custom_id: String = columns.get()?;
    // In the order of the columns: struct fields are evaluated as they are written.
    Ok(Outcome {
        job_id: JobId::new(&batch_id, &custom_id),
        batch_id,
        custom_id,
        position: columns.get()?,
        digest: columns.get::<i64>()?.cast_unsigned(),
        ending: columns.parse(OutcomeStatus::from_name)?,
        status_code: columns.get()?,
        request_id: columns.get()?,
        failure: columns.failure()?,
        usage: columns.usage()?,
        attempts: columns.get()?,
        deployment: columns.get()?,
        model: columns.get()?,
        latency_ms: columns.get()?,
        finished_at: columns.parse(|at| at.parse().ok())?,
        metadata: columns.get()?,
        body: columns.get::<Option<String>>()?.map(Into::into),
        service_tier: columns.get()?,
        throttled: columns.get()?,
        deadline: columns.parse_optional(|at| at.parse().ok())?,
        finish: columns.parse_optional(AnswerFinish::from_name)?,
        flaw: columns.parse_optional(AnswerFlaw::from_name)?,
    })
}
