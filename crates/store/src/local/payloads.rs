//! The `payloads` table: bodies of jobs that are too large for their queue.

use bytes::Bytes;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use crate::PAYLOAD_TTL;

pub(super) fn put(c: &Connection, name: &str, bytes: &[u8]) -> rusqlite::Result<()> {
    let now = Timestamp::now();
    let mut forget = c.prepare_cached("DELETE FROM payloads WHERE stored_at < ?1")?;
    forget.execute([(now - PAYLOAD_TTL).as_millisecond()])?;
    c.prepare_cached("INSERT OR REPLACE INTO payloads VALUES (?1, ?2, ?3)")?.execute(params![
        name,
        now.as_millisecond(),
        bytes
    ])?;
    Ok(())
}

pub(super) fn get(c: &Connection, name: &str) -> rusqlite::Result<Option<Bytes>> {
    c.prepare_cached("SELECT bytes FROM payloads WHERE name = ?1")?
        .query_row([name], |row| row.get::<_, Vec<u8>>(0))
        .optional()
        .map(|bytes| bytes.map(Bytes::from))
}

pub(super) fn delete(c: &Connection, name: &str) -> rusqlite::Result<()> {
    c.prepare_cached("DELETE FROM payloads WHERE name = ?1")?.execute([name])?;
    Ok(())
}
