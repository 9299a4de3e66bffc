//! Peeking at jobs without locking them: exact, since all are rows.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, named_params};

use super::rows::{job_columns, read_job};
use crate::QueueDepth;
use crate::peek::{PeekFilter, PeekResult, PeekedJob, QueuePosition};
use domain::job::{BatchId, JobId};

pub(super) fn peek(
    c: &Connection,
    sought: &PeekFilter,
    now: Timestamp,
) -> rusqlite::Result<PeekResult> {
    let mut sight = PeekResult::default();
    for job in &sought.jobs {
        sight.jobs.extend(peek_job(c, *job, now)?);
    }
    if let Some(batch) = &sought.batch {
        sight.batch = depth(c, Some(batch), now)?;
    }
    Ok(sight)
}

/// Counts the rows, of one batch or of all.
pub(super) fn depth(
    c: &Connection,
    only: Option<&BatchId>,
    now: Timestamp,
) -> rusqlite::Result<QueueDepth> {
    let only = only.map(BatchId::as_str);
    let sql = "SELECT count(*) FILTER (WHERE available_at <= :now),
                      count(*) FILTER (WHERE available_at > :now AND lock IS NOT NULL),
                      count(*) FILTER (WHERE available_at > :now AND lock IS NULL)
               FROM queue WHERE :only IS NULL OR batch_id = :only";
    let now = now.as_millisecond();
    c.query_row(sql, named_params! {":now": now, ":only": only}, |row| {
        Ok(QueueDepth {
            active: row.get(0)?,
            locked: row.get(1)?,
            scheduled: row.get(2)?,
            dead_letters: 0,
        })
    })
}

fn peek_job(c: &Connection, id: JobId, now: Timestamp) -> rusqlite::Result<Option<PeekedJob>> {
    let sql = concat!(
        "SELECT seq, delivery_count, ",
        job_columns!(),
        ", available_at, lock IS NOT NULL FROM queue WHERE job_id = ?1"
    );
    let found = c.prepare_cached(sql)?.query_row([id.as_bytes()], |row| {
        let (seq, deliveries): (i64, u32) = (row.get(0)?, row.get(1)?);
        let (at, is_locked): (i64, bool) = (row.get(18)?, row.get(19)?);
        Ok((seq, deliveries, read_job(row)?, at, is_locked))
    });
    let Some((seq, deliveries, job, at, is_locked)) = found.optional()? else { return Ok(None) };
    let until = Timestamp::from_millisecond(at).unwrap_or(now);
    let place = match (until > now, is_locked) {
        (true, true) => QueuePosition::Locked { until },
        (true, false) => QueuePosition::Scheduled { until },
        (false, _) => QueuePosition::Ready { ahead: ahead(c, (at, job.priority, seq), now)? },
    };
    Ok(Some(PeekedJob::new(job, deliveries, place)))
}

/// Counts the rows that are handed out before this one.
fn ahead(c: &Connection, row: (i64, i32, i64), now: Timestamp) -> rusqlite::Result<u64> {
    let sql = "SELECT count(*) FROM queue WHERE available_at <= :now AND (available_at < :at
               OR available_at = :at AND (priority > :priority
                                          OR priority = :priority AND seq < :seq))";
    let (at, priority, seq) = row;
    let row = named_params! {
        ":now": now.as_millisecond(), ":at": at, ":priority": priority, ":seq": seq,
    };
    c.query_row(sql, row, |row| row.get(0))
}
