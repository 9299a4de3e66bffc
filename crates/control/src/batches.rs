//! Status of batches, counted from their outcomes.

use serde::Serialize;

use domain::budget::Budget;
use domain::job::BatchId;
use store::{Batch, BatchState, BatchTotals, Store, StoreError};

/// States in which a batch is done as soon as all its jobs have ended.
const ENDABLE: [BatchState; 2] = [BatchState::Running, BatchState::Paused];

/// Status of one batch, counted now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BatchStatus {
    pub batch: BatchId,
    pub state: BatchState,
    /// Reason for this state, if one was given.
    pub reason: Option<String>,
    /// Budget, if the batch has one.
    pub budget: Option<Budget>,
    pub jobs: u64,
    pub pending: u64,
    #[serde(flatten)]
    pub totals: BatchTotals,
}

impl BatchStatus {
    pub fn new(batch: &Batch, budget: Option<Budget>, totals: BatchTotals) -> Self {
        let is_done = is_finished(batch, &totals);
        Self {
            batch: batch.id.clone(),
            state: if is_done { BatchState::Done } else { batch.state },
            reason: batch.reason.clone().filter(|_| !is_done),
            budget,
            jobs: batch.size(totals.ended()),
            pending: batch.jobs.saturating_sub(totals.ended()),
            totals,
        }
    }
}

/// Returns the status of all batches, or of `only`; empty if that does not exist.
///
/// # Errors
/// If the store fails.
pub async fn batch_statuses(
    store: &dyn Store,
    only: Option<&BatchId>,
) -> Result<Vec<BatchStatus>, StoreError> {
    let batches = match only {
        Some(id) => store.batch(id).await?.into_iter().collect(),
        None => store.batches().await?,
    };
    let mut statuses = Vec::with_capacity(batches.len());
    for batch in batches {
        let totals = store.totals(&batch.id).await?;
        let budget = store.budget(&batch.id).await?;
        statuses.push(BatchStatus::new(&batch, budget, totals));
    }
    Ok(statuses)
}

/// Marks every batch whose jobs all have outcomes as done, and every running one of which nobody
/// announced a number of jobs. A worker that found the queue empty calls it; before that,
/// [`batch_statuses`] reports a finished batch as done by its counts.
///
/// # Errors
/// If the store fails.
pub async fn close_finished(store: &dyn Store) -> Result<(), StoreError> {
    for batch in store.batches().await? {
        if !ENDABLE.contains(&batch.state) {
            continue;
        }
        let is_over = if batch.is_counted() {
            is_finished(&batch, &store.totals(&batch.id).await?)
        } else {
            batch.state == BatchState::Running
        };
        if is_over {
            close(store, &batch.id).await?;
        }
    }
    Ok(())
}

/// Marks a batch as done. A batch cancelled meanwhile stays cancelled.
///
/// # Errors
/// If the store fails.
pub async fn close(store: &dyn Store, batch: &BatchId) -> Result<(), StoreError> {
    store.change_state(batch, &ENDABLE, BatchState::Done, None).await.map(drop)
}

/// Returns whether a running or paused batch has ended all jobs. While a batch is being enqueued,
/// its number of jobs is not known yet; of one that nobody announced it never is.
pub fn is_finished(batch: &Batch, totals: &BatchTotals) -> bool {
    ENDABLE.contains(&batch.state) && batch.is_counted() && totals.ended() >= batch.jobs
}
