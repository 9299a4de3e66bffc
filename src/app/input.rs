//! Input files: opened and read once, before anything is enqueued.

use std::path::{Path, PathBuf};

use intake::{CheckError, CheckReport, InputSource, InputSourceError, LineOptions};

/// Input files after the first pass over them.
pub struct InputFiles {
    pub sources: Vec<InputSource>,
    pub options: LineOptions,
    pub report: CheckReport,
}

/// Reason why the input could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    #[error(transparent)]
    Source(#[from] InputSourceError),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error("the task that checks the input panicked; its message is above")]
    Panicked,
}

impl InputFiles {
    /// Opens the files and checks every line. Standard input is copied to `scratch`.
    ///
    /// # Errors
    /// If a file can't be read; bad lines are in the report.
    pub async fn check(
        paths: &[PathBuf],
        options: LineOptions,
        scratch: &Path,
    ) -> Result<Self, InputError> {
        let (paths, scratch) = (paths.to_owned(), scratch.to_owned());
        let check = move || {
            let open = |path: &PathBuf| InputSource::open(path, &scratch);
            let sources = paths.iter().map(open).collect::<Result<Vec<_>, _>>()?;
            let report = intake::check(&sources, &options, scratch)?;
            Ok(Self { sources, options, report })
        };
        tokio::task::spawn_blocking(check).await.unwrap_or(Err(InputError::Panicked))
    }
}
