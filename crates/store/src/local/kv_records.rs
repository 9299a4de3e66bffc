//! Key-value records, which are neither batch nor outcome: the `notes` table.

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::LocalStore;
use crate::{KvRecord, KvStore, StoreError};

#[async_trait]
impl KvStore for LocalStore {
    async fn put_kv(&self, note: &KvRecord, was: Option<&str>) -> Result<bool, StoreError> {
        let (note, was) = (note.clone(), was.map(str::to_owned));
        self.write(move |c| put(c, &note, was.as_deref())).await
    }

    async fn get_kv(&self, kind: &str, id: &str) -> Result<Option<String>, StoreError> {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        self.read(move |c| get(c, &kind, &id)).await
    }

    async fn list_kv(&self, kind: &str) -> Result<Vec<KvRecord>, StoreError> {
        let kind = kind.to_owned();
        self.read(move |c| all(c, &kind)).await
    }

    async fn delete_kv(&self, kind: &str, id: &str) -> Result<(), StoreError> {
        let (kind, id) = (kind.to_owned(), id.to_owned());
        self.write(move |c| remove(c, &kind, &id)).await
    }
}

fn put(c: &Connection, note: &KvRecord, was: Option<&str>) -> rusqlite::Result<bool> {
    let now = Timestamp::now();
    let expires_at = note.ttl.map(|ttl| (now + ttl).as_second());
    if expires_at.is_some() {
        c.prepare_cached("DELETE FROM notes WHERE expires_at < ?1")?.execute([now.as_second()])?;
    }
    let sql = match was {
        None => "INSERT OR IGNORE INTO notes (kind, id, json, expires_at) VALUES (?1, ?2, ?3, ?4)",
        Some(_) => {
            "UPDATE notes SET json = ?3, expires_at = ?4
             WHERE kind = ?1 AND id = ?2 AND json = ?5"
        }
    };
    let mut put = c.prepare_cached(sql)?;
    let written = match was {
        None => put.execute(params![note.kind, note.id, note.json, expires_at])?,
        Some(was) => put.execute(params![note.kind, note.id, note.json, expires_at, was])?,
    };
    Ok(written == 1)
}

fn get(c: &Connection, kind: &str, id: &str) -> rusqlite::Result<Option<String>> {
    c.prepare_cached("SELECT json FROM notes WHERE kind = ?1 AND id = ?2")?
        .query_row([kind, id], |row| row.get(0))
        .optional()
}

fn all(c: &Connection, kind: &str) -> rusqlite::Result<Vec<KvRecord>> {
    let mut select = c.prepare_cached("SELECT kind, id, json FROM notes WHERE kind = ?1")?;
    let note = |row: &rusqlite::Row<'_>| {
        Ok(KvRecord { kind: row.get(0)?, id: row.get(1)?, json: row.get(2)?, ttl: None })
    };
    select.query_map([kind], note)?.collect()
}

fn remove(c: &Connection, kind: &str, id: &str) -> rusqlite::Result<()> {
    c.execute("DELETE FROM notes WHERE kind = ?1 AND id = ?2", [kind, id]).map(drop)
}
