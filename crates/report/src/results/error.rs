//! Failure to write results.

use std::io;
use std::path::PathBuf;

use store::StoreError;

/// Failure to write results.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    #[error("can't write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the outcome of '{custom_id}' can't be written as a line")]
    Body { custom_id: String, source: serde_json::Error },
}
