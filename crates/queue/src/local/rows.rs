//! Jobs as rows of the `queue` table, and back.

use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row, named_params, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::{DeferOrder, Delivery, LockToken};
use domain::job::{Api, BatchId, Job, JobHistory, JobId, TokenEstimate};
use state::sqlite::{parsed, text};

/// Columns of a job in the order in which [`read_job`] takes them, from column 2 on.
macro_rules! job_columns {
    () => {
        "job_id, batch_id, custom_id, position, url, model, prompt_tokens, max_output_tokens, \
         deadline, metadata, priority, look_up, body, first_enqueued, history, aside"
    };
}
pub(super) use job_columns;

/// Returns the token of a row and this one hand-out of it.
fn lock_token(seq: i64, nonce: i64) -> LockToken {
    LockToken(Uuid::from_u64_pair(seq.cast_unsigned(), nonce.cast_unsigned()))
}

pub(super) fn row_of(lock: LockToken) -> (i64, i64) {
    let (seq, nonce) = lock.0.as_u64_pair();
    (seq.cast_signed(), nonce.cast_signed())
}

pub(super) fn insert(c: &Connection, jobs: &[Job]) -> rusqlite::Result<u64> {
    let mut insert = c.prepare_cached(
        "INSERT OR IGNORE INTO queue (job_id, available_at, priority, delivery_count, batch_id,
             custom_id, position, url, model, prompt_tokens, max_output_tokens, deadline, metadata,
             look_up, first_enqueued, history, aside, body)
         VALUES (?1, ?2, ?3, 0, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
    )?;
    let now = Timestamp::now();
    let mut accepted = 0;
    for job in jobs {
        accepted += insert.execute(params![
            job.id.as_bytes(),
            job.not_before.map_or(0, Timestamp::as_millisecond),
            job.priority,
            job.batch_id.as_str(),
            job.custom_id,
            job.position,
            job.api.url(),
            job.model,
            job.estimate.map(|e| e.prompt),
            job.estimate.map(|e| e.max_output),
            job.deadline.map(|at| at.to_string()),
            job.metadata,
            job.may_have_outcome,
            job.history.first_enqueued.unwrap_or(now).as_millisecond(),
            history_column(&job.history)?,
            job.claim_check.map(|aside| json(&aside)).transpose()?,
            text(&job.body)?,
        ])?;
    }
    Ok(accepted as u64)
}

/// One hand-out of up to `max` jobs.
pub(super) struct HandOut {
    pub(super) max: usize,
    pub(super) now: Timestamp,
    pub(super) until: Timestamp,
    pub(super) nonce: i64,
    pub(super) only_batch: Option<BatchId>,
}

impl HandOut {
    pub(super) fn run(&self, c: &Connection) -> rusqlite::Result<Vec<Delivery>> {
        // Not one UPDATE … RETURNING: that would keep a copy of every body until the last row is changed.
        let mut find = c.prepare_cached(concat!(
            "SELECT seq, delivery_count + 1, ",
            job_columns!(),
            " FROM queue WHERE available_at <= :now AND (:only IS NULL OR batch_id = :only)
             ORDER BY available_at, priority DESC, seq LIMIT :max"
        ))?;
        let parameters = named_params! {
            ":now": self.now.as_millisecond(),
            ":max": self.max,
            ":only": self.only_batch.as_ref().map(BatchId::as_str),
        };
        let mut taken = find
            .query_map(parameters, |row| {
                Ok(Delivery {
                    lock: lock_token(row.get(0)?, self.nonce),
                    locked_until: self.until,
                    count: row.get(1)?,
                    job: read_job(row)?,
                })
            })?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let mut lock = c.prepare_cached(
            "UPDATE queue SET available_at = ?2, lock = ?3, delivery_count = ?4 WHERE seq = ?1",
        )?;
        for delivery in &taken {
            let (seq, nonce) = row_of(delivery.lock);
            lock.execute(params![seq, self.until.as_millisecond(), nonce, delivery.count])?;
        }
        taken.sort_by_key(|d| (std::cmp::Reverse(d.job.priority), row_of(d.lock).0));
        Ok(taken)
    }
}

/// Makes jobs invisible until their time. The hand-out of a deferred job is not counted.
pub(super) fn defer(c: &Connection, postponements: &[DeferOrder]) -> rusqlite::Result<()> {
    let mut wait = c.prepare_cached(
        "UPDATE queue SET available_at = ?3, lock = NULL, delivery_count = delivery_count - 1,
                          history = ?4
         WHERE seq = ?1 AND lock = ?2",
    )?;
    for DeferOrder { lock, job, until } in postponements {
        let (seq, nonce) = row_of(*lock);
        let history = history_column(&job.history)?;
        wait.execute(params![seq, nonce, until.as_millisecond(), history])?;
    }
    Ok(())
}

pub(super) fn read_job(row: &Row<'_>) -> rusqlite::Result<Job> {
    let prompt: Option<u32> = row.get(8)?;
    let max_output: Option<u32> = row.get(9)?;
    let mut history: JobHistory = read_json(row, 16)?.unwrap_or_default();
    history.first_enqueued = Timestamp::from_millisecond(row.get(15)?).ok();
    Ok(Job {
        id: JobId::from_bytes(row.get(2)?),
        batch_id: parsed(row, 3, |name| name.parse().ok())?,
        custom_id: row.get(4)?,
        position: row.get(5)?,
        api: parsed(row, 6, Api::from_url)?,
        model: row.get(7)?,
        body: row.get::<_, String>(14)?.into(),
        claim_check: read_json(row, 17)?,
        estimate: prompt
            .zip(max_output)
            .map(|(prompt, max_output)| TokenEstimate { prompt, max_output }),
        deadline: match row.get_ref(10)? {
            ValueRef::Null => None,
            _ => Some(parsed(row, 10, |at| at.parse().ok())?),
        },
        // A job that is handed out is past it.
        not_before: None,
        priority: row.get(12)?,
        metadata: row.get(11)?,
        may_have_outcome: row.get(13)?,
        history,
    })
}

/// Serializes the history; `None` for nearly all jobs, whose enqueue time has its own column.
fn history_column(history: &JobHistory) -> rusqlite::Result<Option<String>> {
    let rest = JobHistory { first_enqueued: None, ..history.clone() };
    (!rest.is_empty()).then(|| json(&rest)).transpose()
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}

fn read_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => parsed(row, column, |json| serde_json::from_str(json).ok()).map(Some),
    }
}
