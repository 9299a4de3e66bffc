//! State files of earlier versions: they are opened, migrated in place, and lose nothing.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::path::Path;
use std::time::Duration;

use futures_util::TryStreamExt;
use promptmill::job::BatchId;
use promptmill::outcome::OutcomeStatus;
use promptmill::queue::Queue;
use promptmill::queue::local::LocalQueue;
use promptmill::sqlite::Database;
use promptmill::store::local::LocalStore;
use promptmill::store::{
    BatchState, BatchStore, BudgetStore, KvStore, OutcomeReader, OutcomeStore, PayloadStore,
    SortOrder,
};
use rusqlite::Connection;
use rusqlite::types::Value;

/// A file as promptmill at 8da1890 made it: a batch that is done, one that is paused, one with dead
/// letters of which one was taken back, budgets, a payload, a heartbeat, a record.
const SCHEMA_6: &str = include_str!("../data/state-schema-6.sql");

fn file_of_schema_6(directory: &Path) -> Connection {
    let c = Connection::open(directory.join("promptmill.db")).unwrap();
    c.execute_batch(SCHEMA_6).unwrap();
    c.pragma_update(None, "user_version", 6).unwrap();
    c
}

/// Every row of every table, in the columns that the file had in the beginning.
fn rows(c: &Connection, columns: &[(String, String)]) -> Vec<(String, Vec<Vec<Value>>)> {
    let of_table = |(table, columns): &(String, String)| {
        let mut all = c.prepare(&format!("SELECT {columns} FROM {table} ORDER BY 1, 2")).unwrap();
        let width = all.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..width).map(|n| row.get(n)).collect();
        (table.clone(), all.query_map([], row).unwrap().map(Result::unwrap).collect())
    };
    columns.iter().map(of_table).collect()
}

fn tables_and_columns(c: &Connection) -> Vec<(String, String)> {
    let sql =
        "SELECT t.name, group_concat(c.name) FROM sqlite_schema t, pragma_table_info(t.name) c
               WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%' GROUP BY t.name";
    let mut all = c.prepare(sql).unwrap();
    let all = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    all.map(Result::unwrap).collect()
}

#[test]
fn every_row_of_a_file_of_schema_6_is_there_after_it_was_opened() {
    let dir = tempfile::tempdir().unwrap();
    let old = file_of_schema_6(dir.path());
    let columns = tables_and_columns(&old);
    assert_eq!(columns.len(), 11, "{columns:?}");
    let before = rows(&old, &columns);
    assert!(before.iter().all(|(_, rows)| !rows.is_empty()), "each table has rows");
    for _ in 0..2 {
        drop(Database::open(dir.path()).unwrap());
        assert_eq!(rows(&old, &columns), before);
    }
}

#[tokio::test]
async fn the_store_and_the_queue_of_schema_6_go_on_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    drop(file_of_schema_6(dir.path()));
    let database = Database::open(dir.path()).unwrap();
    let store = LocalStore::new(database.clone());
    let [night, broken, later] =
        ["night", "broken", "later"].map(|b| b.parse::<BatchId>().unwrap());

    let answers: Vec<_> =
        store.outcomes(&night, SortOrder::ByPosition).await.unwrap().try_collect().await.unwrap();
    let names: Vec<_> = answers.iter().map(|o| o.custom_id.as_str()).collect();
    assert_eq!(names, ["job-0", "job-1", "job-2", "job-3"]);
    assert!(answers.iter().all(|o| o.metadata.as_deref() == Some(r#"{"team": "東京"}"#)));
    let totals = store.totals(&night).await.unwrap();
    assert_eq!((totals.of(OutcomeStatus::Succeeded), totals.usage.total()), (4, 122));
    let dead = store.totals(&broken).await.unwrap();
    assert_eq!((dead.of(OutcomeStatus::Dead), dead.attempts), (2, 3), "one was taken back");
    let paid: Vec<_> = store.outcome_summaries(&broken).await.unwrap().try_collect().await.unwrap();
    assert_eq!(paid.len(), 3);

    let batch = store.batch(&later).await.unwrap().unwrap();
    assert_eq!((batch.state, batch.jobs, batch.inputs.len()), (BatchState::Paused, 3, 1));
    assert_eq!(batch.reason.as_deref(), Some("the quota is needed"));
    assert_eq!(store.budget(&later).await.unwrap().unwrap().allowed, 50_000_000_000);
    let ledger = store.get_kv("documents", "summarise").await.unwrap();
    assert_eq!(ledger.as_deref(), Some(r#"{"open":[]}"#));
    let payload = store.get_payload("00000000-0000-0000-0000-000000000001.aa").await.unwrap();
    assert_eq!(payload.as_deref(), Some(b"{}".as_slice()));

    let reopened = store.reopen_dead(&broken, &["job-0"]).await.unwrap();
    assert_eq!(reopened, [None]);
    assert_eq!(store.totals(&broken).await.unwrap().of(OutcomeStatus::Dead), 1);
    let queue = LocalQueue::new(database, Duration::from_secs(60));
    let jobs = queue.receive(10, Duration::ZERO).await.unwrap();
    let mut jobs: Vec<_> =
        jobs.iter().map(|d| (d.job.batch_id.as_str(), d.job.custom_id.as_str())).collect();
    jobs.sort_unstable();
    assert_eq!(
        jobs,
        [("broken", "job-1"), ("later", "job-0"), ("later", "job-1"), ("later", "job-2")]
    );
}
