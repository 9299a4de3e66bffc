//! The `batches` table.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{Batch, BatchState};
use domain::job::BatchId;
use state::sqlite::parsed;

const BATCHES: &str =
    "SELECT batch_id, state, jobs, prompt_tokens, created_at, inputs, reason FROM batches";

/// Creates or overwrites a batch; the state and reason of an existing one stay.
pub(super) fn put(c: &Connection, batch: &Batch) -> rusqlite::Result<()> {
    let inputs = serde_json::to_string(&batch.inputs)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))?;
    c.prepare_cached(
        "INSERT INTO batches (batch_id, state, jobs, prompt_tokens, created_at, inputs, reason)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (batch_id) DO UPDATE SET
             jobs = excluded.jobs, prompt_tokens = excluded.prompt_tokens,
             created_at = excluded.created_at, inputs = excluded.inputs",
    )?
    .execute(params![
        batch.id.as_str(),
        batch.state.as_str(),
        batch.jobs,
        batch.prompt_tokens,
        batch.created_at.to_string(),
        inputs,
        batch.reason,
    ])?;
    Ok(())
}

/// Must run in a transaction that no other write can interleave with, as all writes do.
pub(super) fn change_state(
    c: &Connection,
    id: &BatchId,
    from: &[BatchState],
    to: BatchState,
    reason: Option<&str>,
) -> rusqlite::Result<Option<Batch>> {
    let Some(batch) = find(c, id)? else { return Ok(None) };
    if !from.contains(&batch.state) {
        return Ok(Some(batch));
    }
    c.prepare_cached("UPDATE batches SET state = ?2, reason = ?3 WHERE batch_id = ?1")?
        .execute(params![id.as_str(), to.as_str(), reason])?;
    Ok(Some(Batch { state: to, reason: reason.map(str::to_owned), ..batch }))
}

pub(super) fn find(c: &Connection, id: &BatchId) -> rusqlite::Result<Option<Batch>> {
    let sql = format!("{BATCHES} WHERE batch_id = ?1");
    c.prepare_cached(&sql)?.query_row([id.as_str()], read).optional()
}

pub(super) fn list(c: &Connection) -> rusqlite::Result<Vec<Batch>> {
    c.prepare_cached(BATCHES)?.query_map([], read)?.collect()
}

fn read(row: &Row<'_>) -> rusqlite::Result<Batch> {
    Ok(Batch {
        id: parsed(row, 0, |name| name.parse().ok())?,
        state: parsed(row, 1, BatchState::from_name)?,
        jobs: row.get(2)?,
        prompt_tokens: row.get(3)?,
        created_at: parsed(row, 4, |at: &str| at.parse::<Timestamp>().ok())?,
        inputs: parsed(row, 5, |inputs| serde_json::from_str(inputs).ok())?,
        reason: row.get(6)?,
    })
}
