//! Notices until they are heard, and the names of those that were: the `notices` table.

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};
use uuid::Uuid;

use crate::notice::Notice;
use crate::sqlite::parsed;

pub(super) fn add(c: &Connection, notice: &Notice) -> rusqlite::Result<bool> {
    let sql = "INSERT OR IGNORE INTO notices (id, body, made_at, due, tries, heard)
               VALUES (?1, ?2, ?3, ?4, ?5, 0)";
    let (made_at, due) = (notice.made_at.as_millisecond(), notice.due.as_millisecond());
    let values = params![notice.id.to_string(), notice.body, made_at, due, notice.tries];
    Ok(c.execute(sql, values)? == 1)
}

pub(super) fn read(c: &Connection) -> rusqlite::Result<Vec<Notice>> {
    let sql = "SELECT id, body, made_at, due, tries FROM notices WHERE heard = 0";
    let time = |row: &Row<'_>, column| {
        let out_of_range = |e| rusqlite::Error::ToSqlConversionFailure(Box::new(e));
        Timestamp::from_millisecond(row.get(column)?).map_err(out_of_range)
    };
    let notice = |row: &Row<'_>| {
        Ok(Notice {
            id: parsed(row, 0, |id| id.parse().ok())?,
            body: row.get(1)?,
            made_at: time(row, 2)?,
            due: time(row, 3)?,
            tries: row.get(4)?,
        })
    };
    c.prepare_cached(sql)?.query_map([], notice)?.collect()
}

pub(super) fn put_off(
    c: &Connection,
    seen: &Notice,
    (due, tries): (Timestamp, u32),
) -> rusqlite::Result<bool> {
    let sql = "UPDATE notices SET due = ?2, tries = ?3
               WHERE id = ?1 AND heard = 0 AND due = ?4 AND tries = ?5";
    let (due, was_due) = (due.as_millisecond(), seen.due.as_millisecond());
    Ok(c.execute(sql, params![seen.id.to_string(), due, tries, was_due, seen.tries])? == 1)
}

pub(super) fn heard(c: &Connection, id: Uuid) -> rusqlite::Result<()> {
    c.execute("UPDATE notices SET heard = 1 WHERE id = ?1", [id.to_string()]).map(drop)
}
