//! Seam of the batch documents: what was enqueued, and the state.

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::StoreError;
use domain::job::BatchId;

/// Lifecycle state of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchState {
    /// Jobs are still being added; an interrupted enqueue stays here until it is run again.
    Enqueuing,
    Running,
    Paused,
    Cancelled,
    Done,
}

impl BatchState {
    pub const ALL: [Self; 5] =
        [Self::Enqueuing, Self::Running, Self::Paused, Self::Cancelled, Self::Done];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enqueuing => "enqueuing",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Cancelled => "cancelled",
            Self::Done => "done",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// Senders of a batch's jobs: they tell how often a job may be in the queue, where a queue takes
/// one twice. The order is that of growing doubt; a batch never goes back in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchSenders {
    /// One `enqueue` sent each job once.
    #[default]
    One,
    /// Programs that announced no batch, and no number of jobs.
    Unknown,
    /// It was enqueued more than once, or a job was sent again.
    Several,
}

impl BatchSenders {
    pub const ALL: [Self; 3] = [Self::One, Self::Unknown, Self::Several];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Unknown => "unknown",
            Self::Several => "several",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|senders| senders.as_str() == name)
    }
}

/// An input that was enqueued into a batch, recorded so that giving it again counts nothing twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnqueuedInput {
    /// Fingerprint of its lines and their parsing. Text: a store's numbers may not hold 64 bits.
    pub fingerprint: String,
    pub lines: u64,
    /// Jobs in it.
    pub jobs: u64,
    /// Jobs that no earlier input had.
    pub counted: u64,
    pub prompt_tokens: u64,
}

/// Record of a batch, without its outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub id: BatchId,
    pub state: BatchState,
    /// Reason for this state, where one was given.
    pub reason: Option<String>,
    /// Distinct jobs that were validated and enqueued, over all inputs; `intake::tally` counts them.
    pub jobs: u64,
    /// Sum of the jobs' prompt token counts.
    pub prompt_tokens: u64,
    /// Inputs that are counted in `jobs`, the latest last.
    pub inputs: Vec<EnqueuedInput>,
    pub senders: BatchSenders,
    pub created_at: Timestamp,
}

impl Batch {
    /// Returns the number of its jobs, of which so many have ended: at least those, where nobody
    /// announced their number.
    pub fn size(&self, ended: u64) -> u64 {
        if self.is_counted() { self.jobs } else { self.jobs.max(ended) }
    }

    /// Returns whether the number of its jobs is known.
    pub fn is_counted(&self) -> bool {
        self.senders != BatchSenders::Unknown
    }
}

/// Keeps the batch documents.
#[async_trait]
pub trait BatchStore: Send + Sync {
    /// Creates the batch if there is none; returns whether it did. Of several callers one creates
    /// it; after a lost answer it may be none.
    async fn create_batch(&self, batch: &Batch) -> Result<bool, StoreError>;

    /// Records that the batch has such senders, unless it has more doubtful ones already.
    async fn add_senders(&self, id: &BatchId, senders: BatchSenders) -> Result<(), StoreError>;

    /// Creates the batch, or overwrites its counts and inputs. The state, reason and senders of an
    /// existing one stay: counting must not undo a pause.
    async fn put_batch(&self, batch: &Batch) -> Result<(), StoreError>;

    /// Changes a batch's state and reason, and nothing else, if its state is one of `from`. Returns
    /// the resulting batch; `None` if there is none. Called by the crate `control` and by the code
    /// that fills and closes batches.
    async fn change_state(
        &self,
        id: &BatchId,
        from: &[BatchState],
        to: BatchState,
        reason: Option<&str>,
    ) -> Result<Option<Batch>, StoreError>;

    async fn batch(&self, id: &BatchId) -> Result<Option<Batch>, StoreError>;

    /// All batches, newest first.
    async fn batches(&self) -> Result<Vec<Batch>, StoreError>;
}
