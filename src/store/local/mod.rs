//! The embedded store: the `outcomes`, `usage`, `batches`, `budgets`, `payloads`, `shares` and `notes`
//! tables of the state file.

mod batches;
mod budgets;
mod notes;
mod payloads;
mod usage;
mod words;

use std::cmp::Reverse;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use jiff::Timestamp;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::{Batch, BatchState, Brief, Note, Order, Recorded, Running, Store, StoreError, Totals};
use crate::budget::{Budget, Claim, Limit};
use crate::job::{BatchId, JobId};
use crate::outcome::{Ending, Failure, Outcome, Usage};
use crate::share::Word;
use crate::sqlite::{Database, SqliteError, parsed, text};
use usage::UsageRows;

/// Outcomes that cross from the reading thread at a time.
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

    /// Rows of a batch as a stream, read by a thread of the database a chunk ahead.
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
                // Nobody listening means that the stream was dropped.
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
        Ok(self.database.write(move |c| record_all(c, &outcomes)).await?)
    }

    async fn look_up(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        let jobs = jobs(batch, custom_ids);
        Ok(self
            .database
            .read(move |c| jobs.iter().map(|job| look_up_one(c, job)).collect())
            .await?)
    }

    async fn outcome(
        &self,
        batch: &BatchId,
        custom_id: &str,
    ) -> Result<Option<Outcome>, StoreError> {
        let job = (batch.clone(), custom_id.to_owned());
        Ok(self.database.read(move |c| find_outcome(c, &job)).await?)
    }

    async fn outcome_by_id(
        &self,
        batch: &BatchId,
        job: JobId,
    ) -> Result<Option<Outcome>, StoreError> {
        let batch = batch.clone();
        Ok(self.database.read(move |c| find_by_id(c, &batch, job)).await?)
    }

    async fn withdraw_dead(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        let jobs = jobs(batch, custom_ids);
        let withdraw = move |c: &Connection| jobs.iter().map(|job| withdraw_one(c, job)).collect();
        Ok(self.database.write(withdraw).await?)
    }

    async fn outcomes(
        &self,
        batch: &BatchId,
        order: Order,
    ) -> Result<BoxStream<'static, Result<Outcome, StoreError>>, StoreError> {
        let sql = match order {
            Order::AsStored => AS_STORED,
            Order::ByPosition => BY_POSITION,
        };
        Ok(self.stream(batch, sql, read_outcome))
    }

    async fn briefs(
        &self,
        batch: &BatchId,
    ) -> Result<BoxStream<'static, Result<Brief, StoreError>>, StoreError> {
        Ok(self.stream(batch, BRIEFS, read_brief))
    }

    async fn totals(&self, batch: &BatchId) -> Result<Totals, StoreError> {
        let batch = batch.clone();
        Ok(self.database.read(move |c| usage::totals(c, &batch)).await?)
    }

    async fn running(&self, batch: &BatchId, since: Timestamp) -> Result<Running, StoreError> {
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

    async fn limit_budget(&self, batch: &BatchId, limit: &Limit) -> Result<Budget, StoreError> {
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
        claim: &Claim,
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

    async fn put_word(&self, word: &Word) -> Result<(), StoreError> {
        let word = word.clone();
        Ok(self.database.write(move |c| words::put(c, &word)).await?)
    }

    async fn words(&self) -> Result<Vec<Word>, StoreError> {
        Ok(self.database.read(words::read).await?)
    }

    async fn remove_word(&self, instance: Uuid) -> Result<(), StoreError> {
        Ok(self.database.write(move |c| words::remove(c, instance)).await?)
    }

    async fn put_note(&self, note: &Note, was: Option<&str>) -> Result<bool, StoreError> {
        let (note, was) = (note.clone(), was.map(str::to_owned));
        Ok(self.database.write(move |c| notes::put(c, &note, was.as_deref())).await?)
    }

    async fn note(&self, kind: &str, id: &str) -> Result<Option<String>, StoreError> {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        Ok(self.database.read(move |c| notes::get(c, &kind, &id)).await?)
    }

    async fn notes(&self, kind: &str) -> Result<Vec<Note>, StoreError> {
        let kind = kind.to_owned();
        Ok(self.database.read(move |c| notes::all(c, &kind)).await?)
    }

    async fn remove_note(&self, kind: &str, id: &str) -> Result<(), StoreError> {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        Ok(self.database.write(move |c| notes::remove(c, &kind, &id)).await?)
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

fn record_all(c: &Connection, outcomes: &[Outcome]) -> rusqlite::Result<Vec<Recorded>> {
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
            let known = look_up_one(c, &(o.batch_id.clone(), o.custom_id.clone()))?;
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

/// A job by what makes it that one.
type Named = (BatchId, String);

fn jobs(batch: &BatchId, custom_ids: &[&str]) -> Vec<Named> {
    custom_ids.iter().map(|custom_id| (batch.clone(), (*custom_id).to_owned())).collect()
}

fn find_outcome(c: &Connection, (batch, custom_id): &Named) -> rusqlite::Result<Option<Outcome>> {
    let sql = "SELECT * FROM outcomes WHERE batch_id = ?1 AND custom_id = ?2";
    c.prepare_cached(sql)?.query_row([batch.as_str(), custom_id], read_outcome).optional()
}

/// Goes through the names alone.
fn find_by_id(c: &Connection, batch: &BatchId, job: JobId) -> rusqlite::Result<Option<Outcome>> {
    let mut names = c.prepare_cached("SELECT custom_id FROM outcomes WHERE batch_id = ?1")?;
    let mut names = names.query_map([batch.as_str()], |row| row.get::<_, String>(0))?;
    let is_it = |name: &rusqlite::Result<String>| {
        name.as_ref().map_or(true, |name| JobId::new(batch, name) == job)
    };
    match names.find(is_it).transpose()? {
        Some(name) => find_outcome(c, &(batch.clone(), name)),
        None => Ok(None),
    }
}

fn look_up_one(c: &Connection, (batch, custom_id): &Named) -> rusqlite::Result<Option<Recorded>> {
    let sql = "SELECT ending, digest FROM outcomes WHERE batch_id = ?1 AND custom_id = ?2";
    c.prepare_cached(sql)?
        .query_row([batch.as_str(), custom_id], |row| {
            Ok(Recorded {
                job_id: JobId::new(batch, custom_id),
                ending: parsed(row, 0, Ending::from_name)?,
                digest: row.get::<_, i64>(1)?.cast_unsigned(),
                first: false,
            })
        })
        .optional()
}

fn withdraw_one(c: &Connection, job: &Named) -> rusqlite::Result<Option<Recorded>> {
    let known = look_up_one(c, job)?;
    if known.is_none_or(|known| known.ending() != Ending::Dead) {
        return Ok(known);
    }
    let key = [job.0.as_str(), &job.1];
    usage::uncount(c, key)?;
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

/// The plus keeps SQLite from the index of names, by which it would fetch rows all over the table and
/// then sort them.
const AS_STORED: &str = "SELECT * FROM outcomes WHERE +batch_id = ?1 ORDER BY seq";

/// Only (position, seq) pairs go through SQLite's sorter, which spills to disk; the bodies are fetched
/// after it. The LIMIT, which limits nothing, is what keeps the order: SQLite drops an ORDER BY inside
/// a join as pointless if there is none.
const BY_POSITION: &str =
    "SELECT o.* FROM (SELECT seq AS at, position FROM outcomes WHERE +batch_id = ?1
                      ORDER BY position LIMIT -1) CROSS JOIN outcomes o ON o.seq = at";

const BRIEFS: &str = "SELECT ending, error_code, prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, attempts, deployment, model, latency_ms, finished_at, metadata, service_tier,
    throttled, deadline, error_message
    FROM outcomes WHERE +batch_id = ?1
    UNION ALL SELECT NULL, NULL, prompt_tokens, cached_tokens, completion_tokens,
    reasoning_tokens, attempts, deployment, model, latency_ms, finished_at, metadata, service_tier,
    throttled, NULL, NULL
    FROM withdrawn WHERE batch_id = ?1";

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

fn read_brief(row: &Row<'_>) -> rusqlite::Result<Brief> {
    Ok(Brief {
        ending: match row.get_ref(0)? {
            ValueRef::Null => None,
            _ => Some(parsed(row, 0, Ending::from_name)?),
        },
        failure: read_failure(row, 1, 15)?,
        usage: Usage {
            prompt: row.get(2)?,
            cached: row.get(3)?,
            completion: row.get(4)?,
            reasoning: row.get(5)?,
        },
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

fn read_failure(row: &Row<'_>, code: usize, message: usize) -> rusqlite::Result<Option<Failure>> {
    let (code, message): (Option<_>, Option<_>) = (row.get(code)?, row.get(message)?);
    Ok(code.zip(message).map(|(code, message)| Failure { code, message }))
}

fn read_deadline(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => parsed(row, column, |at| at.parse().ok()).map(Some),
    }
}

fn read_outcome(row: &Row<'_>) -> rusqlite::Result<Outcome> {
    let batch_id = parsed(row, 1, |name| name.parse().ok())?;
    let custom_id: String = row.get(2)?;
    Ok(Outcome {
        job_id: JobId::new(&batch_id, &custom_id),
        batch_id,
        custom_id,
        position: row.get(3)?,
        digest: row.get::<_, i64>(4)?.cast_unsigned(),
        ending: parsed(row, 5, Ending::from_name)?,
        status_code: row.get(6)?,
        request_id: row.get(7)?,
        failure: read_failure(row, 8, 9)?,
        usage: Usage {
            prompt: row.get(10)?,
            cached: row.get(11)?,
            completion: row.get(12)?,
            reasoning: row.get(13)?,
        },
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
