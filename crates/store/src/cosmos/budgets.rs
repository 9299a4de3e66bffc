//! A batch's budget: one small item in a logical partition of its own, beside the outcomes.
//!
//! Every change is made against the version that was read, so that none is lost. A change whose
//! answer was lost must not be made again: what was given back twice would be spent twice. So the item
//! remembers who wrote it last.

use azure_data_cosmos::options::{
    ItemReadOptions, ItemWriteOptions, Precondition, ReadConsistencyStrategy,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Inner;
use super::calls::{Answer, Purpose, Trouble, body};
use super::units::Operation;
use crate::StoreError;
use domain::budget::{Budget, Claim, Limit, Unit};
use domain::job::BatchId;

const GET: Purpose = Purpose(Operation::Budgets, "reading a budget");
const PUT: Purpose = Purpose(Operation::Budgets, "writing a budget");

/// Within its partition, which is the batch's own.
const ID: &str = "budget";

/// Writes that an item remembers.
const REMEMBERED: usize = 32;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BudgetItem {
    id: String,
    pk: String,
    /// None: tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    currency: Option<String>,
    allowed: u64,
    committed: u64,
    spent: u64,
    /// The latest last.
    writes: Vec<Uuid>,
}

impl BudgetItem {
    fn new(pk: String, budget: &Budget, writes: Vec<Uuid>) -> Self {
        let currency = match &budget.unit {
            Unit::Tokens => None,
            Unit::Money { currency } => Some(currency.clone()),
        };
        let Budget { allowed, committed, spent, .. } = *budget;
        Self { id: ID.into(), pk, currency, allowed, committed, spent, writes }
    }

    fn budget(&self) -> Budget {
        let unit = |currency: &String| Unit::Money { currency: currency.clone() };
        Budget {
            unit: self.currency.as_ref().map_or(Unit::Tokens, unit),
            allowed: self.allowed,
            committed: self.committed,
            spent: self.spent,
        }
    }
}

/// Whatever consistency is set: a worker that does not see a new budget would spend without it.
fn newest() -> ItemReadOptions {
    let mut options = ItemReadOptions::default();
    options.operation.read_consistency_strategy = Some(ReadConsistencyStrategy::LatestCommitted);
    options
}

/// Whether our change was made, by what an item remembers now and whose write was the last when we
/// tried: true, false, or (`None`) nobody knows, since so many wrote meanwhile.
fn was_made(writes: &[Uuid], ours: Uuid, last_when_tried: Option<Uuid>) -> Option<bool> {
    if writes.contains(&ours) {
        return Some(true);
    }
    last_when_tried.is_none_or(|last| writes.contains(&last)).then_some(false)
}

/// The name of no shard, which are numbers.
fn partition(batch: &BatchId) -> String {
    format!("{batch}|budget")
}

impl Inner {
    pub(super) async fn budget(&self, batch: &BatchId) -> Result<Option<Budget>, StoreError> {
        let pk = partition(batch);
        let read = || self.outcomes.read_item(pk.clone(), ID, Some(newest()));
        match self.calls.at_once(GET, read).await? {
            Answer::Done(response) => Ok(Some(body::<BudgetItem>(GET, response)?.budget())),
            Answer::NotFound(_) | Answer::Conflict | Answer::Changed => Ok(None),
        }
    }

    pub(super) async fn limit_budget(
        &self,
        batch: &BatchId,
        limit: &Limit,
    ) -> Result<Budget, StoreError> {
        let change = |old: Option<Budget>| Some(Budget::renewed(old, limit));
        // Always changed, so always there.
        let (_, budget) = self.change_budget(batch, false, change).await?;
        Ok(budget.unwrap_or_else(|| Budget::renewed(None, limit)))
    }

    pub(super) async fn claim(
        &self,
        batch: &BatchId,
        claim: &Claim,
    ) -> Result<Option<(bool, Budget)>, StoreError> {
        let change = |old: Option<Budget>| old.and_then(|old| old.after(claim));
        // Where nobody knows, what was given back stays so, and what was taken was not: too much may stay
        // committed, never too little.
        let if_unknown = claim.take <= 0;
        let (changed, budget) = self.change_budget(batch, if_unknown, change).await?;
        Ok(budget.map(|budget| (changed, budget)))
    }

    /// Changes the budget once, if `change` will; tells whether it did, and how the budget stands.
    async fn change_budget(
        &self,
        batch: &BatchId,
        if_unknown: bool,
        change: impl Fn(Option<Budget>) -> Option<Budget>,
    ) -> Result<(bool, Option<Budget>), StoreError> {
        let (pk, write) = (partition(batch), Uuid::new_v4());
        let mut others = Trouble::new(self.calls.patience);
        let mut last_seen = None;
        loop {
            let read = || self.outcomes.read_item(pk.clone(), ID, Some(newest()));
            let (old, etag) = match self.calls.at_once(GET, read).await? {
                Answer::Done(response) => {
                    let etag = response.headers().etag().cloned();
                    (Some(body::<BudgetItem>(GET, response)?), etag)
                }
                _ => (None, None),
            };
            let writes = old.as_ref().map(|item| item.writes.clone()).unwrap_or_default();
            let budget = old.as_ref().map(BudgetItem::budget);
            match was_made(&writes, write, last_seen) {
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
                    self.calls.at_once(PUT, replace).await?
                }
                None => {
                    let create = || self.outcomes.create_item(pk.clone(), ID, &item, None);
                    self.calls.at_once(PUT, create).await?
                }
            };
            if written.made(PUT)? {
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
        assert_eq!(was_made(&writes, id(3), Some(id(2))), Some(true));
        assert_eq!(was_made(&writes, id(9), Some(id(2))), Some(false));
        assert_eq!(was_made(&writes, id(9), Some(id(0))), None, "2 and others were forgotten");
        assert_eq!(was_made(&writes, id(9), None), Some(false), "not tried yet");
    }
}
