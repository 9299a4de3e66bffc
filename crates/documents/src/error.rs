//! Errors of a night: while its documents are collected, and while its requests run.

use super::source::DocumentSourceError;
use super::template::TemplateError;
use intake::EnqueueError;
use store::StoreError;

/// Reason why no requests can be made of the documents.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    #[error(transparent)]
    Source(#[from] DocumentSourceError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("can't write the file of requests: {0}")]
    RequestsFile(#[from] std::io::Error),
    #[error("a task that reads a document panicked; its message is above")]
    Panicked,
}

/// Reason why a night could not go on. Recorded outcomes stay; the next start resumes.
#[derive(Debug, thiserror::Error)]
pub enum NightRunError {
    #[error(transparent)]
    Gather(#[from] CollectError),
    #[error(transparent)]
    Enqueue(#[from] EnqueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("can't read the file of requests: {0}")]
    Scratch(#[from] std::io::Error),
    #[error("a line in the file of requests is not JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl CollectError {
    /// Returns whether the same step may succeed later.
    fn is_transient(&self) -> bool {
        match self {
            Self::Source(error) => error.is_transient(),
            Self::Store(error) => error.is_transient(),
            Self::Template(_) | Self::RequestsFile(_) | Self::Panicked => false,
        }
    }
}

impl NightRunError {
    /// Returns whether the same step may succeed later. Every step of a night can be repeated.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Gather(error) => error.is_transient(),
            Self::Enqueue(error) => error.is_transient(),
            Self::Store(error) => error.is_transient(),
            Self::Template(_) | Self::Scratch(_) | Self::Json(_) => false,
        }
    }
}
