//! The `budgets` table.

use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension, params};

use super::LocalStore;
use crate::{BudgetStore, StoreError};
use domain::budget::{Budget, BudgetClaim, BudgetLimit, BudgetUnit};
use domain::job::BatchId;

#[async_trait]
impl BudgetStore for LocalStore {
    async fn limit_budget(
        &self,
        batch: &BatchId,
        limit: &BudgetLimit,
    ) -> Result<Budget, StoreError> {
        let (batch, limit) = (batch.clone(), limit.clone());
        self.write(move |c| put_limit(c, &batch, &limit)).await
    }

    async fn budget(&self, batch: &BatchId) -> Result<Option<Budget>, StoreError> {
        let batch = batch.clone();
        self.read(move |c| find(c, &batch)).await
    }

    async fn claim(
        &self,
        batch: &BatchId,
        claim: &BudgetClaim,
    ) -> Result<Option<(bool, Budget)>, StoreError> {
        let (batch, claim) = (batch.clone(), *claim);
        self.write(move |c| try_claim(c, &batch, &claim)).await
    }
}

fn find(c: &Connection, batch: &BatchId) -> rusqlite::Result<Option<Budget>> {
    let sql = "SELECT currency, allowed, committed, spent FROM budgets WHERE batch_id = ?1";
    c.prepare_cached(sql)?
        .query_row([batch.as_str()], |row| {
            let currency: Option<String> = row.get(0)?;
            Ok(Budget {
                unit: currency
                    .map_or(BudgetUnit::Tokens, |currency| BudgetUnit::Money { currency }),
                allowed: row.get(1)?,
                committed: row.get(2)?,
                spent: row.get(3)?,
            })
        })
        .optional()
}

fn put_limit(c: &Connection, batch: &BatchId, limit: &BudgetLimit) -> rusqlite::Result<Budget> {
    let budget = Budget::with_limit(find(c, batch)?, limit);
    put(c, batch, &budget)?;
    Ok(budget)
}

/// Must run in a transaction that no other write can interleave with, as all writes do.
fn try_claim(
    c: &Connection,
    batch: &BatchId,
    claim: &BudgetClaim,
) -> rusqlite::Result<Option<(bool, Budget)>> {
    let Some(budget) = find(c, batch)? else { return Ok(None) };
    let Some(after) = budget.after(claim) else { return Ok(Some((false, budget))) };
    put(c, batch, &after)?;
    Ok(Some((true, after)))
}

fn put(c: &Connection, batch: &BatchId, budget: &Budget) -> rusqlite::Result<()> {
    let currency = match &budget.unit {
        BudgetUnit::Tokens => None,
        BudgetUnit::Money { currency } => Some(currency),
    };
    c.prepare_cached(
        "INSERT OR REPLACE INTO budgets (batch_id, currency, allowed, committed, spent)
         VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![
        batch.as_str(),
        currency,
        budget.allowed,
        budget.committed,
        budget.spent
    ])?;
    Ok(())
}
