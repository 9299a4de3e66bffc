//! The `usage` table: tokens by batch, deployment, model, service tier, hour and ending; and the
//! `minutes` table: throughput.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::columns::ColumnReader;
use crate::{BatchTotals, DeploymentTotals, FinishCounts, MinuteTotals, RunningTotals};
use domain::job::BatchId;
use domain::outcome::{Outcome, OutcomeStatus, TokenUsage};

/// Batch, deployment, model, service tier, hour, ending.
type UsageKey<'a> = (&'a str, &'a str, &'a str, &'a str, String, OutcomeStatus);

/// What one transaction adds to a row of `usage`.
#[derive(Default)]
struct UsageSum {
    jobs: u64,
    attempts: u64,
    usage: TokenUsage,
    finishes: FinishCounts,
}

/// Rows that one transaction adds to both tables, one a key rather than one an outcome.
#[derive(Default)]
pub(super) struct UsageRows<'a> {
    sums: HashMap<UsageKey<'a>, UsageSum>,
    minutes: HashMap<(&'a str, i64), MinuteTotals>,
}

impl<'a> UsageRows<'a> {
    pub(super) fn add(&mut self, o: &'a Outcome) {
        // "2026-11-23T16" of an RFC 3339 time.
        let hour = o.finished_at.to_string()[..13].to_owned();
        let (batch, tier) = (o.batch_id.as_str(), o.service_tier.as_deref().unwrap_or_default());
        let key = (batch, o.deployment.as_str(), o.model.as_str(), tier, hour, o.ending);
        let sum = self.sums.entry(key).or_default();
        sum.jobs += 1;
        sum.attempts += u64::from(o.attempts);
        sum.usage += o.usage;
        sum.finishes += FinishCounts::of(Some(o.ending), o.finish);
        let (minute, ended) = MinuteTotals::of(o);
        *self.minutes.entry((batch, minute)).or_default() += ended;
    }

    pub(super) fn write(self, c: &Connection) -> rusqlite::Result<()> {
        let mut add = c.prepare_cached(
            "INSERT INTO usage (batch_id, deployment, model, service_tier, hour, ending, jobs, attempts,
                 prompt_tokens, cached_tokens, completion_tokens, reasoning_tokens,
                 unreported, truncated, filtered)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)
             ON CONFLICT DO UPDATE SET
                 jobs = jobs + excluded.jobs,
                 attempts = attempts + excluded.attempts,
                 prompt_tokens = prompt_tokens + excluded.prompt_tokens,
                 cached_tokens = cached_tokens + excluded.cached_tokens,
                 completion_tokens = completion_tokens + excluded.completion_tokens,
                 reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens,
                 unreported = unreported + excluded.unreported,
                 truncated = truncated + excluded.truncated,
                 filtered = filtered + excluded.filtered",
        )?;
        for ((batch, deployment, model, tier, hour, ending), sum) in self.sums {
            let u = sum.usage;
            add.execute(params![
                batch,
                deployment,
                model,
                tier,
                hour,
                ending.as_str(),
                sum.jobs,
                sum.attempts,
                u.prompt,
                u.cached,
                u.completion,
                u.reasoning,
                u.unreported,
                sum.finishes.truncated,
                sum.finishes.filtered
            ])?;
        }
        let mut add = c.prepare_cached(
            "INSERT INTO minutes (batch_id, minute, jobs, tokens, from_second)
             VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET
                 jobs = jobs + excluded.jobs,
                 tokens = tokens + excluded.tokens,
                 from_second = min(from_second, excluded.from_second)",
        )?;
        for ((batch, minute), m) in self.minutes {
            add.execute(params![batch, minute, m.jobs, m.tokens, m.from_second])?;
        }
        Ok(())
    }
}

pub(super) fn totals(c: &Connection, batch: &BatchId) -> rusqlite::Result<BatchTotals> {
    Ok(RunningTotals { sums: sums(c, batch)?, ..RunningTotals::default() }.totals())
}

pub(super) fn running(
    c: &Connection,
    batch: &BatchId,
    since: Timestamp,
) -> rusqlite::Result<RunningTotals> {
    let mut select = c.prepare_cached(
        "SELECT minute, jobs, tokens, from_second FROM minutes WHERE batch_id = ?1 AND minute >= ?2",
    )?;
    let minute = |row: &Row<'_>| {
        let minute =
            MinuteTotals { jobs: row.get(1)?, tokens: row.get(2)?, from_second: row.get(3)? };
        Ok((row.get(0)?, minute))
    };
    let minutes =
        select.query_map(params![batch.as_str(), since.as_second().div_euclid(60)], minute)?;
    Ok(RunningTotals { minutes: minutes.collect::<rusqlite::Result<_>>()?, sums: sums(c, batch)? })
}

fn sums(c: &Connection, batch: &BatchId) -> rusqlite::Result<Vec<DeploymentTotals>> {
    let mut select = c.prepare_cached(
        "SELECT deployment, model, service_tier, ending, sum(jobs), sum(attempts),
                sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens),
                sum(reasoning_tokens), sum(unreported), sum(truncated), sum(filtered)
         FROM usage WHERE batch_id = ?1 GROUP BY deployment, model, service_tier, ending
         ORDER BY deployment, model, service_tier",
    )?;
    let mut sums: Vec<DeploymentTotals> = Vec::new();
    let mut rows = select.query([batch.as_str()])?;
    while let Some(row) = rows.next()? {
        let next = read_sum(row)?;
        match sums.last_mut() {
            Some(last) if is_same(last, &next) => last.totals += &next.totals,
            _ => sums.push(next),
        }
    }
    Ok(sums)
}

/// Reads the sums of one ending.
fn read_sum(row: &Row<'_>) -> rusqlite::Result<DeploymentTotals> {
    let mut columns = ColumnReader::new(row);
    let (deployment, model) = (columns.get()?, columns.get()?);
    let service_tier = Some(columns.get::<Box<str>>()?).filter(|tier| !tier.is_empty());
    let ending = columns.parse(OutcomeStatus::from_name)?;
    let jobs: u64 = columns.get()?;
    // In the order of the columns: struct fields are evaluated as they are written.
    let mut totals = BatchTotals {
        attempts: columns.get()?,
        usage: columns.usage()?,
        finishes: FinishCounts { truncated: columns.get()?, filtered: columns.get()? },
        endings: BTreeMap::new(),
    };
    // No job is left where all with this ending were withdrawn; their cost is.
    if jobs > 0 {
        totals.endings.insert(ending, jobs);
    }
    Ok(DeploymentTotals { deployment, model, service_tier, totals })
}

fn is_same(one: &DeploymentTotals, other: &DeploymentTotals) -> bool {
    let key = |sum: &DeploymentTotals| {
        (sum.deployment.clone(), sum.model.clone(), sum.service_tier.clone())
    };
    key(one) == key(other)
}

/// Subtracts a job from the count of its ending. Its cost was paid, and stays.
pub(super) fn subtract_job(c: &Connection, job: [&str; 2]) -> rusqlite::Result<()> {
    c.prepare_cached(
        "UPDATE usage SET jobs = jobs - 1
         WHERE (batch_id, deployment, model, service_tier, hour, ending) =
               (SELECT batch_id, deployment, model, coalesce(service_tier, ''),
                       substr(finished_at, 1, 13), ending
                FROM outcomes WHERE batch_id = ?1 AND custom_id = ?2)",
    )?
    .execute(job)?;
    Ok(())
}
