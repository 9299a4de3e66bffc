//! How batches stand, by their outcomes.

use serde::Serialize;

use domain::budget::Budget;
use domain::job::BatchId;
use store::{Batch, BatchState, Store, StoreError, Totals};

/// A batch in one of these states is done as soon as all its jobs have ended.
const ENDABLE: [BatchState; 2] = [BatchState::Running, BatchState::Paused];

/// One batch, counted now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    pub batch: BatchId,
    pub state: BatchState,
    /// Why it is in this state, where somebody said so.
    pub reason: Option<String>,
    /// What it may cost, where that is limited.
    pub budget: Option<Budget>,
    pub jobs: u64,
    pub pending: u64,
    #[serde(flatten)]
    pub totals: Totals,
}

impl Standing {
    pub fn new(batch: &Batch, budget: Option<Budget>, totals: Totals) -> Self {
        let is_done = is_finished(batch, &totals);
        Self {
            batch: batch.id.clone(),
            state: if is_done { BatchState::Done } else { batch.state },
            reason: batch.reason.clone().filter(|_| !is_done),
            budget,
            jobs: batch.jobs,
            pending: batch.jobs.saturating_sub(totals.ended()),
            totals,
        }
    }
}

/// All batches, or the one that is named; none if it does not exist.
///
/// # Errors
/// What the store said.
pub async fn standings(
    store: &dyn Store,
    only: Option<&BatchId>,
) -> Result<Vec<Standing>, StoreError> {
    let batches = match only {
        Some(id) => store.batch(id).await?.into_iter().collect(),
        None => store.batches().await?,
    };
    let mut standings = Vec::with_capacity(batches.len());
    for batch in batches {
        let totals = store.totals(&batch.id).await?;
        let budget = store.budget(&batch.id).await?;
        standings.push(Standing::new(&batch, budget, totals));
    }
    Ok(standings)
}

/// Marks the batches as done whose jobs all have outcomes. Asked for by a worker that found the
/// queue empty; who asks for a batch's standing before that is told by the counts.
///
/// # Errors
/// What the store said.
pub async fn close_finished(store: &dyn Store) -> Result<(), StoreError> {
    for batch in store.batches().await? {
        if !ENDABLE.contains(&batch.state) {
            continue;
        }
        let totals = store.totals(&batch.id).await?;
        if is_finished(&batch, &totals) {
            close(store, &batch.id).await?;
        }
    }
    Ok(())
}

/// Marks a batch as done. One that was cancelled meanwhile stays so.
///
/// # Errors
/// What the store said.
pub async fn close(store: &dyn Store, batch: &BatchId) -> Result<(), StoreError> {
    store.change_state(batch, &ENDABLE, BatchState::Done, None).await.map(drop)
}

/// A batch that is still being enqueued does not know its number of jobs yet.
pub fn is_finished(batch: &Batch, totals: &Totals) -> bool {
    ENDABLE.contains(&batch.state) && totals.ended() >= batch.jobs
}
