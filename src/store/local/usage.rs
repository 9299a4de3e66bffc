//! The `usage` table: what was paid, by batch, deployment, model, hour and ending.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use crate::job::{BatchId, JobId};
use crate::outcome::{Ending, Outcome, Usage};
use crate::sqlite::parsed;
use crate::store::Totals;

/// Batch, deployment, model, hour, ending.
type UsageKey<'a> = (&'a str, &'a str, &'a str, String, Ending);

/// What one transaction adds to the `usage` table, one row a key rather than one an outcome.
pub(super) struct UsageRows<'a>(HashMap<UsageKey<'a>, (u64, u64, Usage)>);

impl<'a> UsageRows<'a> {
    pub(super) fn new() -> Self {
        Self(HashMap::new())
    }

    pub(super) fn add(&mut self, o: &'a Outcome, finished_at: &str) {
        // "2026-11-23T16" of an RFC 3339 time.
        let hour = finished_at[..13].to_owned();
        let key = (o.batch_id.as_str(), o.deployment.as_str(), o.model.as_str(), hour, o.ending);
        let (jobs, attempts, usage) = self.0.entry(key).or_default();
        *jobs += 1;
        *attempts += u64::from(o.attempts);
        *usage += o.usage;
    }

    pub(super) fn write(self, c: &Connection) -> rusqlite::Result<()> {
        let mut add = c.prepare_cached(
            "INSERT INTO usage VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
             ON CONFLICT DO UPDATE SET
                 jobs = jobs + excluded.jobs,
                 attempts = attempts + excluded.attempts,
                 prompt_tokens = prompt_tokens + excluded.prompt_tokens,
                 cached_tokens = cached_tokens + excluded.cached_tokens,
                 completion_tokens = completion_tokens + excluded.completion_tokens,
                 reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens",
        )?;
        for ((batch, deployment, model, hour, ending), (jobs, attempts, u)) in self.0 {
            add.execute(params![
                batch,
                deployment,
                model,
                hour,
                ending.as_str(),
                jobs,
                attempts,
                u.prompt,
                u.cached,
                u.completion,
                u.reasoning
            ])?;
        }
        Ok(())
    }
}

pub(super) fn sum(c: &Connection, batch: &BatchId) -> rusqlite::Result<Totals> {
    let mut sums = c.prepare_cached(
        "SELECT ending, sum(jobs), sum(attempts), sum(prompt_tokens), sum(cached_tokens),
                sum(completion_tokens), sum(reasoning_tokens)
         FROM usage WHERE batch_id = ?1 GROUP BY ending",
    )?;
    let mut totals = Totals::default();
    let mut rows = sums.query([batch.as_str()])?;
    while let Some(row) = rows.next()? {
        let jobs: u64 = row.get(1)?;
        // None are left where all that ended so were withdrawn; what they cost is.
        if jobs > 0 {
            totals.endings.insert(parsed(row, 0, Ending::from_name)?, jobs);
        }
        totals.attempts += row.get::<_, u64>(2)?;
        totals.usage += Usage {
            prompt: row.get(3)?,
            cached: row.get(4)?,
            completion: row.get(5)?,
            reasoning: row.get(6)?,
        };
    }
    Ok(totals)
}

/// Takes a job out of the count of its ending. What it cost was paid, and stays.
pub(super) fn uncount(c: &Connection, job: JobId) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE usage SET jobs = jobs - 1
         WHERE (batch_id, deployment, model, hour, ending) =
               (SELECT batch_id, deployment, model, substr(finished_at, 1, 13), ending
                FROM outcomes WHERE job_id = ?1)",
    )?
    .execute([job.as_bytes()])?;
    Ok(())
}
