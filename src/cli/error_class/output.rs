//! Exit status of the errors of files that are written, and of faults of our own.

use std::path::Path;

use crate::cli::exit::{CommandError, ErrorClass, ExitStatus};
use report::results::ResultsError;

use ExitStatus::{Internal, Usage};

impl ErrorClass for ResultsError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Write { source, .. } => write_status(source),
            Self::Store(error) => error.status(),
            Self::Body { .. } => Internal,
        }
    }
}

/// Returns the status of a file that can't be written: a wrong path is the caller's, a full or
/// broken disk is not.
pub(super) fn write_status(error: &std::io::Error) -> ExitStatus {
    use std::io::ErrorKind::{
        IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
    };
    match error.kind() {
        NotFound | PermissionDenied | IsADirectory | NotADirectory | ReadOnlyFilesystem => Usage,
        _ => Internal,
    }
}

/// Names the file that can't be written.
pub(in crate::cli) fn write_error(path: &Path, error: std::io::Error) -> CommandError {
    let status = write_status(&error);
    let error = anyhow::Error::new(error).context(format!("can't write {}", path.display()));
    CommandError::new(status, error)
}

impl ErrorClass for serde_json::Error {
    fn status(&self) -> ExitStatus {
        Internal
    }
}

impl ErrorClass for tokio::task::JoinError {
    fn status(&self) -> ExitStatus {
        Internal
    }
}
