//! Storage of outcomes: the seam to every backend.
//!
//! A store keeps at most one outcome a job, the first that arrives; a later writer learns that
//! there is one. That alone makes redelivery harmless. Only a store can make a [`Recorded`], the
//! proof without which a delivery can't be completed.
//!
//! Backends: [`local`] (SQLite) and [`cosmos`] (Azure Cosmos DB). All pass the one contract suite in
//! `tests/support/contract_store.rs`.

pub mod cosmos;
pub mod local;

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use domain::budget::{Budget, BudgetClaim, BudgetLimit};
use domain::heartbeat::Heartbeat;
use domain::job::{BatchId, JobId};
use domain::outcome::{JobFailure, Outcome, OutcomeStatus, TokenUsage};

/// Age at which a heartbeat that was not renewed expires, by the store's clock. Readers know much
/// sooner that its instance is dead; this only cleans up.
pub const HEARTBEAT_TTL: Duration = Duration::from_secs(60);

/// The proof that a job's outcome is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    job_id: JobId,
    ending: OutcomeStatus,
    digest: u64,
    first: bool,
}

impl Recorded {
    pub fn job_id(&self) -> JobId {
        self.job_id
    }

    /// Ending of the stored outcome.
    pub fn ending(&self) -> OutcomeStatus {
        self.ending
    }

    /// The [`domain::job::Job::digest`] of the job that was answered.
    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// False if the job had an outcome before this call.
    pub fn is_first(&self) -> bool {
        self.first
    }
}

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
    pub created_at: Timestamp,
}

/// Sums over a batch's outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct BatchTotals {
    /// Outcomes by ending; endings that did not occur are absent.
    pub endings: BTreeMap<OutcomeStatus, u64>,
    #[serde(flatten)]
    pub usage: TokenUsage,
    /// HTTP calls that counted as attempts.
    pub attempts: u64,
}

impl BatchTotals {
    pub fn of(&self, ending: OutcomeStatus) -> u64 {
        self.endings.get(&ending).copied().unwrap_or(0)
    }

    /// Jobs that have ended.
    pub fn ended(&self) -> u64 {
        self.endings.values().sum()
    }
}

impl AddAssign<&Self> for BatchTotals {
    fn add_assign(&mut self, other: &Self) {
        for (ending, jobs) in &other.endings {
            *self.endings.entry(*ending).or_default() += jobs;
        }
        self.usage += other.usage;
        self.attempts += other.attempts;
    }
}

/// Totals of a batch so far, from the sums that are kept beside its outcomes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunningTotals {
    pub sums: Vec<DeploymentTotals>,
    /// Jobs by the Unix minute in which they ended. Minutes without any are absent.
    pub minutes: BTreeMap<i64, MinuteTotals>,
}

/// Totals of one deployment in a batch, with one model on one service tier.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeploymentTotals {
    pub deployment: String,
    pub model: String,
    pub service_tier: Option<Box<str>>,
    pub totals: BatchTotals,
}

/// Jobs and tokens that ended in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MinuteTotals {
    pub jobs: u64,
    /// Prompt and completion.
    pub tokens: u64,
    /// Second of the minute in which the first job ended.
    pub from_second: u8,
}

impl Default for MinuteTotals {
    fn default() -> Self {
        Self { jobs: 0, tokens: 0, from_second: 59 }
    }
}

impl MinuteTotals {
    /// Returns an outcome's Unix minute and what it adds to it.
    pub fn of(outcome: &Outcome) -> (i64, Self) {
        let second = outcome.finished_at.as_second();
        let from_second = u8::try_from(second.rem_euclid(60)).unwrap_or_default();
        (second.div_euclid(60), Self { jobs: 1, tokens: outcome.usage.total(), from_second })
    }
}

impl AddAssign for MinuteTotals {
    fn add_assign(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.tokens += other.tokens;
        self.from_second = self.from_second.min(other.from_second);
    }
}

impl RunningTotals {
    /// Adds up all sums.
    pub fn totals(&self) -> BatchTotals {
        self.sums.iter().fold(BatchTotals::default(), |mut all, sum| {
            all += &sum.totals;
            all
        })
    }
}

/// An outcome without its body: enough for every sum and distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct OutcomeSummary {
    /// `None` for a withdrawn outcome: its cost was paid, but the job has not ended by it.
    pub ending: Option<OutcomeStatus>,
    /// Reason for the missing answer.
    pub failure: Option<JobFailure>,
    pub usage: TokenUsage,
    /// Tier that the service billed, if it reported one.
    pub service_tier: Option<Box<str>>,
    pub attempts: u32,
    pub throttled: u32,
    pub deployment: String,
    pub model: String,
    pub latency_ms: u64,
    pub finished_at: Timestamp,
    pub deadline: Option<Timestamp>,
    pub metadata: Option<Box<str>>,
}

/// The order in which outcomes are streamed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortOrder {
    /// Cheapest order for the store.
    AsStored,
    /// Position in the batch's input.
    ByPosition,
}

/// Failure of a store operation.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Transient error: the caller slows down and retries.
    #[error("the store can't be reached: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Permanent error, which no retry fixes: wrong name, no permission, broken file.
    #[error("the store refused: {0}")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Lifetime of a payload that nobody deletes: its job was never sent, or is a dead letter. Far
/// longer than any job may wait.
pub const PAYLOAD_TTL: Duration = Duration::from_secs(180 * 24 * 3600);

/// A small record for parts of the program that need their own: files and batches of the API. At
/// most some kilobytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvRecord {
    /// Namespace of the record; all records of a kind can be listed.
    pub kind: String,
    /// Key within the kind: letters, digits, `-`, `_` and `.`.
    pub id: String,
    pub json: String,
}

/// Charges of a store that is billed by use, for this process so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoreCharges {
    /// Request units (Azure docs: "Request Units in Azure Cosmos DB"), refused calls included.
    pub request_units: f64,
    /// The same by operation; operations that never happened are absent.
    pub by_operation: Vec<(&'static str, f64)>,
    /// Writes that were throttled for lack of request units, and retried.
    pub throttled: u64,
}

/// A store of outcomes. Calls are batch-shaped; an empty batch does nothing.
#[async_trait]
pub trait Store: Send + Sync {
    /// Records each outcome whose job has none yet; returns a proof for each, in their order. When
    /// this returns the outcomes are durable, and counted in their batch's totals exactly once.
    async fn record(&self, outcomes: Arc<Vec<Outcome>>) -> Result<Vec<Recorded>, StoreError>;

    /// Looks jobs of one batch up by their custom_ids, in the order asked.
    async fn look_up(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError>;

    /// Returns one job's outcome with all of its text.
    async fn outcome(
        &self,
        batch: &BatchId,
        custom_id: &str,
    ) -> Result<Option<Outcome>, StoreError>;

    /// Same for callers that have only the job's id; a store may have to scan the batch.
    async fn outcome_by_id(
        &self,
        batch: &BatchId,
        job: JobId,
    ) -> Result<Option<Outcome>, StoreError>;

    /// Withdraws the outcomes of those jobs that ended as dead, so that they can be worked again.
    /// Returns, in the order asked, `None` for a job that has no outcome now and the proof for one
    /// that ended otherwise, which stays. The cost of the dead ones stays in their batch's totals,
    /// their endings don't. Idempotent.
    async fn reopen_dead(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError>;

    /// Streams a batch's outcomes in bounded memory. Outcomes recorded meanwhile may be missing.
    async fn outcomes(
        &self,
        batch: &BatchId,
        order: SortOrder,
    ) -> Result<BoxStream<'static, Result<Outcome, StoreError>>, StoreError>;

    /// Streams a batch's outcomes without their bodies, including withdrawn ones, in any order and
    /// in bounded memory.
    async fn outcome_summaries(
        &self,
        batch: &BatchId,
    ) -> Result<BoxStream<'static, Result<OutcomeSummary, StoreError>>, StoreError>;

    async fn totals(&self, batch: &BatchId) -> Result<BatchTotals, StoreError>;

    /// Returns totals that are cheap enough to poll every second, with the minutes since `since`. A
    /// store that counts elsewhere than it records may lack the last outcomes of a killed worker;
    /// [`Self::totals`] never does.
    async fn running_totals(
        &self,
        batch: &BatchId,
        since: Timestamp,
    ) -> Result<RunningTotals, StoreError>;

    /// Creates the batch, or overwrites its counts and inputs. The state and reason of an existing
    /// one stay: counting must not undo a pause.
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

    /// Sets the limit of a batch's budget. Returns the resulting budget: with its old limit if the
    /// unit differs, or if more is committed already.
    async fn limit_budget(
        &self,
        batch: &BatchId,
        limit: &BudgetLimit,
    ) -> Result<Budget, StoreError>;

    /// Returns `None` for a batch without a budget.
    async fn budget(&self, batch: &BatchId) -> Result<Option<Budget>, StoreError>;

    /// Changes the committed and spent amounts of a batch's budget, as a whole or not at all.
    /// Returns whether it was granted, and the resulting budget; `None` if there is no budget.
    ///
    /// A claim that failed may have been granted. The caller must count a failed take as refused
    /// and a failed give-back as granted: then no more is ever spent than was allowed.
    async fn claim(
        &self,
        batch: &BatchId,
        claim: &BudgetClaim,
    ) -> Result<Option<(bool, Budget)>, StoreError>;

    async fn batch(&self, id: &BatchId) -> Result<Option<Batch>, StoreError>;

    /// All batches, newest first.
    async fn batches(&self) -> Result<Vec<Batch>, StoreError>;

    /// Stores the body of a job that is too large for the queue, durably, for [`PAYLOAD_TTL`]. The
    /// same name is overwritten.
    async fn put_payload(&self, name: &str, bytes: Bytes) -> Result<(), StoreError>;

    /// Returns `None` if it is missing or incomplete.
    async fn get_payload(&self, name: &str) -> Result<Option<Bytes>, StoreError>;

    /// Deletes a payload; a missing one is no error.
    async fn delete_payload(&self, name: &str) -> Result<(), StoreError>;

    /// Stores a worker's heartbeat, in place of its last one. When this returns, every reader of
    /// [`Self::heartbeats`] sees it.
    async fn put_heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError>;

    /// Returns the heartbeats of all instances, in no order.
    async fn heartbeats(&self) -> Result<Vec<Heartbeat>, StoreError>;

    /// Removes an instance's heartbeat; a missing one is no error.
    async fn delete_heartbeat(&self, instance: Uuid) -> Result<(), StoreError>;

    /// Writes a record if it still is what the caller read (`None`: absent). False if another
    /// writer was first, or an attempt of ours succeeded unnoticed: the caller reads again.
    async fn put_kv(&self, note: &KvRecord, was: Option<&str>) -> Result<bool, StoreError>;

    /// Returns a record's JSON, byte for byte.
    async fn get_kv(&self, kind: &str, id: &str) -> Result<Option<String>, StoreError>;

    /// Returns all records of a kind, in no order.
    async fn list_kv(&self, kind: &str) -> Result<Vec<KvRecord>, StoreError>;

    /// Removes a record; a missing one is no error.
    async fn delete_kv(&self, kind: &str, id: &str) -> Result<(), StoreError>;

    /// Returns the charges so far; `None` where nothing is charged.
    fn charges(&self) -> Option<StoreCharges> {
        None
    }
}
