//! What earlier nights know of tonight's documents and requests, as far as it is still in the store.

use serde_json::Value;

use super::answer;
use super::asks::{Asks, Key, State, Terms};
use super::gather::{GatherError, Reading, Standing, Tracked};
use super::ledger::{Known, Ledger, batch_of};
use super::schema::Schema;
use super::source::Listed;
use domain::job::BatchId;
use domain::outcome::Ending;
use store::{Recorded, Store, StoreError};

/// Requests that are looked up in one call.
pub(super) const LOOKED_UP: usize = 500;

/// What earlier nights know.
pub struct Earlier<'a> {
    pub store: &'a dyn Store,
    /// [`confirm`]ed.
    pub ledger: &'a Ledger,
    /// Nights that were never closed.
    pub open: &'a [BatchId],
    /// What answers must fit.
    pub schema: Option<&'a Schema>,
}

/// Takes out of a ledger what is not in the store any more, and with `retry_failed` also what was
/// refused or did not fit: it is asked again.
///
/// # Errors
/// What the store said.
pub async fn confirm(
    ledger: &mut Ledger,
    store: &dyn Store,
    retry_failed: bool,
) -> Result<(), StoreError> {
    if retry_failed {
        ledger.answers.retain(|_, state| !matches!(state, State::Failed { .. }));
    }
    let mut by_batch = vec![Vec::new(); ledger.batches.len()];
    for (key, state) in &ledger.answers {
        let keys = batch_of(state).and_then(|batch| by_batch.get_mut(usize::from(batch)));
        keys.into_iter().for_each(|keys| keys.push(*key));
    }
    for (batch, keys) in ledger.batches.iter().zip(by_batch) {
        for keys in keys.chunks(LOOKED_UP) {
            let found = look_up(store, batch, keys).await?;
            for (key, _) in keys.iter().zip(found).filter(|(_, found)| found.is_none()) {
                ledger.answers.remove(key);
            }
        }
    }
    Ok(())
}

impl Earlier<'_> {
    /// Parts the listing into documents that need not be read, since their versions and all of their
    /// answers are known, and the rest.
    pub(super) fn unchanged(
        &self,
        reading: &Reading<'_>,
        listed: Vec<Listed>,
        asks: &mut Asks,
    ) -> (Vec<Tracked>, Vec<Listed>) {
        let knows = reading.source.knows_versions()
            && self.ledger.fingerprint == reading.recipe.fingerprint();
        if !knows {
            return (Vec::new(), listed);
        }
        let (mut same, mut others) = (Vec::new(), Vec::new());
        for listed in listed {
            let known = self.ledger.documents.get(&listed.name);
            let known = known.filter(|known| known.version == listed.version.as_str());
            let mut document = Tracked::new(&listed, Standing::Same);
            match known {
                Some(known) if self.end_as_before(&mut document, known, asks) => {
                    same.push(document);
                }
                _ => others.push(listed),
            }
        }
        (same, others)
    }

    /// Takes over how a document ended, if all that it came from is known.
    pub(super) fn end_as_before(
        &self,
        document: &mut Tracked,
        known: &Known,
        asks: &mut Asks,
    ) -> bool {
        let Some(keys) = self.ledger.whole(known).filter(|_| !known.parts.is_empty()) else {
            return false;
        };
        for key in keys {
            asks.know(key, self.ledger.answers[&key].clone());
        }
        document.parts.clone_from(&known.parts);
        document.level.clone_from(&known.ends);
        document.between.clone_from(&known.between);
        true
    }

    /// Asks all bodies that no night knows.
    pub(super) async fn ask_all(
        &self,
        bodies: &[Value],
        asks: &mut Asks,
        terms: &Terms,
    ) -> Result<Vec<Key>, GatherError> {
        let keys: Vec<_> = bodies.iter().map(|body| Key::of(body.to_string().as_bytes())).collect();
        keys.iter().for_each(|key| self.know(*key, asks));
        if !self.open.is_empty() {
            let unknown: Vec<_> =
                keys.iter().filter(|key| asks.get(key).is_none()).copied().collect();
            self.know_of_open_nights(&unknown, asks).await?;
        }
        for body in bodies {
            asks.ask(body, terms, None)?;
        }
        Ok(keys)
    }

    /// Takes over what the ledger knows of a request: an answer that was mended with the one that
    /// mended it, or not at all.
    fn know(&self, key: Key, asks: &mut Asks) {
        let Some(state) = self.ledger.answers.get(&key) else { return };
        if let State::Repaired { by, .. } = state {
            let Some(mended) = self.ledger.answers.get(by) else { return };
            asks.know(*by, mended.clone());
        }
        asks.know(key, state.clone());
    }

    /// What a night that was never closed has answered; the rest of it is asked again.
    async fn know_of_open_nights(&self, keys: &[Key], asks: &mut Asks) -> Result<(), StoreError> {
        for (n, batch) in self.open.iter().enumerate() {
            let place = u16::try_from(self.ledger.batches.len() + n).unwrap_or(u16::MAX);
            for keys in keys.chunks(LOOKED_UP) {
                let found = look_up(self.store, batch, keys).await?;
                let succeeded = keys.iter().zip(found).filter(|(_, found)| {
                    found.is_some_and(|found| found.ending() == Ending::Succeeded)
                });
                for (key, _) in succeeded {
                    let name = key.to_string();
                    let Some(outcome) = self.store.outcome(batch, &name).await? else { continue };
                    let text = answer::text(&outcome);
                    let fits = self.schema.is_none_or(|schema| {
                        text.as_deref().is_some_and(|text| schema.read(text).is_ok())
                    });
                    if fits {
                        let usage = Some(outcome.usage);
                        asks.know(*key, State::Answered { batch: place, usage });
                    }
                }
            }
        }
        Ok(())
    }
}

/// Looks requests up: their jobs are named by their keys.
pub(super) async fn look_up(
    store: &dyn Store,
    batch: &BatchId,
    keys: &[Key],
) -> Result<Vec<Option<Recorded>>, StoreError> {
    let names: Vec<_> = keys.iter().map(Key::to_string).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    store.look_up(batch, &names).await
}
