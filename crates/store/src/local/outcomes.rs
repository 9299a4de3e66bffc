//! The `outcomes` table: one row a job, by its batch and custom_id.

use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::mpsc;

use super::usage::{self, UsageRows};
use crate::{OutcomeSummary, Recorded, StoreError};
use domain::job::{BatchId, JobId};
use domain::outcome::{JobFailure, Outcome, OutcomeStatus};
use state::sqlite::{parsed, text};

/// Rows that cross from the reading thread at a time.
const CHUNK: usize = 128;

pub(super) fn record(c: &Connection, outcomes: &[Outcome]) -> rusqlite::Result<Vec<Recorded>> {
    let mut insert = c.prepare_cached(
        "INSERT OR IGNORE INTO outcomes (batch_id, custom_id, position, digest, ending, status_code,
             request_id, error_code, error_message, prompt_tokens, cached_tokens,
             completion_tokens, reasoning_tokens, attempts, deployment, model, latency_ms,
             finished_at, metadata, body, service_tier, throttled, deadline)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18,
                 ?19, ?20, ?21, ?22, ?23)",
    )?;
    let mut usage = UsageRows::default();
    let mut proofs = Vec::with_capacity(outcomes.len());
    for o in outcomes {
        let finished_at = o.finished_at.to_string();
        let inserted = insert.execute(params![
            o.batch_id.as_str(),
            o.custom_id,
            o.position,
            o.digest.cast_signed(),
            o.ending.as_str(),
            o.status_code,
            o.request_id,
            o.failure.as_ref().map(|f| &f.code),
            o.failure.as_ref().map(|f| &f.message),
            o.usage.prompt,
            o.usage.cached,
            o.usage.completion,
            o.usage.reasoning,
            o.attempts,
            o.deployment,
            o.model,
            o.latency_ms,
            finished_at,
            o.metadata,
            o.body.as_deref().map(text).transpose()?,
            o.service_tier,
            o.throttled,
            o.deadline.map(|deadline| deadline.to_string()),
        ])?;
        if inserted == 0 {
            let known = look_up(c, &(o.batch_id.clone(), o.custom_id.clone()))?;
            proofs.push(known.ok_or(rusqlite::Error::QueryReturnedNoRows)?);
            continue;
        }
        usage.add(o, &finished_at);
        let first = Recorded { job_id: o.job_id, ending: o.ending, digest: o.digest, first: true };
        proofs.push(first);
    }
    usage.write(c)?;
    Ok(proofs)
}

/// Key of an outcome: batch and custom_id.
pub(super) type OutcomeKey = (BatchId, String);

pub(super) fn keys(batch: &BatchId, custom_ids: &[&str]) -> Vec<OutcomeKey> {
    custom_ids.iter().map(|custom_id| (batch.clone(), (*custom_id).to_owned())).collect()
}

pub(super) fn find(
    c: &Connection,
    (batch, custom_id): &OutcomeKey,
) -> rusqlite::Result<Option<Outcome>> {
    let sql = "SELECT * FROM outcomes WHERE batch_id = ?1 AND custom_id = ?2";
    c.prepare_cached(sql)?.query_row([batch.as_str(), custom_id], read).optional()
}

/// Finds an outcome by a scan of the batch's custom_ids alone.
pub(super) fn find_by_id(
    c: &Connection,
    batch: &BatchId,
    job: JobId,
) -> rusqlite::Result<Option<Outcome>> {
    let mut names = c.prepare_cached("SELECT custom_id FROM outcomes WHERE batch_id = ?1")?;
    let mut names = names.query_map([batch.as_str()], |row| row.get::<_, String>(0))?;
    let is_it = |name: &rusqlite::Result<String>| {
        name.as_ref().map_or(true, |name| JobId::new(batch, name) == job)
    };
    match names.find(is_it).transpose()? {
        Some(name) => find(c, &(batch.clone(), name)),
        None => Ok(None),
    }
}

pub(super) fn look_up(
    c: &Connection,
    (batch, custom_id): &OutcomeKey,
) -> rusqlite::Result<Option<Recorded>> {
    let sql = "SELECT ending, digest FROM outcomes WHERE batch_id = ?1 AND custom_id = ?2";
    c.prepare_cached(sql)?
        .query_row([batch.as_str(), custom_id], |row| {
            Ok(Recorded {
                job_id: JobId::new(batch, custom_id),
                ending: parsed(row, 0, OutcomeStatus::from_name)?,
                digest: row.get::<_, i64>(1)?.cast_unsigned(),
                first: false,
            })
        })
        .optional()
}

pub(super) fn withdraw(c: &Connection, job: &OutcomeKey) -> rusqlite::Result<Option<Recorded>> {
    let known = look_up(c, job)?;
    if known.is_none_or(|known| known.ending() != OutcomeStatus::Dead) {
        return Ok(known);
    }
    let key = [job.0.as_str(), &job.1];
    usage::subtract_job(c, key)?;
    c.prepare_cached(
        "INSERT INTO withdrawn
         SELECT batch_id, custom_id, ending, prompt_tokens, cached_tokens, completion_tokens,
                reasoning_tokens, attempts, deployment, model, latency_ms, finished_at, metadata,
                service_tier, throttled
         FROM outcomes WHERE batch_id = ?1 AND custom_id = ?2",
    )?
    .execute(key)?;
    c.prepare_cached("DELETE FROM outcomes WHERE batch_id = ?1 AND custom_id = ?2")?
        .execute(key)?;
    Ok(None)
}

/// The plus keeps SQLite off the index of names, which would fetch rows all over the table and then
/// sort them.
pub(super) const AS_STORED: &str = "SELECT * FROM outcomes WHERE +batch_id = ?1 ORDER BY seq";

/// Only (position, seq) pairs go through SQLite's sorter, which spills to disk; the bodies are fetched
/// after it. The LIMIT, which limits nothing, is what keeps the order: SQLite drops an ORDER BY inside
/// a join as pointless if there is none.
pub(super) const BY_POSITION: &str =
    "SELECT o.* FROM (SELECT seq AS at, position FROM outcomes WHERE +batch_id = ?1
                      ORDER BY position LIMIT -1) CROSS JOIN outcomes o ON o.seq = at";

pub(super) const SUMMARIES: &str =
    "SELECT ending, error_code, prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, attempts, deployment, model, latency_ms, finished_at, metadata, service_tier,
    throttled, deadline, error_message
    FROM outcomes WHERE +batch_id = ?1
    UNION ALL SELECT NULL, NULL, prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, attempts, deployment, model, latency_ms, finished_at, metadata, service_tier,
    throttled, NULL, NULL
    FROM withdrawn WHERE batch_id = ?1";

pub(super) fn read_in_chunks<T>(
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

pub(super) fn read_summary(row: &Row<'_>) -> rusqlite::Result<OutcomeSummary> {
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

pub(super) fn read(row: &Row<'_>) -> rusqlite::Result<Outcome> {
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
