//! The state directory and its lock file.

mod migrations;
pub mod sqlite;

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Reason why a state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("can't use the state directory {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the state directory {} is in use by {holder}: wait for it, or choose another with --state",
        path.display()
    )]
    InUse { path: PathBuf, holder: String },
}

/// Holder that the lock file names while the directory is shared.
const SHARED_HOLDER: &str = "promptmill processes that share it (work, enqueue)";

/// State directory locked by this process, exclusively or shared, for as long as this value lives.
/// The system frees it when the process dies, however it dies.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Locks the directory exclusively, creating it where it is missing.
    ///
    /// # Errors
    /// Names the holder if the directory is in use.
    pub fn lock_exclusive(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Io { path: path.to_owned(), source };
        let mut lock = open_lock(path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use_error(path, &mut lock)),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let now = jiff::Timestamp::now();
        let holder = format!("process {} since {now:.0}", std::process::id());
        write_holder(&mut lock, &holder).map_err(failed)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Locks the directory shared. Sharing processes respect the queue's locks; an exclusive holder
    /// may take these over, so the two never meet.
    ///
    /// # Errors
    /// Names the exclusive holder, if there is one.
    pub fn lock_shared(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Io { path: path.to_owned(), source };
        let mut lock = open_lock(path)?;
        match lock.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use_error(path, &mut lock)),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // All sharing processes write the same text, so it does not matter who writes last.
        write_holder(&mut lock, SHARED_HOLDER).map_err(failed)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open_lock(path: &Path) -> Result<File, StateError> {
    let failed = |source| StateError::Io { path: path.to_owned(), source };
    std::fs::create_dir_all(path).map_err(failed)?;
    let file = path.join("promptmill.lock");
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false).open(file).map_err(failed)
}

fn in_use_error(path: &Path, lock: &mut File) -> StateError {
    let mut holder = String::new();
    match lock.read_to_string(&mut holder) {
        Ok(_) => StateError::InUse { path: path.to_owned(), holder: holder.trim().to_owned() },
        Err(source) => StateError::Io { path: path.to_owned(), source },
    }
}

fn write_holder(lock: &mut File, who: &str) -> io::Result<()> {
    lock.set_len(0)?;
    lock.seek(SeekFrom::Start(0))?;
    writeln!(lock, "{who}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_holder_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let held = StateDir::lock_exclusive(dir.path()).unwrap();
        let refused = StateDir::lock_exclusive(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {} since", std::process::id())), "{refused}");
        assert!(
            StateDir::lock_shared(dir.path()).is_err(),
            "who holds it alone shares with nobody"
        );
        drop(held);
        assert!(StateDir::lock_exclusive(dir.path()).is_ok());
    }

    #[test]
    fn workers_share_a_directory_and_keep_a_run_out() {
        let dir = tempfile::tempdir().unwrap();
        let one = StateDir::lock_shared(dir.path()).unwrap();
        let two = StateDir::lock_shared(dir.path()).unwrap();
        let refused = StateDir::lock_exclusive(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("in use by promptmill processes that share it"), "{refused}");
        drop((one, two));
        assert!(StateDir::lock_exclusive(dir.path()).is_ok());
    }
}
