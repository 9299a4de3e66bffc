//! Ends of a worker: why it ended, or failed.

use std::fmt;

use super::stage::WorkerStage;
use domain::job::BatchId;
use queue::QueueError;
use store::StoreError;

/// Reason why a worker ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerExit {
    /// The queue is empty and everything is settled.
    Drained,
    /// Only jobs of these batches are left in the queue; they are paused.
    Paused { batches: Vec<BatchId> },
    /// Stopped on request.
    Stopped,
    /// No deployment will answer as configured.
    NoDeployment { why: String },
    /// No deployment could be connected to for too long.
    Unreachable { why: String },
}

impl fmt::Display for WorkerExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drained => f.write_str("all jobs are settled"),
            Self::Paused { .. } => f.write_str("only jobs of paused batches are left"),
            Self::Stopped => f.write_str("interrupted"),
            Self::NoDeployment { why } => write!(f, "no deployment answers: {why}"),
            Self::Unreachable { why } => write!(f, "no endpoint can be reached: {why}"),
        }
    }
}

/// Reason why a worker failed. All jobs that it held are redelivered.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stage waited for a queue or a store that was away for longer than the grace time.
    #[error("{}", .0.late_reason())]
    Late(WorkerStage),
    #[error("a task of the worker panicked; its message is above")]
    Panicked,
}
