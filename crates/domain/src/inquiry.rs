//! Inquiries about the jobs that workers hold, and their answers: what `promptmill why` exchanges.
//!
//! Heartbeats carry both. `worker` answers from what its dispatcher and `admission` know; `report`
//! asks and tells. The serialized names are those of all versions.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::job::{BatchId, JobId};

/// Inquiry to every worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerInquiry {
    /// Jobs to report one by one.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub jobs: BTreeSet<JobId>,
    /// Batch whose jobs to count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
}

/// A worker's answer to an inquiry. All times are relative to the answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct InquiryAnswer {
    /// Those of the requested jobs that it holds.
    pub jobs: Vec<LeasedJobReport>,
    /// Counts of the requested batch.
    pub batch: Option<LeasedJobCounts>,
    /// Counts of all that it holds, whatever was requested.
    pub all: LeasedJobCounts,
}

/// Report on one job that a worker holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LeasedJobReport {
    pub job: JobId,
    pub batch: BatchId,
    /// Calls so far that counted as attempts, the one under way not included.
    #[serde(rename = "tries")]
    pub attempts: u32,
    /// Error of the last attempt.
    pub last_error: Option<String>,
    /// Unix ms after which it ends as expired, if it has not been sent by then.
    pub deadline_ms: Option<i64>,
    #[serde(flatten)]
    pub at: JobStage,
}

/// Stage of a job within a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum JobStage {
    /// Waits for admission.
    Line { wait: JobWait },
    /// Its call is under way.
    Call { deployment: String, since_ms: u64 },
    /// Waits for its next attempt after a transient error.
    Retry { due_in_ms: u64 },
}

/// Counts of the jobs that a worker holds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LeasedJobCounts {
    /// Jobs that wait for admission, by the deployments that can serve them.
    pub lines: Vec<WaitSummary>,
    /// Calls in flight by deployment.
    pub calls: BTreeMap<String, u64>,
    pub retries: u64,
    pub next_retry_in_ms: Option<u64>,
}

impl LeasedJobCounts {
    pub fn in_line(&self) -> u64 {
        self.lines.iter().map(|line| line.jobs).sum()
    }

    pub fn in_flight(&self) -> u64 {
        self.calls.values().sum()
    }

    pub fn jobs(&self) -> u64 {
        self.in_line() + self.in_flight() + self.retries
    }
}

/// Reason why a deployment does not take a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "for", rename_all = "snake_case")]
pub enum BlockReason {
    /// This instance has used its tokens a minute there.
    Tokens { tpm: Option<u64>, share: f64 },
    /// This instance has used its requests a minute there.
    Requests { rpm: Option<u64>, share: f64 },
    /// It has as many calls in flight as allowed.
    Calls {
        in_flight: usize,
        /// The bound that the settings give. 0 from workers of older versions.
        #[serde(default)]
        concurrency: usize,
    },
    /// It refused calls for want of quota or room, in these words.
    Paused {
        #[serde(default)]
        error: Option<String>,
    },
    /// It refused this job for good.
    RefusedJob,
    /// It keeps failing or refusing; probes find out when it is back.
    Breaker { error: String },
    /// It is out of the pool for good.
    Retired { error: String },
    /// The job may take more tokens than it ever gives in a minute.
    TooLarge { most: u64 },
    /// The job's deadline is too near for the slow tier.
    Deadline,
    /// It just failed the job, and another one may do better.
    FailedHere,
    /// A higher tier can take the job soon.
    TierAbove,
    /// Only the jobs ahead of it.
    Line,
}

/// One deployment that does not take a job now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlockedDeployment {
    pub deployment: String,
    pub tier: u8,
    #[serde(flatten)]
    pub reason: BlockReason,
    /// Estimated time until the reason ends; absent where only an event ends it.
    pub over_in_ms: Option<u64>,
}

/// Explanation of one job's wait.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobWait {
    /// Tokens that its call would book.
    pub charge: u64,
    /// Jobs ahead of it, and their tokens.
    pub ahead: u64,
    pub ahead_tokens: u64,
    /// Every deployment that serves its model, the first tier first.
    pub blocks: Vec<BlockedDeployment>,
    /// Estimated time until it goes, where that can be known.
    pub goes_in_ms: Option<u64>,
}

/// Jobs that wait in one queue.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WaitSummary {
    pub jobs: u64,
    pub tokens: u64,
    /// The wait of the first of them.
    pub first: JobWait,
}

impl BlockedDeployment {
    /// Returns whether the job may still go there later.
    pub fn is_temporary(&self) -> bool {
        use BlockReason::{Deadline, RefusedJob, Retired, TooLarge};
        !matches!(self.reason, Retired { .. } | TooLarge { .. } | Deadline | RefusedJob)
    }
}
