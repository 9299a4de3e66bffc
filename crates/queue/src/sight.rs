//! What can be seen of jobs in a queue without taking them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::Serialize;

use super::Depth;
use domain::job::{BatchId, Job, JobId};

/// What is looked for.
#[derive(Debug, Clone, Default)]
pub struct Sought {
    pub jobs: BTreeSet<JobId>,
    pub batch: Option<BatchId>,
}

/// What was seen.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sight {
    /// Those of the jobs that were seen; one of them twice, if there are two messages of it.
    pub jobs: Vec<Seen>,
    /// The batch's messages that were seen; the dead letters are not looked at.
    pub batch: Depth,
    /// How many messages at the queue's head were looked at; `None`: all there are.
    pub looked_at: Option<u64>,
}

/// A job in the queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Seen {
    pub job: JobId,
    pub batch: BatchId,
    pub custom_id: String,
    /// How often it was handed out without an end.
    pub deliveries: u32,
    /// Calls so far that counted as tries, of deliveries that ended.
    pub tries: u32,
    /// How the last of them ended.
    pub last_error: Option<String>,
    pub deadline: Option<Timestamp>,
    #[serde(flatten)]
    pub place: Place,
}

/// Where in the queue a job is.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(tag = "place", rename_all = "snake_case")]
pub enum Place {
    /// It is handed out after so many others, as far as they were seen.
    Ready { ahead: u64 },
    /// It is handed out under a lock that lasts until then, unless it is renewed.
    Locked { until: Timestamp },
    /// It is not to be handed out before then.
    Scheduled { until: Timestamp },
    /// Ready or handed out: the queue does not tell.
    Active,
}

impl Seen {
    pub(super) fn new(job: Job, deliveries: u32, place: Place) -> Self {
        Self {
            job: job.id,
            batch: job.batch_id,
            custom_id: job.custom_id,
            deliveries,
            tries: job.history.tries,
            last_error: job.history.last_error,
            deadline: job.deadline,
            place,
        }
    }
}
