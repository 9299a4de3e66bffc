//! The `payloads` table: bodies of jobs that are too large for their queue.

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::LocalStore;
use crate::{PAYLOAD_TTL, PayloadStore, StoreError};

#[async_trait]
impl PayloadStore for LocalStore {
    async fn put_payload(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(move |c| put(c, &name, &bytes)).await
    }

    async fn get_payload(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let name = name.to_owned();
        self.read(move |c| get(c, &name)).await
    }

    async fn delete_payload(&self, name: &str) -> Result<(), StoreError> {
        let name = name.to_owned();
        self.write(move |c| delete(c, &name)).await
    }
}

fn put(c: &Connection, name: &str, bytes: &[u8]) -> rusqlite::Result<()> {
    let now = Timestamp::now();
    let mut forget = c.prepare_cached("DELETE FROM payloads WHERE stored_at < ?1")?;
    forget.execute([(now - PAYLOAD_TTL).as_millisecond()])?;
    c.prepare_cached(
        "INSERT OR REPLACE INTO payloads (name, stored_at, bytes) VALUES (?1, ?2, ?3)",
    )?
    .execute(params![name, now.as_millisecond(), bytes])?;
    Ok(())
}

fn get(c: &Connection, name: &str) -> rusqlite::Result<Option<Bytes>> {
    c.prepare_cached("SELECT bytes FROM payloads WHERE name = ?1")?
        .query_row([name], |row| row.get::<_, Vec<u8>>(0))
        .optional()
        .map(|bytes| bytes.map(Bytes::from))
}

fn delete(c: &Connection, name: &str) -> rusqlite::Result<()> {
    c.prepare_cached("DELETE FROM payloads WHERE name = ?1")?.execute([name])?;
    Ok(())
}
