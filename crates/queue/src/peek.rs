//! Peeking at jobs in a queue without locking them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use super::QueueDepth;
use domain::job::{BatchId, Job, JobId};

/// Jobs and batch to peek for.
#[derive(Debug, Clone, Default)]
pub struct PeekFilter {
    pub jobs: BTreeSet<JobId>,
    pub batch: Option<BatchId>,
}

/// Result of one peek.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PeekResult {
    /// The jobs that were found; one of them twice, if there are two messages of it.
    pub jobs: Vec<PeekedJob>,
    /// Messages of the batch that were found, dead letters not included.
    pub batch: QueueDepth,
    /// Number of messages examined at the queue's head; `None`: all there are.
    pub examined: Option<u64>,
}

/// One job found in the queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeekedJob {
    pub job: JobId,
    pub batch: BatchId,
    pub custom_id: String,
    /// Number of hand-outs that did not settle it.
    pub deliveries: u32,
    /// Calls so far that counted as attempts, in deliveries that ended.
    #[serde(rename = "tries")]
    pub attempts: u32,
    /// Error of the last attempt.
    pub last_error: Option<String>,
    pub deadline: Option<Timestamp>,
    #[serde(flatten)]
    pub place: QueuePosition,
}

/// Position of a job in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "place", rename_all = "snake_case")]
pub enum QueuePosition {
    /// Handed out after this many others, as far as they were seen.
    Ready { ahead: u64 },
    /// Handed out under a lock that lasts until then, unless it is renewed.
    Locked { until: Timestamp },
    /// Not handed out before then.
    Scheduled { until: Timestamp },
    /// Ready or handed out: the queue does not tell which.
    Active,
}

impl PeekedJob {
    pub(super) fn new(job: Job, deliveries: u32, place: QueuePosition) -> Self {
        Self {
            job: job.id,
            batch: job.batch_id,
            custom_id: job.custom_id,
            deliveries,
            attempts: job.history.attempts,
            last_error: job.history.last_error,
            deadline: job.deadline,
            place,
        }
    }
}
