//! Pauses, resumes and cancels a batch, for all its workers at once.
//!
//! Only the batch's state in the store changes; every worker polls the states of the batches whose
//! jobs it holds, so it follows within seconds. Calls in flight end and are recorded in any case.

pub mod batches;

use domain::budget::{Budget, BudgetLimit};
use domain::job::BatchId;
use store::BatchState::{Cancelled, Done, Enqueuing, Paused, Running};
use store::{Batch, BatchState, Store, StoreError};

/// Reason why a batch's state was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("there is no batch '{0}': `promptmill status` lists those that there are")]
    NoSuchBatch(BatchId),
    #[error("batch '{0}' is done: all its jobs have ended, and `promptmill results {0}` shows how")]
    Done(BatchId),
    #[error(
        "batch '{0}' is cancelled, and that is for ever: enqueue its jobs as a new batch by another \
         --batch"
    )]
    Cancelled(BatchId),
    #[error(
        "batch '{0}' has begun without a budget, and what it cost so far was not counted: enqueue its \
         jobs as a new batch by another --batch, with the budget"
    )]
    NoBudget(BatchId),
    #[error("batch '{batch}' has a budget of {budget}; give one in the same unit")]
    OtherUnit { batch: BatchId, budget: String },
    #[error(
        "of the budget of batch '{batch}' {committed} is spent or reserved already; give at least that"
    )]
    AlreadyCommitted { batch: BatchId, committed: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Pauses the batch: no new call starts until [`resume`]. Its jobs stay queued and keep their
/// attempt count. A batch that is paused already stays so, with its first reason.
///
/// # Errors
/// If the batch is done, cancelled or missing, or the store's error.
pub async fn pause(
    store: &dyn Store,
    batch: &BatchId,
    reason: Option<&str>,
) -> Result<Batch, ControlError> {
    refuse_finished(store, batch).await?;
    let now = store.change_state(batch, &[Enqueuing, Running], Paused, reason).await?;
    require_state(now, batch, &[Paused])
}

/// Lets the calls of a paused batch go on. A batch that is not paused stays as it is.
///
/// # Errors
/// If the batch is done, cancelled or missing, or the store's error.
pub async fn resume(store: &dyn Store, batch: &BatchId) -> Result<Batch, ControlError> {
    let now = store.change_state(batch, &[Paused], Running, None).await?;
    require_state(now, batch, &[Running, Enqueuing])
}

/// Cancels the batch: jobs that have not been sent end as cancelled, recorded outcomes stay.
///
/// The state changes at once; the workers record the pending jobs as they reach them.
///
/// # Errors
/// If the batch is done or missing, or the store's error.
pub async fn cancel(store: &dyn Store, batch: &BatchId) -> Result<Batch, ControlError> {
    refuse_finished(store, batch).await?;
    let from = [Enqueuing, Running, Paused];
    let now = store.change_state(batch, &from, Cancelled, None).await?;
    require_state(now, batch, &[Cancelled])
}

/// Gives a batch its budget before its first job is enqueued. A batch that has a budget in this
/// unit keeps it: [`change_budget`] changes it.
///
/// # Errors
/// If the batch has begun without one, or the store's error.
pub async fn give_budget(
    store: &dyn Store,
    batch: &BatchId,
    limit: &BudgetLimit,
) -> Result<Budget, ControlError> {
    let budget = match (store.batch(batch).await?, store.budget(batch).await?) {
        // An enqueue may have been interrupted before its first job: nothing was spent.
        (None, _) => store.limit_budget(batch, limit).await?,
        (Some(_), Some(budget)) => budget,
        (Some(_), None) => return Err(ControlError::NoBudget(batch.clone())),
    };
    same_unit(batch, &budget, limit)?;
    Ok(budget)
}

/// Sets another limit for a batch that has a budget, at any time.
///
/// # Errors
/// If it has none or one in another unit, if more than the limit is committed already, or the
/// store's error.
pub async fn change_budget(
    store: &dyn Store,
    batch: &BatchId,
    limit: &BudgetLimit,
) -> Result<Budget, ControlError> {
    if store.batch(batch).await?.is_none() {
        return Err(ControlError::NoSuchBatch(batch.clone()));
    }
    if store.budget(batch).await?.is_none() {
        return Err(ControlError::NoBudget(batch.clone()));
    }
    let budget = store.limit_budget(batch, limit).await?;
    same_unit(batch, &budget, limit)?;
    if budget.allowed != limit.allowed {
        let committed = budget.show(budget.committed).to_string();
        return Err(ControlError::AlreadyCommitted { batch: batch.clone(), committed });
    }
    Ok(budget)
}

fn same_unit(batch: &BatchId, budget: &Budget, limit: &BudgetLimit) -> Result<(), ControlError> {
    if budget.unit == limit.unit {
        return Ok(());
    }
    let budget = budget.show(budget.allowed).to_string();
    Err(ControlError::OtherUnit { batch: batch.clone(), budget })
}

/// Fails if the batch is done: all its jobs have ended, whether or not the store says so yet.
async fn refuse_finished(store: &dyn Store, id: &BatchId) -> Result<(), ControlError> {
    let Some(batch) = store.batch(id).await? else {
        return Err(ControlError::NoSuchBatch(id.clone()));
    };
    if batches::is_finished(&batch, &store.totals(id).await?) {
        batches::close(store, id).await?;
        return Err(ControlError::Done(id.clone()));
    }
    Ok(())
}

fn require_state(
    now: Option<Batch>,
    id: &BatchId,
    wanted: &[BatchState],
) -> Result<Batch, ControlError> {
    let Some(batch) = now else { return Err(ControlError::NoSuchBatch(id.clone())) };
    match batch.state {
        state if wanted.contains(&state) => Ok(batch),
        Cancelled => Err(ControlError::Cancelled(batch.id)),
        // Somebody else changed the state after us, before we read it; the later change stands.
        Done => Err(ControlError::Done(batch.id)),
        Enqueuing | Running | Paused => Ok(batch),
    }
}
