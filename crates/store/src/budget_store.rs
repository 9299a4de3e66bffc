//! Seam of the budgets: how much a batch may cost, and how much of it is committed.

use async_trait::async_trait;

use super::error::StoreError;
use domain::budget::{Budget, BudgetClaim, BudgetLimit};
use domain::job::BatchId;

/// Keeps the batches' budgets.
#[async_trait]
pub trait BudgetStore: Send + Sync {
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
}
