//! The flags that say what a batch may cost, and what is to be checked before it is enqueued.

use super::{Failure, say};
use crate::config::{Config, Deployment};
use control;
use domain::budget::{BadLimit, Limit};
use domain::job::BatchId;
use domain::prices::Prices;
use store::Store;

#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct BudgetFlags {
    /// What the batch may cost at the most, in the price table's currency; then it is paused
    #[arg(long, value_name = "AMOUNT", conflicts_with = "token_budget")]
    budget: Option<f64>,
    /// What the batch may take at the most, in tokens; then it is paused
    #[arg(long, value_name = "N")]
    token_budget: Option<u64>,
}

impl BudgetFlags {
    pub(super) fn is_given(self) -> bool {
        self.budget.is_some() || self.token_budget.is_some()
    }

    pub(super) fn limit(self, prices: &Prices) -> Result<Option<Limit>, Failure> {
        let money = self.budget.map(|amount| Limit::money(amount, &prices.currency));
        let tokens = || self.token_budget.map(Limit::tokens);
        money.or_else(tokens).transpose().map_err(|error: BadLimit| Failure::usage(error))
    }

    /// Gives the batch its budget, before any of its jobs is sent.
    pub(super) async fn give(
        self,
        store: &dyn Store,
        batch: &BatchId,
        prices: &Prices,
    ) -> Result<(), Failure> {
        let Some(limit) = self.limit(prices)? else { return Ok(()) };
        let budget = control::give_budget(store, batch, &limit).await?;
        if budget.allowed != limit.allowed {
            let flag = if self.budget.is_some() { "--budget" } else { "--token-budget" };
            let flag = format!("{flag} {}", budget.show(limit.allowed).bare());
            say(&format!(
                "note: batch {batch} keeps its budget of {}; `promptmill resume {batch} {flag}` \
                 changes it",
                budget.show(budget.allowed)
            ));
        }
        Ok(())
    }

    /// Sees that the price of every call will be known.
    pub(super) fn check_prices<'m>(
        self,
        models: impl IntoIterator<Item = &'m String>,
        config: &Config,
        prices: &Prices,
    ) -> Result<(), Failure> {
        if self.budget.is_none() {
            return Ok(());
        }
        for model in models {
            let serving = config.deployments.iter().filter(|d| d.serves(model));
            let mut unpriced = serving.filter(|d| !d.has_price(model, prices));
            let unpriced = unpriced.next().map(Deployment::shown_name);
            let is_any_here = !config.deployments.is_empty();
            if unpriced.is_some() || (!is_any_here && prices.of(model).is_none()) {
                let message = prices.lacks(model, unpriced.as_deref());
                return Err(Failure::usage(anyhow::anyhow!(message)));
            }
        }
        Ok(())
    }
}
