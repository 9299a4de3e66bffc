//! Writes to the `outcomes` table: one row a job, by its batch and custom_id.

use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, params};

use super::LocalStore;
use super::columns::{cost_columns, outcome_columns};
use super::usage::{self, UsageRows};
use crate::{OutcomeStore, Recorded, StoreError};
use domain::job::{BatchId, JobId};
use domain::outcome::{Outcome, OutcomeStatus};
use state::sqlite::{parsed, text};

/// Key of an outcome: batch and custom_id.
pub(super) type OutcomeKey = (BatchId, String);

pub(super) fn keys(batch: &BatchId, custom_ids: &[&str]) -> Vec<OutcomeKey> {
    custom_ids.iter().map(|custom_id| (batch.clone(), (*custom_id).to_owned())).collect()
}

#[async_trait]
impl OutcomeStore for LocalStore {
    async fn record(&self, outcomes: Arc<Vec<Outcome>>) -> Result<Vec<Recorded>, StoreError> {
        if outcomes.is_empty() {
            return Ok(Vec::new());
        }
        self.write(move |c| record(c, &outcomes)).await
    }

    async fn look_up(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        let jobs = keys(batch, custom_ids);
        self.read(move |c| jobs.iter().map(|job| look_up(c, job)).collect()).await
    }

    async fn reopen_dead(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        let jobs = keys(batch, custom_ids);
        let withdraw = move |c: &Connection| jobs.iter().map(|job| withdraw(c, job)).collect();
        self.write(withdraw).await
    }
}

fn record(c: &Connection, outcomes: &[Outcome]) -> rusqlite::Result<Vec<Recorded>> {
    let mut insert = c.prepare_cached(concat!(
        "INSERT OR IGNORE INTO outcomes (",
        outcome_columns!(),
        ")
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18,
                 ?19, ?20, ?21, ?22, ?23)"
    ))?;
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

fn look_up(c: &Connection, (batch, custom_id): &OutcomeKey) -> rusqlite::Result<Option<Recorded>> {
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

fn withdraw(c: &Connection, job: &OutcomeKey) -> rusqlite::Result<Option<Recorded>> {
    let known = look_up(c, job)?;
    if known.is_none_or(|known| known.ending() != OutcomeStatus::Dead) {
        return Ok(known);
    }
    let key = [job.0.as_str(), &job.1];
    usage::subtract_job(c, key)?;
    c.prepare_cached(concat!(
        "INSERT INTO withdrawn (batch_id, custom_id, ending, ",
        cost_columns!(),
        ")
         SELECT batch_id, custom_id, ending, ",
        cost_columns!(),
        " FROM outcomes WHERE batch_id = ?1 AND custom_id = ?2"
    ))?
    .execute(key)?;
    c.prepare_cached("DELETE FROM outcomes WHERE batch_id = ?1 AND custom_id = ?2")?
        .execute(key)?;
    Ok(None)
}
