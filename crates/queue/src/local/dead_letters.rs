//! The `dead_letters` table: jobs enter with a reason and leave again as new jobs.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::rows::{insert, job_columns, read_job, row_of};
use crate::{DeadLetter, DeadLetterReason, LockToken};
use domain::job::{Amendment, Job, JobId};
use state::sqlite::{parsed, text};

pub(super) fn insert_dead_letter(
    c: &Connection,
    lock: LockToken,
    reason: &DeadLetterReason,
) -> rusqlite::Result<()> {
    let mut find = c.prepare_cached(concat!(
        "SELECT seq, delivery_count, ",
        job_columns!(),
        " FROM queue WHERE seq = ?1 AND lock = ?2"
    ))?;
    let held = find.query_row(row_of(lock), |row| Ok((row.get::<_, u32>(1)?, read_job(row)?)));
    let Some((delivery_count, job)) = held.optional()? else { return Ok(()) };
    let message =
        job.to_message().map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    c.prepare_cached(
        "INSERT INTO dead_letters (job_id, message, reason, description, delivery_count, at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?
    .execute(params![
        job.id.as_bytes(),
        text(&message)?,
        reason.reason,
        reason.description,
        delivery_count,
        Timestamp::now().to_string(),
    ])?;
    Ok(())
}

pub(super) fn list(c: &Connection, from: i64, max: usize) -> rusqlite::Result<Vec<DeadLetter>> {
    let sql = "SELECT seq, job_id, message, reason, description, delivery_count, at
               FROM dead_letters WHERE seq >= ?1 ORDER BY seq LIMIT ?2";
    c.prepare_cached(sql)?.query_map(params![from, max], read_dead_letter)?.collect()
}

/// Puts dead letters back as jobs. One whose job is in the queue already is only deleted.
pub(super) fn resubmit(
    c: &Connection,
    numbers: &[i64],
    amendment: &Amendment,
) -> rusqlite::Result<Vec<i64>> {
    let mut find = c.prepare_cached("SELECT message FROM dead_letters WHERE seq = ?1")?;
    let mut jobs = Vec::new();
    let mut done = Vec::new();
    for number in numbers {
        let message: Option<String> = find.query_row([number], |row| row.get(0)).optional()?;
        if let Some(mut job) = message.and_then(|text| Job::from_message(text.as_bytes()).ok()) {
            job.resubmit(amendment);
            jobs.push(job);
            done.push(*number);
        }
    }
    insert(c, &jobs)?;
    discard(c, &done)
}

pub(super) fn discard(c: &Connection, numbers: &[i64]) -> rusqlite::Result<Vec<i64>> {
    let mut delete = c.prepare_cached("DELETE FROM dead_letters WHERE seq = ?1")?;
    let mut done = Vec::with_capacity(numbers.len());
    for number in numbers {
        if delete.execute([number])? > 0 {
            done.push(*number);
        }
    }
    Ok(done)
}

fn read_dead_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    Ok(DeadLetter {
        number: row.get(0)?,
        job_id: Some(JobId::from_bytes(row.get(1)?)),
        message: row.get::<_, String>(2)?.into_bytes(),
        reason: DeadLetterReason { reason: row.get(3)?, description: row.get(4)? },
        delivery_count: row.get(5)?,
        at: parsed(row, 6, |at| at.parse().ok())?,
    })
}
