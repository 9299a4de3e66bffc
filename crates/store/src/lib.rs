//! What is known: the seam to every store of outcomes.
//!
//! A store keeps at most one outcome a job, the first that arrives; whoever comes later learns that
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

use domain::budget::{Budget, Claim, Limit};
use domain::job::{BatchId, JobId};
use domain::outcome::{Ending, Failure, Outcome, Usage};
use domain::share::Word;

/// A word that was not renewed for this long is gone, by the store's clock. Readers know much
/// sooner that its instance is dead; this only clears up.
pub const WORD_TTL: Duration = Duration::from_secs(60);

/// The proof that a job's outcome is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    job_id: JobId,
    ending: Ending,
    digest: u64,
    first: bool,
}

impl Recorded {
    pub fn job_id(&self) -> JobId {
        self.job_id
    }

    /// How the job ended, by the outcome that is stored.
    pub fn ending(&self) -> Ending {
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

/// A batch's life.
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

/// An input that was enqueued into a batch, so that giving it again counts nothing twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KnownInput {
    /// Of all its lines and of how they are read. Text: a store's numbers may not hold 64 bits.
    pub fingerprint: String,
    pub lines: u64,
    /// Jobs in it.
    pub jobs: u64,
    /// Those of them that no earlier input had.
    pub counted: u64,
    pub prompt_tokens: u64,
}

/// What is known of a batch besides its outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub id: BatchId,
    pub state: BatchState,
    /// Why it is in this state, where somebody said so.
    pub reason: Option<String>,
    /// Distinct jobs that were validated and enqueued, over all inputs; `intake::tally` counts them.
    pub jobs: u64,
    /// Sum of the jobs' prompt token counts.
    pub prompt_tokens: u64,
    /// The inputs that are in `jobs`, the latest last.
    pub inputs: Vec<KnownInput>,
    pub created_at: Timestamp,
}

/// What a batch's outcomes come to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Totals {
    /// Outcomes by ending; endings that did not occur are absent.
    pub endings: BTreeMap<Ending, u64>,
    #[serde(flatten)]
    pub usage: Usage,
    /// HTTP calls that counted as tries.
    pub attempts: u64,
}

impl Totals {
    pub fn of(&self, ending: Ending) -> u64 {
        self.endings.get(&ending).copied().unwrap_or(0)
    }

    /// Jobs that have ended.
    pub fn ended(&self) -> u64 {
        self.endings.values().sum()
    }
}

impl AddAssign<&Self> for Totals {
    fn add_assign(&mut self, other: &Self) {
        for (ending, jobs) in &other.endings {
            *self.endings.entry(*ending).or_default() += jobs;
        }
        self.usage += other.usage;
        self.attempts += other.attempts;
    }
}

/// What a batch came to so far, by the sums that are kept beside its outcomes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Running {
    pub sums: Vec<RunningSum>,
    /// By the Unix minute in which they ended. Minutes in which none did are absent.
    pub minutes: BTreeMap<i64, Minute>,
}

/// What one deployment has done of a batch, with one model on one service tier.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunningSum {
    pub deployment: String,
    pub model: String,
    pub service_tier: Option<Box<str>>,
    pub totals: Totals,
}

/// What ended in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minute {
    pub jobs: u64,
    /// Prompt and completion.
    pub tokens: u64,
    /// The second of the minute in which the first of them ended.
    pub from_second: u8,
}

impl Default for Minute {
    fn default() -> Self {
        Self { jobs: 0, tokens: 0, from_second: 59 }
    }
}

impl Minute {
    /// Of one outcome.
    pub fn of(outcome: &Outcome) -> (i64, Self) {
        let second = outcome.finished_at.as_second();
        let from_second = u8::try_from(second.rem_euclid(60)).unwrap_or_default();
        (second.div_euclid(60), Self { jobs: 1, tokens: outcome.usage.total(), from_second })
    }
}

impl AddAssign for Minute {
    fn add_assign(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.tokens += other.tokens;
        self.from_second = self.from_second.min(other.from_second);
    }
}

impl Running {
    /// All sums together.
    pub fn totals(&self) -> Totals {
        self.sums.iter().fold(Totals::default(), |mut all, sum| {
            all += &sum.totals;
            all
        })
    }
}

/// An outcome without what was asked and answered: enough for every sum and distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct Brief {
    /// `None` of one that was withdrawn: what it cost was paid, but the job has not ended by it.
    pub ending: Option<Ending>,
    /// Why it has no answer.
    pub failure: Option<Failure>,
    pub usage: Usage,
    /// What the service billed it as, if it said so.
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
pub enum Order {
    /// Whatever is cheapest for the store.
    AsStored,
    /// By place in the batch's input.
    ByPosition,
}

/// Why a store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Passing trouble: the caller slows down and tries again.
    #[error("the store can't be reached: {0}")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Trying again can't help: wrong name, no permission, broken file.
    #[error("the store refused: {0}")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// How long a payload is kept that nobody deletes: one whose job was never sent, or lies among the
/// dead letters. Far longer than any job may wait.
pub const PAYLOAD_LIFE: Duration = Duration::from_secs(180 * 24 * 3600);

/// A small record of a part of the program that needs its own: files and batches of the API. At most
/// some kilobytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it is about; all of a kind can be listed.
    pub kind: String,
    /// By which it is found: letters, digits, `-`, `_` and `.`.
    pub id: String,
    pub json: String,
}

/// What a store that is billed by use has charged this process so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Expense {
    /// Request units (Azure docs: "Request Units in Azure Cosmos DB"), refused calls included.
    pub request_units: f64,
    /// The same by what they were for; operations that never happened are absent.
    pub by_operation: Vec<(&'static str, f64)>,
    /// Writes that were refused for want of request units, and tried again.
    pub throttled: u64,
}

/// Where outcomes are kept. Calls are batch-shaped; an empty batch does nothing.
#[async_trait]
pub trait Store: Send + Sync {
    /// Records outcomes, each only if its job has none; in the order given, the proof for each.
    /// When this returns the outcomes are durable, and counted in their batch's totals exactly once.
    async fn record(&self, outcomes: Arc<Vec<Outcome>>) -> Result<Vec<Recorded>, StoreError>;

    /// Looks jobs of one batch up by their custom_ids, in the order asked.
    async fn look_up(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError>;

    /// One job's outcome with all of its text.
    async fn outcome(
        &self,
        batch: &BatchId,
        custom_id: &str,
    ) -> Result<Option<Outcome>, StoreError>;

    /// The same, for whoever has nothing but the job's id; a store may have to go through the batch.
    async fn outcome_by_id(
        &self,
        batch: &BatchId,
        job: JobId,
    ) -> Result<Option<Outcome>, StoreError>;

    /// Takes away the outcomes of those jobs that ended as dead, so that they can be worked again. In
    /// the order asked: `None` for a job that has no outcome now, the proof for one that ended
    /// otherwise and stays so. What the dead ones cost stays in their batch's totals, their endings
    /// don't. Asked again, it changes nothing more.
    async fn withdraw_dead(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError>;

    /// Streams a batch's outcomes in bounded memory. Outcomes recorded meanwhile may be missing.
    async fn outcomes(
        &self,
        batch: &BatchId,
        order: Order,
    ) -> Result<BoxStream<'static, Result<Outcome, StoreError>>, StoreError>;

    /// Streams a batch's outcomes without their bodies, those that were withdrawn as well, in any
    /// order and in bounded memory.
    async fn briefs(
        &self,
        batch: &BatchId,
    ) -> Result<BoxStream<'static, Result<Brief, StoreError>>, StoreError>;

    async fn totals(&self, batch: &BatchId) -> Result<Totals, StoreError>;

    /// The same by what is cheap enough to be asked for every second, with the minutes since then. A
    /// store that counts in another place than it records may be short of what a worker that was
    /// killed had recorded last; [`Self::totals`] never is.
    async fn running(&self, batch: &BatchId, since: Timestamp) -> Result<Running, StoreError>;

    /// Creates the batch, or writes over its counts and inputs. The state and the reason of one that
    /// is there stay: whoever counts must not undo a pause.
    async fn put_batch(&self, batch: &Batch) -> Result<(), StoreError>;

    /// Changes a batch's state and reason, and nothing else, if its state is one of `from`. Returns
    /// the batch as it is then; `None` if there is none. To be called by [`control`] and by
    /// those who fill and close batches.
    async fn change_state(
        &self,
        id: &BatchId,
        from: &[BatchState],
        to: BatchState,
        reason: Option<&str>,
    ) -> Result<Option<Batch>, StoreError>;

    /// Gives a batch its budget, or another limit to the one that it has. Returns the budget as it
    /// stands then: with its old limit if the unit is another, or if more is committed already.
    async fn limit_budget(&self, batch: &BatchId, limit: &Limit) -> Result<Budget, StoreError>;

    /// None for a batch that may cost whatever it costs.
    async fn budget(&self, batch: &BatchId) -> Result<Option<Budget>, StoreError>;

    /// Changes what is committed and spent of a batch's budget, as a whole or not at all: whether it
    /// was granted, and how the budget stands. `None` if there is no budget.
    ///
    /// A claim that failed may have been granted. Who took must take that for refused and who gave
    /// back for granted: then no more is ever spent than was allowed.
    async fn claim(
        &self,
        batch: &BatchId,
        claim: &Claim,
    ) -> Result<Option<(bool, Budget)>, StoreError>;

    async fn batch(&self, id: &BatchId) -> Result<Option<Batch>, StoreError>;

    /// All batches, newest first.
    async fn batches(&self) -> Result<Vec<Batch>, StoreError>;

    /// Keeps the body of a job that is too large for the queue, durably, for [`PAYLOAD_LIFE`]. The
    /// same name is written over.
    async fn put_payload(&self, name: &str, bytes: Bytes) -> Result<(), StoreError>;

    /// `None` if it is not there as a whole.
    async fn get_payload(&self, name: &str) -> Result<Option<Bytes>, StoreError>;

    /// A payload that is not there is no error.
    async fn delete_payload(&self, name: &str) -> Result<(), StoreError>;

    /// Says a worker's word to its siblings, in place of its last one. When this returns, everybody
    /// who asks for the [`Self::words`] hears it.
    async fn put_word(&self, word: &Word) -> Result<(), StoreError>;

    /// The words of all instances, in no order.
    async fn words(&self) -> Result<Vec<Word>, StoreError>;

    /// Takes an instance's word back; none is no error.
    async fn remove_word(&self, instance: Uuid) -> Result<(), StoreError>;

    /// Writes a note if it is what it was when the caller read it; `None`: if there is none. False if
    /// somebody else was first, or a try of ours that went through unheard: the caller reads it again.
    async fn put_note(&self, note: &Note, was: Option<&str>) -> Result<bool, StoreError>;

    /// A note's JSON, byte for byte.
    async fn note(&self, kind: &str, id: &str) -> Result<Option<String>, StoreError>;

    /// All notes of a kind, in no order.
    async fn notes(&self, kind: &str) -> Result<Vec<Note>, StoreError>;

    /// A note that is not there is no error.
    async fn remove_note(&self, kind: &str, id: &str) -> Result<(), StoreError>;

    /// What was charged so far; `None` where nothing is.
    fn expense(&self) -> Option<Expense> {
        None
    }
}
