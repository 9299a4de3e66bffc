//! Heartbeats by which worker instances share quotas: the `shares` table.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, Row, params};
use serde::Serialize;
use uuid::Uuid;

use super::LocalStore;
use crate::{HEARTBEAT_TTL, StoreError, WorkerRegistry};
use domain::heartbeat::Heartbeat;
use state::sqlite::parsed;

const TTL_MS: i64 = HEARTBEAT_TTL.as_millis() as i64;

#[async_trait]
impl WorkerRegistry for LocalStore {
    async fn put_heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError> {
        let word = heartbeat.clone();
        self.write(move |c| put(c, &word)).await
    }

    async fn heartbeats(&self) -> Result<Vec<Heartbeat>, StoreError> {
        self.read(read).await
    }

    async fn delete_heartbeat(&self, instance: Uuid) -> Result<(), StoreError> {
        self.write(move |c| remove(c, instance)).await
    }
}

fn put(c: &Connection, heartbeat: &Heartbeat) -> rusqlite::Result<()> {
    let now = Timestamp::now().as_millisecond();
    c.prepare_cached("DELETE FROM shares WHERE updated_at < ?1")?.execute([now - TTL_MS])?;
    c.prepare_cached(
        "INSERT OR REPLACE INTO shares (instance, beat, parts, about, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        heartbeat.instance.to_string(),
        heartbeat.sequence,
        json(&heartbeat.quota_claims)?,
        json(&heartbeat.status)?,
        now
    ])?;
    Ok(())
}

fn read(c: &Connection) -> rusqlite::Result<Vec<Heartbeat>> {
    let sql = "SELECT instance, beat, parts, about FROM shares WHERE updated_at >= ?1";
    let mut select = c.prepare_cached(sql)?;
    let heartbeat = |row: &Row<'_>| {
        Ok(Heartbeat {
            instance: parsed(row, 0, |id| id.parse().ok())?,
            sequence: row.get(1)?,
            quota_claims: parsed(row, 2, |json| serde_json::from_str(json).ok())?,
            status: parsed(row, 3, |json| serde_json::from_str(json).ok())?,
        })
    };
    let oldest = Timestamp::now().as_millisecond() - TTL_MS;
    select.query_map([oldest], heartbeat)?.collect()
}

fn remove(c: &Connection, instance: Uuid) -> rusqlite::Result<()> {
    c.execute("DELETE FROM shares WHERE instance = ?1", [instance.to_string()]).map(drop)
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn words_that_were_not_renewed_for_long_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let database = state::sqlite::Database::open(directory.path()).unwrap();
        let word = |instance| Heartbeat {
            instance: Uuid::from_u128(instance),
            sequence: 1,
            ..Heartbeat::default()
        };
        let (dead, alive) = (word(1), word(2));
        database.write(move |c| put(c, &dead)).await.unwrap();
        let age = move |c: &Connection| {
            c.execute("UPDATE shares SET updated_at = updated_at - ?1", [TTL_MS + 1_000])
        };
        database.write(age).await.unwrap();
        assert_eq!(database.read(read).await.unwrap(), []);
        let said = alive.clone();
        database.write(move |c| put(c, &said)).await.unwrap();
        assert_eq!(database.read(read).await.unwrap(), [alive]);
        let count = |c: &Connection| c.query_row("SELECT count(*) FROM shares", [], |r| r.get(0));
        let rows: u64 = database.read(count).await.unwrap();
        assert_eq!(rows, 1, "they are cleared up when somebody writes");
    }
}
