//! A batch's budget: one small item in a logical partition of its own, beside the outcomes.
//!
//! Every change is conditional on the version that was read, so that none is lost. A change whose
//! response was lost must not be repeated: an amount given back twice would be spent twice. So the
//! item remembers its last writes.

use async_trait::async_trait;
use azure_data_cosmos::options::{
    ItemReadOptions, ItemWriteOptions, Precondition, ReadConsistencyStrategy,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::calls::{CallBackoff, CallPurpose, PointResult, decode_item};
use super::request_units::CosmosOperation;
use super::{CosmosInner, CosmosStore};
use crate::{BudgetStore, StoreError};
use domain::budget::{Budget, BudgetClaim, BudgetLimit, BudgetUnit};
use domain::job::BatchId;

const GET: CallPurpose = CallPurpose(CosmosOperation::Budgets, "reading a budget");
const PUT: CallPurpose = CallPurpose(CosmosOperation::Budgets, "writing a budget");

/// Id within its partition, which is the batch's own.
const ID: &str = "budget";

/// Writes that an item remembers.
const REMEMBERED: usize = 32;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BudgetItem {
    id: String,
    pk: String,
    /// `None` means tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    currency: Option<String>,
    allowed: u64,
    committed: u64,
    spent: u64,
    /// Ids of the last writes, the latest last.
    writes: Vec<Uuid>,
}

impl BudgetItem {
    fn new(pk: String, budget: &Budget, writes: Vec<Uuid>) -> Self {
        let currency = match &budget.unit {
            BudgetUnit::Tokens => None,
            BudgetUnit::Money { currency } => Some(currency.clone()),
        };
        let Budget { allowed, committed, spent, .. } = *budget;
        Self { id: ID.into(), pk, currency, allowed, committed, spent, writes }
    }

    fn budget(&self) -> Budget {
        let unit = |currency: &String| BudgetUnit::Money { currency: currency.clone() };
        Budget {
            unit: self.currency.as_ref().map_or(BudgetUnit::Tokens, unit),
            allowed: self.allowed,
            committed: self.committed,
            spent: self.spent,
        }
    }
}

/// Ignores the consistency setting: a worker that misses a new budget would spend without it.
fn newest() -> ItemReadOptions {
    let mut options = ItemReadOptions::default();
    options.operation.read_consistency_strategy = Some(ReadConsistencyStrategy::LatestCommitted);
    options
}

/// Returns whether our change was made, from the item's remembered writes and the last write seen
/// at our attempt; `None` if unknown, since so many wrote meanwhile.
fn was_written(writes: &[Uuid], ours: Uuid, last_when_tried: Option<Uuid>) -> Option<bool> {
    if writes.contains(&ours) {
        return Some(true);
    }
    last_when_tried.is_none_or(|last| writes.contains(&last)).then_some(false)
}

/// Partition of a batch's budget; never that of a shard, which are numbers.
fn budget_partition(batch: &BatchId) -> String {
    format!("{batch}|budget")
}

#[async_trait]
impl BudgetStore for CosmosStore {
    async fn limit_budget(
        &self,
        batch: &BatchId,
        limit: &BudgetLimit,
    ) -> Result<Budget, StoreError> {
        let change = |old: Option<Budget>| Some(Budget::with_limit(old, limit));
        // Always changed, so always there.
        let (_, budget) = self.inner.change_budget(batch, false, change).await?;
        Ok(budget.unwrap_or_else(|| Budget::with_limit(None, limit)))
    }

    async fn budget(&self, batch: &BatchId) -> Result<Option<Budget>, StoreError> {
        let pk = budget_partition(batch);
        let read = || self.inner.outcomes.read_item(pk.clone(), ID, Some(newest()));
        match self.inner.calls.call_unpaced(GET, read).await? {
            PointResult::Done(response) => {
                Ok(Some(decode_item::<BudgetItem>(GET, response)?.budget()))
            }
            PointResult::NotFound(_) | PointResult::Conflict | PointResult::PreconditionFailed => {
                Ok(None)
            }
        }
    }

    async fn claim(
        &self,
        batch: &BatchId,
        claim: &BudgetClaim,
    ) -> Result<Option<(bool, Budget)>, StoreError> {
        let change = |old: Option<Budget>| old.and_then(|old| old.after(claim));
        // If unknown, a give-back counts as done and a take as not: too much may stay committed,
        // never too little.
        let if_unknown = claim.take <= 0;
        let (changed, budget) = self.inner.change_budget(batch, if_unknown, change).await?;
        Ok(budget.map(|budget| (changed, budget)))
    }
}

impl CosmosInner {
    /// Changes the budget once, if `change` does; returns whether, and the resulting budget.
    async fn change_budget(
        &self,
        batch: &BatchId,
        if_unknown: bool,
        change: impl Fn(Option<Budget>) -> Option<Budget>,
    ) -> Result<(bool, Option<Budget>), StoreError> {
        let (pk, write) = (budget_partition(batch), Uuid::new_v4());
        let mut others = CallBackoff::new(self.calls.patience);
        let mut last_seen = None;
        loop {
            let read = || self.outcomes.read_item(pk.clone(), ID, Some(newest()));
            let (old, etag) = match self.calls.call_unpaced(GET, read).await? {
                PointResult::Done(response) => {
                    let etag = response.headers().etag().cloned();
                    (Some(decode_item::<BudgetItem>(GET, response)?), etag)
                }
                _ => (None, None),
            };
            let writes = old.as_ref().map(|item| item.writes.clone()).unwrap_or_default();
            let budget = old.as_ref().map(BudgetItem::budget);
            match was_written(&writes, write, last_seen) {
                Some(true) => return Ok((true, budget)),
                None => return Ok((if_unknown, budget)),
                Some(false) => {}
            }
            let Some(after) = change(budget.clone()) else { return Ok((false, budget)) };
            last_seen = writes.last().copied();
            let kept = writes.len().saturating_sub(REMEMBERED - 1);
            let writes = writes[kept..].iter().copied().chain([write]).collect();
            let item = BudgetItem::new(pk.clone(), &after, writes);
            let written = match etag {
                Some(etag) => {
                    let options =
                        ItemWriteOptions::default().with_precondition(Precondition::if_match(etag));
                    let replace =
                        || self.outcomes.replace_item(pk.clone(), ID, &item, Some(options.clone()));
                    self.calls.call_unpaced(PUT, replace).await?
                }
                None => {
                    let create = || self.outcomes.create_item(pk.clone(), ID, &item, None);
                    self.calls.call_unpaced(PUT, create).await?
                }
            };
            if written.written(PUT)? {
                return Ok((true, Some(after)));
            }
            others.wait_for_others(PUT.1).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_whose_answer_was_lost_is_found_by_who_wrote() {
        let id = |n: u32| Uuid::from_u128(n.into());
        let writes: Vec<_> = (1..5).map(id).collect();
        assert_eq!(was_written(&writes, id(3), Some(id(2))), Some(true));
        assert_eq!(was_written(&writes, id(9), Some(id(2))), Some(false));
        assert_eq!(was_written(&writes, id(9), Some(id(0))), None, "2 and others were forgotten");
        assert_eq!(was_written(&writes, id(9), None), Some(false), "not tried yet");
    }
}
