//! A state directory, and who works in it.

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

/// A state directory held by this process alone, for as long as this value lives. The system frees
/// it when the process dies, however it dies.
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
        std::fs::create_dir_all(path).map_err(failed)?;
        let file = path.join("promptmill.lock");
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(file)
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                lock.read_to_string(&mut holder).map_err(failed)?;
                let holder = holder.trim().to_owned();
                return Err(StateError::Held { path: path.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        lock.set_len(0).map_err(failed)?;
        lock.seek(SeekFrom::Start(0)).map_err(failed)?;
        let now = jiff::Timestamp::now();
        writeln!(lock, "process {} since {now:.0}", std::process::id()).map_err(failed)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
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
        drop(held);
        assert!(StateDir::hold(dir.path()).is_ok());
    }
}
