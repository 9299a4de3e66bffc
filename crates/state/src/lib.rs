//! A state directory, and who works in it.

pub mod sqlite;

use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Why a state directory can't be had.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error("can't use the state directory {}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "the state directory {} is in use by {holder}: wait for it, or choose another with --state",
        path.display()
    )]
    Held { path: PathBuf, holder: String },
}

/// What those who share a directory are called to one who wants it alone.
const SHARERS: &str = "promptmill processes that share it (work, enqueue)";

/// A state directory held by this process, alone or beside others who share it, for as long as this
/// value lives. The system frees it when the process dies, however it dies.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Takes the directory, creating it where it is missing.
    ///
    /// # Errors
    /// Says who holds it, if somebody does.
    pub fn hold(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Io { path: path.to_owned(), source };
        let mut lock = open_lock(path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(path, &mut lock)),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        let now = jiff::Timestamp::now();
        let holder = format!("process {} since {now:.0}", std::process::id());
        sign(&mut lock, &holder).map_err(failed)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Takes a part in the directory beside others who share it. Whoever shares it respects the
    /// queue's locks; who holds it alone may take them over, so the two never meet.
    ///
    /// # Errors
    /// Says who holds it alone, if somebody does.
    pub fn share(path: &Path) -> Result<Self, StateError> {
        let failed = |source| StateError::Io { path: path.to_owned(), source };
        let mut lock = open_lock(path)?;
        match lock.try_lock_shared() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(held(path, &mut lock)),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // All who share write the same words, so it does not matter who is last.
        sign(&mut lock, SHARERS).map_err(failed)?;
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

fn held(path: &Path, lock: &mut File) -> StateError {
    let mut holder = String::new();
    match lock.read_to_string(&mut holder) {
        Ok(_) => StateError::Held { path: path.to_owned(), holder: holder.trim().to_owned() },
        Err(source) => StateError::Io { path: path.to_owned(), source },
    }
}

fn sign(lock: &mut File, who: &str) -> io::Result<()> {
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
        let held = StateDir::hold(dir.path()).unwrap();
        let refused = StateDir::hold(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("process {} since", std::process::id())), "{refused}");
        assert!(StateDir::share(dir.path()).is_err(), "who holds it alone shares with nobody");
        drop(held);
        assert!(StateDir::hold(dir.path()).is_ok());
    }

    #[test]
    fn workers_share_a_directory_and_keep_a_run_out() {
        let dir = tempfile::tempdir().unwrap();
        let one = StateDir::share(dir.path()).unwrap();
        let two = StateDir::share(dir.path()).unwrap();
        let refused = StateDir::hold(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("in use by promptmill processes that share it"), "{refused}");
        drop((one, two));
        assert!(StateDir::hold(dir.path()).is_ok());
    }
}
