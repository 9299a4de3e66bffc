//! Key-value records, which are neither batch nor outcome: the `notes` table.

use rusqlite::{Connection, OptionalExtension, params};

use crate::KvRecord;

pub(super) fn put(c: &Connection, note: &KvRecord, was: Option<&str>) -> rusqlite::Result<bool> {
    let sql = match was {
        None => "INSERT OR IGNORE INTO notes (kind, id, json) VALUES (?1, ?2, ?3)",
        Some(_) => "UPDATE notes SET json = ?3 WHERE kind = ?1 AND id = ?2 AND json = ?4",
    };
    let mut put = c.prepare_cached(sql)?;
    let written = match was {
        None => put.execute(params![note.kind, note.id, note.json])?,
        Some(was) => put.execute(params![note.kind, note.id, note.json, was])?,
    };
    Ok(written == 1)
}

pub(super) fn get(c: &Connection, kind: &str, id: &str) -> rusqlite::Result<Option<String>> {
    c.prepare_cached("SELECT json FROM notes WHERE kind = ?1 AND id = ?2")?
        .query_row([kind, id], |row| row.get(0))
        .optional()
}

pub(super) fn all(c: &Connection, kind: &str) -> rusqlite::Result<Vec<KvRecord>> {
    let mut select = c.prepare_cached("SELECT kind, id, json FROM notes WHERE kind = ?1")?;
    let note = |row: &rusqlite::Row<'_>| {
        Ok(KvRecord { kind: row.get(0)?, id: row.get(1)?, json: row.get(2)? })
    };
    select.query_map([kind], note)?.collect()
}

pub(super) fn remove(c: &Connection, kind: &str, id: &str) -> rusqlite::Result<()> {
    c.execute("DELETE FROM notes WHERE kind = ?1 AND id = ?2", [kind, id]).map(drop)
}
