//! A state directory's one SQLite file, shared by the embedded queue and the embedded store.
//!
//! One thread owns the only writing connection. It takes every write that is waiting, runs them in
//! one transaction and answers after the commit, so that all waiting callers share the cost of
//! making things durable (group commit). Reads have their own connections: in WAL mode they never
//! wait for the writer. Its schema is that of `migrations`.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::types::Type;
use rusqlite::{Connection, OpenFlags, Row};
use tokio::sync::{mpsc, oneshot};

use super::migrations::{self, MigrationResult, OLDEST_VERSION, SCHEMA_VERSION};

/// Writes that may queue before callers block; each is a batch of rows.
const MAX_QUEUED_WRITES: usize = 64;

/// Longest wait for the write lock, which another process may hold for the length of a big commit.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// Reason why the state file can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SqliteError {
    #[error(
        "{} has schema {found}, which a newer promptmill made; this one knows {SCHEMA_VERSION}: \
         use that version, or choose another state directory with --state",
        path.display()
    )]
    Newer { path: PathBuf, found: i64 },
    #[error(
        "{} has schema {found}; files before schema {OLDEST_VERSION} can't be migrated: \
         finish it with the promptmill that made it, or choose another state directory with --state",
        path.display()
    )]
    TooOld { path: PathBuf, found: i64 },
    #[error("can't create the state directory {}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    /// Error of the database itself: full disk, locked for too long, corrupt.
    #[error("{}: {source}", path.display())]
    Sqlite { path: PathBuf, source: Arc<rusqlite::Error> },
    #[error("the database's writer has stopped")]
    Stopped,
}

impl SqliteError {
    /// Returns whether trying again later may help.
    pub fn is_transient(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
        matches!(
            self,
            Self::Sqlite { source, .. }
                if matches!(source.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked | DiskFull))
        )
    }

    /// Returns whether the disk or the file is at fault, so that neither waiting nor other settings
    /// help.
    pub fn is_disk_fault(&self) -> bool {
        use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, SystemIoFailure};
        matches!(
            self,
            Self::Sqlite { source, .. }
                if matches!(
                    source.sqlite_error_code(),
                    Some(DatabaseCorrupt | DiskFull | SystemIoFailure)
                )
        )
    }
}

type CommitCallback = Box<dyn FnOnce(Result<(), Arc<rusqlite::Error>>) + Send>;
/// Takes the connection with its transaction open, or the error that kept it from opening; returns
/// the commit callback, and the write's error if it failed.
type QueuedWrite = Box<
    dyn FnOnce(
            Result<&Connection, Arc<rusqlite::Error>>,
        ) -> (CommitCallback, Option<Arc<rusqlite::Error>>)
        + Send,
>;

/// Handle to the open file; clones share it. The writer thread ends with the last clone.
#[derive(Clone)]
pub struct Database {
    path: Arc<Path>,
    writes: mpsc::Sender<QueuedWrite>,
    idle_readers: Arc<Mutex<Vec<Connection>>>,
}

impl Database {
    /// Opens `promptmill.db` in the directory, creating both where they are missing.
    ///
    /// # Errors
    /// Names the file that can't be used, and why.
    pub fn open(directory: &Path) -> Result<Self, SqliteError> {
        std::fs::create_dir_all(directory)
            .map_err(|source| SqliteError::Directory { path: directory.to_owned(), source })?;
        let path: Arc<Path> = directory.join("promptmill.db").into();
        let connection = open_writer(&path)?;
        let (writes, waiting) = mpsc::channel(MAX_QUEUED_WRITES);
        std::thread::Builder::new()
            .name("sqlite-writer".into())
            .spawn(move || write_until_closed(&connection, waiting))
            .map_err(|source| SqliteError::Directory { path: path.to_path_buf(), source })?;
        Ok(Self { path, writes, idle_readers: Arc::default() })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs one write; when this returns `Ok`, it is on disk. A write that fails leaves no trace,
    /// and fails all writes that share its transaction. (Undoing one alone would take a savepoint,
    /// which copies every page that is touched.)
    ///
    /// # Errors
    /// SQLite's error.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, SqliteError> {
        let (answer, answered) = oneshot::channel();
        let write: QueuedWrite = Box::new(move |connection| {
            let done = connection.and_then(|c| work(c).map_err(Arc::new));
            let failed = done.as_ref().err().cloned();
            let finish: CommitCallback = Box::new(move |committed| {
                // The caller may have gone away; the write stands all the same.
                let _ = answer.send(committed.and(done));
            });
            (finish, failed)
        });
        self.writes.send(write).await.map_err(|_| SqliteError::Stopped)?;
        answered.await.map_err(|_| SqliteError::Stopped)?.map_err(|e| self.error(e))
    }

    /// Runs one read on its own connection, off the async threads.
    ///
    /// # Errors
    /// SQLite's error.
    pub async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, SqliteError> {
        let this = self.clone();
        tokio::task::spawn_blocking(move || {
            let reader = this.idle_readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let reader = match reader {
                Some(reader) => reader,
                None => open_reader(&this.path).map_err(|e| this.error(e.into()))?,
            };
            let result = work(&reader).map_err(|e| this.error(e.into()));
            this.idle_readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
            result
        })
        .await
        .map_err(|_| SqliteError::Stopped)?
    }

    fn error(&self, source: Arc<rusqlite::Error>) -> SqliteError {
        SqliteError::Sqlite { path: self.path.to_path_buf(), source }
    }
}

fn open_writer(path: &Path) -> Result<Connection, SqliteError> {
    let failed =
        |e: rusqlite::Error| SqliteError::Sqlite { path: path.to_owned(), source: e.into() };
    let mut connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    // FULL: an outcome that was reported as recorded survives a power cut, not only a crash.
    // Checkpoints are rare: a page of an index that changes with every commit is copied into the
    // database once for thousands of jobs. The file that grows meanwhile has 32 MiB.
    // Small temporary space goes to disk, so that sorting a large export takes no memory.
    let pragmas =
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -16384;
                   PRAGMA temp_store = FILE; PRAGMA journal_size_limit = 67108864;
                   PRAGMA wal_autocheckpoint = 8192;";
    connection.execute_batch(pragmas).map_err(failed)?;
    let path = path.to_owned();
    match migrations::migrate(&mut connection).map_err(failed)? {
        MigrationResult::Current => Ok(connection),
        MigrationResult::Newer { found } => Err(SqliteError::Newer { path, found }),
        MigrationResult::TooOld { found } => Err(SqliteError::TooOld { path, found }),
    }
}

fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Sorting a large export spills to disk, not into memory.
    connection.execute_batch("PRAGMA cache_size = -4096; PRAGMA temp_store = FILE;")?;
    Ok(connection)
}

fn write_until_closed(connection: &Connection, mut waiting: mpsc::Receiver<QueuedWrite>) {
    while let Some(first) = waiting.blocking_recv() {
        let begun = connection.execute_batch("BEGIN IMMEDIATE").map_err(Arc::new);
        let (finish, mut failed) = first(begun.map(|()| connection));
        let mut finishes = vec![finish];
        while failed.is_none()
            && finishes.len() < MAX_QUEUED_WRITES
            && let Ok(next) = waiting.try_recv()
        {
            let (finish, failure) = next(Ok(connection));
            finishes.push(finish);
            failed = failure;
        }
        let committed = match failed {
            None => connection.execute_batch("COMMIT").map_err(Arc::new),
            Some(error) => Err(error),
        };
        if committed.is_err() && !connection.is_autocommit() {
            // If even the rollback fails, the next BEGIN fails and reports it.
            let _ = connection.execute_batch("ROLLBACK");
        }
        for finish in finishes {
            finish(committed.clone());
        }
    }
}

/// Parses a text column into a type of ours; an unreadable value is the file's fault.
pub fn parsed<T>(
    row: &Row<'_>,
    column: usize,
    parse: impl FnOnce(&str) -> Option<T>,
) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    parse(text).ok_or_else(|| {
        let error = format!("'{text}' is not a value of this column").into();
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error)
    })
}

/// Returns JSON bytes as text that SQL tools can read.
pub fn text(bytes: &[u8]) -> rusqlite::Result<&str> {
    simdutf8::basic::from_utf8(bytes)
        .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}
