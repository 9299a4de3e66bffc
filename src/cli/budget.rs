//! Flags for a batch's budget.

use super::exit::CommandError;
use super::output::say;
use control;
use domain::budget::BudgetLimit;
use domain::job::BatchId;
use domain::prices::Prices;
use store::Store;

#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(super) struct BudgetFlags {
    /// Most that the batch may cost, in the price table's currency; then it is paused
    #[arg(long, value_name = "AMOUNT", conflicts_with = "token_budget")]
    budget: Option<f64>,
    /// Most tokens that the batch may use; then it is paused
    #[arg(long, value_name = "N")]
    token_budget: Option<u64>,
}

impl BudgetFlags {
    pub(super) fn is_given(self) -> bool {
        self.budget.is_some() || self.token_budget.is_some()
    }

    /// Returns whether the budget is of money, so that every call needs a price.
    pub(super) fn is_money(self) -> bool {
        self.budget.is_some()
    }

    pub(super) fn limit(self, prices: &Prices) -> Result<Option<BudgetLimit>, CommandError> {
        let money = self.budget.map(|amount| BudgetLimit::money(amount, &prices.currency));
        let tokens = || self.token_budget.map(BudgetLimit::tokens);
        money.or_else(tokens).transpose().map_err(CommandError::usage)
    }

    /// Sets the batch's budget, before any of its jobs is sent.
    pub(super) async fn apply(
        self,
        store: &dyn Store,
        batch: &BatchId,
        prices: &Prices,
    ) -> Result<(), CommandError> {
        let Some(limit) = self.limit(prices)? else { return Ok(()) };
        let budget = control::give_budget(store, batch, &limit).await?;
        if budget.allowed != limit.allowed {
            let flag = if self.budget.is_some() { "--budget" } else { "--token-budget" };
            let flag = format!("{flag} {}", budget.show(limit.allowed).without_unit());
            say(&format!(
                "note: batch {batch} keeps its budget of {}; `promptmill resume {batch} {flag}` \
                 changes it",
                budget.show(budget.allowed)
            ));
        }
        Ok(())
    }
}
