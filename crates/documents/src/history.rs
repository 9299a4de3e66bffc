//! Records of earlier nights on tonight's documents and requests, as far as still in the store.

use serde_json::Value;

use super::answer;
use super::document::NightDocument;
use super::error::CollectError;
use super::ledger::{LedgerDocument, NightLedger, batch_of};
use super::requests::{NightRequests, RequestKey, RequestState, RequestTags};
use super::schema::AnswerSchema;
use domain::job::BatchId;
use domain::outcome::OutcomeStatus;
use store::{Recorded, Store, StoreError};

/// Requests looked up in one call.
pub(super) const LOOKUP_CHUNK: usize = 500;

/// Records of earlier nights.
pub struct NightHistory<'a> {
    /// Pruned by [`prune_ledger`].
    pub ledger: &'a NightLedger,
    /// Nights that were never closed, if there are any.
    pub unclosed: Option<UnclosedNights<'a>>,
    /// Schema that answers must fit.
    pub schema: Option<&'a AnswerSchema>,
}

/// Nights whose answers are in the store and in no ledger.
pub struct UnclosedNights<'a> {
    pub store: &'a dyn Store,
    pub batches: &'a [BatchId],
}

/// Removes answers from a ledger that are not in the store any more, and with `retry_failed` also
/// failed ones, so that they are requested again.
///
/// # Errors
/// If the store fails.
pub async fn prune_ledger(
    ledger: &mut NightLedger,
    store: &dyn Store,
    retry_failed: bool,
) -> Result<(), StoreError> {
    if retry_failed {
        ledger.answers.retain(|_, state| !matches!(state, RequestState::Failed { .. }));
    }
    let mut by_batch = vec![Vec::new(); ledger.batches.len()];
    for (key, state) in &ledger.answers {
        let keys = batch_of(state).and_then(|batch| by_batch.get_mut(usize::from(batch)));
        keys.into_iter().for_each(|keys| keys.push(*key));
    }
    for (batch, keys) in ledger.batches.iter().zip(by_batch) {
        for keys in keys.chunks(LOOKUP_CHUNK) {
            let found = look_up(store, batch, keys).await?;
            for (key, _) in keys.iter().zip(found).filter(|(_, found)| found.is_none()) {
                ledger.answers.remove(key);
            }
        }
    }
    Ok(())
}

impl NightHistory<'_> {
    /// Reuses a document's earlier result, if all of its requests are known.
    pub(super) fn reuse_answers(
        &self,
        document: &mut NightDocument,
        known: &LedgerDocument,
        requests: &mut NightRequests,
    ) -> bool {
        let Some(keys) = self.ledger.complete_keys(known).filter(|_| !known.parts.is_empty())
        else {
            return false;
        };
        for key in keys {
            requests.reuse(key, self.ledger.answers[&key].clone());
        }
        document.parts.clone_from(&known.parts);
        document.level.clone_from(&known.ends);
        document.between.clone_from(&known.between);
        true
    }

    /// Adds the requests of all bodies that no earlier night answered, and reuses the others.
    pub(super) async fn request_all(
        &self,
        bodies: &[Value],
        requests: &mut NightRequests,
        tags: &RequestTags,
    ) -> Result<Vec<RequestKey>, CollectError> {
        let keys: Vec<_> =
            bodies.iter().map(|body| RequestKey::of(body.to_string().as_bytes())).collect();
        keys.iter().for_each(|key| self.reuse_known(*key, requests));
        if let Some(unclosed) = &self.unclosed {
            let unknown: Vec<_> =
                keys.iter().filter(|key| requests.get(key).is_none()).copied().collect();
            self.reuse_unclosed(unclosed, &unknown, requests).await?;
        }
        for body in bodies {
            requests.add(body, tags, None)?;
        }
        Ok(keys)
    }

    /// Reuses the ledger's state of a request; a repaired answer only together with its repair.
    fn reuse_known(&self, key: RequestKey, requests: &mut NightRequests) {
        let Some(state) = self.ledger.answers.get(&key) else { return };
        if let RequestState::Repaired { by, .. } = state {
            let Some(repaired) = self.ledger.answers.get(by) else { return };
            requests.reuse(*by, repaired.clone());
        }
        requests.reuse(key, state.clone());
    }

    /// Reuses the answers of nights that were never closed; their other requests are made again.
    async fn reuse_unclosed(
        &self,
        unclosed: &UnclosedNights<'_>,
        keys: &[RequestKey],
        requests: &mut NightRequests,
    ) -> Result<(), StoreError> {
        for (n, batch) in unclosed.batches.iter().enumerate() {
            let place = u16::try_from(self.ledger.batches.len() + n).unwrap_or(u16::MAX);
            for keys in keys.chunks(LOOKUP_CHUNK) {
                let found = look_up(unclosed.store, batch, keys).await?;
                let succeeded = keys.iter().zip(found).filter(|(_, found)| {
                    found.is_some_and(|found| found.ending() == OutcomeStatus::Succeeded)
                });
                for (key, _) in succeeded {
                    let name = key.to_string();
                    let Some(outcome) = unclosed.store.outcome(batch, &name).await? else {
                        continue;
                    };
                    let text = answer::text(&outcome);
                    let fits = self.schema.is_none_or(|schema| {
                        text.as_deref().is_some_and(|text| schema.parse_answer(text).is_ok())
                    });
                    if fits {
                        let usage = Some(outcome.usage);
                        requests.reuse(*key, RequestState::Answered { batch: place, usage });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Looks requests up; their jobs are named by their keys.
pub(super) async fn look_up(
    store: &dyn Store,
    batch: &BatchId,
    keys: &[RequestKey],
) -> Result<Vec<Option<Recorded>>, StoreError> {
    let names: Vec<_> = keys.iter().map(RequestKey::to_string).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    store.look_up(batch, &names).await
}
