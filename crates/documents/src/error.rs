//! Errors of a night: while its documents are collected, and while its requests run.

use super::source::DocumentSourceError;
use super::template::TemplateError;
use intake::EnqueueError;
use queue::QueueError;
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

impl NightRunError {
    /// Returns true if waiting may help. Every step of a night can be repeated.
    pub(super) fn is_transient(&self) -> bool {
        let of_store = |error: &StoreError| matches!(error, StoreError::Unavailable(_));
        match self {
            Self::Store(error) | Self::Gather(CollectError::Store(error)) => of_store(error),
            Self::Enqueue(EnqueueError::Store(error)) => of_store(error),
            Self::Enqueue(EnqueueError::Queue(error)) => {
                matches!(error, QueueError::Unavailable(_))
            }
            Self::Enqueue(_)
            | Self::Gather(_)
            | Self::Template(_)
            | Self::Scratch(_)
            | Self::Json(_) => false,
        }
    }
}
