//! Writes to the `outcomes` table: one row a job, by its batch and custom_id.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, Statement, params};

use super::LocalStore;
use super::columns::{cost_columns, outcome_columns};
use super::usage::{self, UsageRows};
use crate::unstorable::{self, MAX_COUNT, UnstorableReason};
use crate::{OutcomeStore, Recorded, StoreError};
use domain::job::{BatchId, JobId};
use domain::outcome::{AnswerFinish, AnswerFlaw, Outcome, OutcomeStatus};
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
                 ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26)"
    ))?;
    let kept = outcomes.iter().map(|outcome| insert_kept(&mut insert, outcome));
    let kept = kept.collect::<rusqlite::Result<Vec<_>>>()?;
    let mut usage = UsageRows::default();
    let mut proofs = Vec::with_capacity(kept.len());
    for (o, is_new) in &kept {
        if *is_new {
            usage.add(o);
            let (job_id, ending, digest) = (o.job_id, o.ending, o.digest);
            proofs.push(Recorded { job_id, ending, digest, first: true });
        } else {
            let known = look_up(c, &(o.batch_id.clone(), o.custom_id.clone()))?;
            proofs.push(known.ok_or(rusqlite::Error::QueryReturnedNoRows)?);
        }
    }
    usage.write(c)?;
    Ok(proofs)
}

/// Inserts an outcome if its job has none; if it can't be kept as it is, what can be kept of it.
/// Returns what was offered to the table in the end, and whether it is new there.
fn insert_kept<'o>(
    insert: &mut Statement<'_>,
    outcome: &'o Outcome,
) -> rusqlite::Result<(Cow<'o, Outcome>, bool)> {
    let reason = match unstorable::check(outcome) {
        Ok(()) => match insert_one(insert, outcome) {
            Err(error) if is_about_the_row(&error) => UnstorableReason::Refused(error.to_string()),
            inserted => return Ok((Cow::Borrowed(outcome), inserted?)),
        },
        Err(reason) => reason,
    };
    tracing::warn!(job.id = %outcome.job_id, batch.id = %outcome.batch_id, %reason,
        "an outcome can't be stored as it came; it is recorded with the reason");
    let [full, bare] = reason.replacements(outcome);
    match insert_one(insert, &full) {
        Err(error) if is_about_the_row(&error) => {
            insert_one(insert, &bare).map(|is_new| (Cow::Owned(bare), is_new))
        }
        inserted => Ok((Cow::Owned(full), inserted?)),
    }
}

/// Returns true for an error that another row would not meet. Such a statement changes nothing, and
/// its transaction goes on.
fn is_about_the_row(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{ConstraintViolation, TooBig, TypeMismatch};
    match error {
        rusqlite::Error::ToSqlConversionFailure(_) => true,
        error => {
            matches!(error.sqlite_error_code(), Some(ConstraintViolation | TooBig | TypeMismatch))
        }
    }
}

fn insert_one(insert: &mut Statement<'_>, o: &Outcome) -> rusqlite::Result<bool> {
    let inserted = insert.execute(params![
        o.batch_id.as_str(),
        o.custom_id,
        o.position.min(MAX_COUNT),
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
        o.usage.unreported,
        o.attempts,
        o.deployment,
        o.model,
        o.latency_ms.min(MAX_COUNT),
        o.finished_at.to_string(),
        o.metadata,
        o.body.as_deref().map(text).transpose()?,
        o.service_tier,
        o.throttled,
        o.deadline.map(|deadline| deadline.to_string()),
        o.finish.map(AnswerFinish::as_str),
        o.flaw.map(AnswerFlaw::as_str),
    ])?;
    Ok(inserted == 1)
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

#[cfg(test)]
mod tests {
    use super::*;
    use domain::outcome::TokenUsage;
    use state::sqlite::Database;

    fn outcome(custom_id: &str) -> Outcome {
        let batch_id: BatchId = "b".parse().unwrap();
        Outcome {
            job_id: JobId::new(&batch_id, custom_id),
            batch_id,
            custom_id: custom_id.into(),
            position: 0,
            digest: 7,
            ending: OutcomeStatus::Succeeded,
            status_code: Some(200),
            request_id: None,
            body: Some("{}".into()),
            failure: None,
            usage: TokenUsage::default(),
            finish: None,
            flaw: None,
            service_tier: None,
            attempts: 1,
            throttled: 0,
            deployment: "d".into(),
            model: "m".into(),
            latency_ms: 5,
            finished_at: "2026-11-23T12:00:00Z".parse().unwrap(),
            deadline: None,
            metadata: Some("{}".into()),
        }
    }

    #[tokio::test]
    async fn a_row_that_sqlite_refuses_takes_no_other_along() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(Database::open(directory.path()).unwrap());
        // Stands for a reason that nobody thought of: a row with a body, then any, is refused.
        let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON outcomes
            WHEN new.custom_id = 'bad' AND new.body IS NOT NULL OR new.custom_id = 'never'
            BEGIN SELECT raise(ABORT, 'not this one'); END;";
        store.write(move |c| c.execute_batch(refuse)).await.unwrap();
        let group = ["1", "bad", "2"].map(outcome);
        let proofs = store.record(Arc::new(group.to_vec())).await.unwrap();
        let endings: Vec<_> = proofs.iter().map(|p| (p.ending(), p.is_first())).collect();
        use OutcomeStatus::{Failed, Succeeded};
        assert_eq!(endings, [(Succeeded, true), (Failed, true), (Succeeded, true)]);
        let batch = &group[0].batch_id;
        let kept = crate::OutcomeReader::outcome(&store, batch, "bad").await.unwrap().unwrap();
        assert_eq!((kept.body, kept.metadata), (None, None));
        let message = kept.failure.unwrap().message;
        assert!(message.contains("not this one"), "{message}");
        let refused = store.record(Arc::new(vec![outcome("never")])).await.unwrap_err();
        assert!(matches!(refused, StoreError::Refused(_)), "nothing of it could be kept");
    }
}
