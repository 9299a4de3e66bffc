//! Seam of the outcomes: workers record and look up, reports read.

use std::sync::Arc;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use jiff::Timestamp;

use super::error::StoreError;
use super::totals::{BatchTotals, RunningTotals};
use domain::job::{BatchId, JobId};
use domain::outcome::{AnswerFinish, JobFailure, Outcome, OutcomeStatus, TokenUsage};

/// The proof that a job's outcome is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    pub(crate) job_id: JobId,
    pub(crate) ending: OutcomeStatus,
    pub(crate) digest: u64,
    pub(crate) first: bool,
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

/// An outcome without its body: enough for every sum and distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct OutcomeSummary {
    /// `None` for a withdrawn outcome: its cost was paid, but the job has not ended by it.
    pub ending: Option<OutcomeStatus>,
    /// Reason for the missing answer.
    pub failure: Option<JobFailure>,
    pub usage: TokenUsage,
    /// Way in which the answer ended.
    pub finish: Option<AnswerFinish>,
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

/// Records outcomes and answers whether a job has one. Calls are batch-shaped; an empty batch does
/// nothing.
#[async_trait]
pub trait OutcomeStore: Send + Sync {
    /// Records each outcome whose job has none yet; returns a proof for each, in their order. When
    /// this returns the outcomes are durable, and counted in their batch's totals exactly once.
    async fn record(&self, outcomes: Arc<Vec<Outcome>>) -> Result<Vec<Recorded>, StoreError>;

    /// Looks jobs of one batch up by their custom_ids, in the order asked.
    async fn look_up(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError>;

    /// Withdraws the outcomes of those jobs that ended as dead, so that they can be worked again.
    /// Returns, in the order asked, `None` for a job that has no outcome now and the proof for one
    /// that ended otherwise, which stays. The cost of the dead ones stays in their batch's totals,
    /// their endings don't. Idempotent.
    async fn reopen_dead(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError>;
}

/// Reads outcomes and what they add up to.
#[async_trait]
pub trait OutcomeReader: Send + Sync {
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
}
