//! Versions of the state file's schema, and how an older file becomes a newer one in place.
//!
//! A change of the schema is one entry at the end of [`MIGRATIONS`], and nothing else: a new file
//! begins with schema 6 and goes the same way, so that both end alike. All entries that a file
//! lacks run in one transaction with the new version number; a process that is killed meanwhile
//! leaves the file as it was, and one that opens the file at the same time waits and finds it done.

use rusqlite::{Connection, TransactionBehavior};

/// Changes after schema [`OLDEST_VERSION`], each to the next version. An entry that has been
/// released is never changed.
///
/// A column that older rows lack needs a `DEFAULT`, or must allow NULL.
const MIGRATIONS: &[&str] = &[
    // 7: how an answer ended, and answers of which not all tokens were reported.
    "ALTER TABLE outcomes ADD COLUMN finish TEXT;
     ALTER TABLE outcomes ADD COLUMN unreported INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE withdrawn ADD COLUMN unreported INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE usage ADD COLUMN unreported INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE usage ADD COLUMN truncated INTEGER NOT NULL DEFAULT 0;
     ALTER TABLE usage ADD COLUMN filtered INTEGER NOT NULL DEFAULT 0;",
    // 8: the change that an answer took to be kept.
    "ALTER TABLE outcomes ADD COLUMN flaw TEXT;",
    // 9: who sends a batch's jobs, and records that expire.
    "ALTER TABLE batches ADD COLUMN senders TEXT NOT NULL DEFAULT 'one';
     ALTER TABLE notes ADD COLUMN expires_at INTEGER;
     CREATE INDEX notes_expiry ON notes (expires_at) WHERE expires_at IS NOT NULL;",
];

/// Version of the oldest schema that is opened, and with which a new file begins.
pub(crate) const OLDEST_VERSION: i64 = 6;
const OLDEST_SCHEMA: &str = include_str!("schema/6.sql");

/// Version of the schema that this program reads and writes.
pub(crate) const SCHEMA_VERSION: i64 = OLDEST_VERSION + MIGRATIONS.len() as i64;

/// Result of bringing a file to [`SCHEMA_VERSION`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MigrationResult {
    /// The file has the schema of this program: it is new, it was current, or it was migrated.
    Current,
    /// A newer program made the file, which is unchanged.
    Newer { found: i64 },
    /// The file is from before [`OLDEST_VERSION`], and unchanged.
    TooOld { found: i64 },
}

/// Creates the schema in a new file, and migrates an older one.
///
/// # Errors
/// SQLite's error; the file is then as it was.
pub(crate) fn migrate(connection: &mut Connection) -> rusqlite::Result<MigrationResult> {
    apply(connection, MIGRATIONS)
}

fn apply(connection: &mut Connection, migrations: &[&str]) -> rusqlite::Result<MigrationResult> {
    // Immediate: of several processes that open an old file, one migrates and the others wait.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let found = transaction.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let newest = OLDEST_VERSION + migrations.len() as i64;
    let from = match found {
        0 => {
            transaction.execute_batch(OLDEST_SCHEMA)?;
            OLDEST_VERSION
        }
        found if found > newest => return Ok(MigrationResult::Newer { found }),
        found if found < OLDEST_VERSION => return Ok(MigrationResult::TooOld { found }),
        found => found,
    };
    for migration in migrations.iter().skip((from - OLDEST_VERSION) as usize) {
        transaction.execute_batch(migration)?;
    }
    if found != newest {
        transaction.pragma_update(None, "user_version", newest)?;
        transaction.commit()?;
        if found != 0 {
            tracing::info!(from = found, to = newest, "the state file's schema was migrated");
        }
    }
    Ok(MigrationResult::Current)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    /// Stands for the state file in the child process of the kill test.
    const FILE_VARIABLE: &str = "PROMPTMILL_TEST_MIGRATED_FILE";

    const ADD_COLUMN: &str = "ALTER TABLE outcomes ADD COLUMN finish TEXT;
                              UPDATE outcomes SET finish = 'stop' WHERE ending = 'succeeded';";
    /// Takes minutes: whoever runs it is killed in the middle of its transaction.
    const ENDLESS: &str = "CREATE TABLE endless AS WITH RECURSIVE n (i) AS
                           (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 900000000) SELECT count(*) FROM n;";

    /// A file of schema 6 with two batches.
    fn old_file(path: &Path) -> Connection {
        let mut c = Connection::open(path).unwrap();
        c.execute_batch("PRAGMA journal_mode = WAL;").unwrap();
        apply(&mut c, &[]).unwrap();
        c.execute_batch(
            "INSERT INTO batches (batch_id, state, jobs, prompt_tokens, created_at)
             VALUES ('night', 'done', 4, 44, '2026-12-01T00:39:29Z'),
                    ('later', 'paused', 3, 33, '2026-12-01T00:39:59Z');",
        )
        .unwrap();
        c
    }

    fn version(c: &Connection) -> i64 {
        c.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    }

    fn schema(c: &Connection) -> Vec<String> {
        let mut all = c.prepare("SELECT sql FROM sqlite_schema ORDER BY name").unwrap();
        let all = all.query_map([], |row| row.get::<_, Option<String>>(0)).unwrap();
        all.map(|sql| sql.unwrap().unwrap_or_default()).collect()
    }

    fn batches(c: &Connection) -> u64 {
        c.query_row("SELECT count(*) FROM batches", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn an_old_file_and_a_new_one_end_with_the_same_schema() {
        let dir = tempfile::tempdir().unwrap();
        let migrations = [ADD_COLUMN, "CREATE TABLE more (n INTEGER);"];
        let mut old = old_file(&dir.path().join("old.db"));
        // In two steps, as by two releases.
        assert_eq!(apply(&mut old, &migrations[..1]).unwrap(), MigrationResult::Current);
        assert_eq!(apply(&mut old, &migrations).unwrap(), MigrationResult::Current);
        let mut new = Connection::open_in_memory().unwrap();
        apply(&mut new, &migrations).unwrap();
        assert_eq!((version(&old), version(&new)), (8, 8));
        assert_eq!(schema(&old), schema(&new));
        assert_eq!(batches(&old), 2);
        assert_eq!(apply(&mut old, &migrations).unwrap(), MigrationResult::Current, "once only");
    }

    #[test]
    fn a_migration_that_fails_leaves_the_file_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let mut c = old_file(&dir.path().join("old.db"));
        let before = schema(&c);
        apply(&mut c, &[ADD_COLUMN, "INSERT INTO nowhere VALUES (1);"]).unwrap_err();
        assert_eq!((version(&c), schema(&c), batches(&c)), (6, before, 2));
        apply(&mut c, &[ADD_COLUMN]).unwrap();
        assert_eq!((version(&c), batches(&c)), (7, 2));
    }

    #[test]
    fn a_file_of_another_time_is_refused_and_unchanged() {
        let mut c = Connection::open_in_memory().unwrap();
        apply(&mut c, &[ADD_COLUMN]).unwrap();
        let newer = apply(&mut c, &[]).unwrap();
        assert_eq!((newer, version(&c)), (MigrationResult::Newer { found: 7 }, 7));
        c.pragma_update(None, "user_version", 5).unwrap();
        assert_eq!(apply(&mut c, &[]).unwrap(), MigrationResult::TooOld { found: 5 });
    }

    #[test]
    fn a_process_that_is_killed_in_the_middle_loses_nothing() {
        if let Some(file) = std::env::var_os(FILE_VARIABLE) {
            let mut c = Connection::open(file).unwrap();
            apply(&mut c, &[ADD_COLUMN, ENDLESS]).unwrap();
            unreachable!("it is killed before");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.db");
        let mut c = old_file(&path);
        let before = schema(&c);
        let this_test = "migrations::tests::a_process_that_is_killed_in_the_middle_loses_nothing";
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", this_test])
            .env(FILE_VARIABLE, &path)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // While we can still write it has not begun; once it has, it takes minutes.
        c.busy_timeout(Duration::ZERO).unwrap();
        while c.execute_batch("BEGIN IMMEDIATE; ROLLBACK;").is_ok() {
            assert_eq!(child.try_wait().unwrap(), None, "it is still to come");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!((version(&c), schema(&c), batches(&c)), (6, before, 2));
        c.busy_timeout(Duration::from_secs(30)).unwrap();
        apply(&mut c, &[ADD_COLUMN]).unwrap();
        assert_eq!((version(&c), batches(&c)), (7, 2));
    }

    #[test]
    fn of_many_who_open_an_old_file_one_migrates_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("old.db");
        drop(old_file(&path));
        let open = || {
            let mut c = Connection::open(&path).unwrap();
            c.busy_timeout(Duration::from_secs(60)).unwrap();
            // It would fail a second time: there is such a column.
            apply(&mut c, &[ADD_COLUMN]).unwrap()
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            for one in all {
                assert_eq!(one.join().unwrap(), MigrationResult::Current);
            }
        });
    }
}
