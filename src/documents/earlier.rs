//! What earlier nights know of tonight's documents and requests, as far as it is still in the store.

use std::collections::HashSet;

use serde_json::Value;

use super::answer;
use super::asks::{Asks, Key, State, Terms};
use super::gather::{GatherError, Reading, Standing, Tracked};
use super::ledger::{Known, Ledger, batch_of};
use super::schema::Schema;
use super::source::Listed;
use crate::job::{BatchId, JobId};
use crate::outcome::Ending;
use crate::store::Store;

/// Requests that are looked up in one call.
pub(super) const LOOKED_UP: usize = 500;

/// What earlier nights know.
pub struct Earlier<'a> {
    pub store: &'a dyn Store,
    pub ledger: &'a Ledger,
    /// Nights that were never closed.
    pub open: &'a [BatchId],
    /// Also what was refused or did not fit is asked again.
    pub retry_failed: bool,
    /// What answers must fit.
    pub schema: Option<&'a Schema>,
}

impl Earlier<'_> {
    /// Parts the listing into documents that need not be read, since their versions and all of their
    /// answers are known, and the rest.
    pub(super) async fn unchanged(
        &self,
        reading: &Reading<'_>,
        listed: Vec<Listed>,
        asks: &mut Asks,
    ) -> Result<(Vec<Tracked>, Vec<Listed>), GatherError> {
        let knows = reading.source.knows_versions()
            && self.ledger.fingerprint == reading.recipe.fingerprint();
        if !knows {
            return Ok((Vec::new(), listed));
        }
        let (mut same, mut others) = (Vec::new(), Vec::new());
        for listed in listed {
            let known = self.ledger.documents.get(&listed.name);
            let known = known.filter(|known| known.version == listed.version.as_str());
            let mut document = Tracked::new(&listed, Standing::Same);
            match known {
                Some(known) if self.end_as_before(&mut document, known, asks).await? => {
                    same.push(document);
                }
                _ => others.push(listed),
            }
        }
        Ok((same, others))
    }

    /// Takes over how a document ended, if all that it came from is still there.
    pub(super) async fn end_as_before(
        &self,
        document: &mut Tracked,
        known: &Known,
        asks: &mut Asks,
    ) -> Result<bool, GatherError> {
        let Some(keys) = self.ledger.whole(known).filter(|_| !known.parts.is_empty()) else {
            return Ok(false);
        };
        let keys: Vec<_> = keys.into_iter().collect();
        let there = self.there(&keys, asks).await?;
        if there.len() < keys.len() {
            return Ok(false);
        }
        for key in keys {
            asks.know(key, self.ledger.answers[&key].clone());
        }
        document.parts.clone_from(&known.parts);
        document.level.clone_from(&known.ends);
        document.between.clone_from(&known.between);
        Ok(true)
    }

    /// Those requests of the ledger whose outcomes are still in the store.
    async fn there(&self, keys: &[Key], asks: &Asks) -> Result<HashSet<Key>, GatherError> {
        let mut there = HashSet::new();
        let mut by_batch = vec![Vec::new(); self.ledger.batches.len()];
        for key in keys {
            let state = self.ledger.answers.get(key);
            if asks.get(key).is_some_and(|ask| ask.was_known) {
                there.insert(*key);
            } else if let Some(batch) = state.filter(|s| self.counts(s)).and_then(batch_of)
                && let Some(keys) = by_batch.get_mut(usize::from(batch))
            {
                keys.push(*key);
            }
        }
        for (batch, keys) in self.ledger.batches.iter().zip(by_batch) {
            for keys in keys.chunks(LOOKED_UP) {
                let ids: Vec<_> = keys.iter().map(|key| job_id(batch, key)).collect();
                let found = self.store.look_up(batch, &ids).await?;
                let found = keys.iter().zip(found).filter(|(_, found)| found.is_some());
                there.extend(found.map(|(key, _)| *key));
            }
        }
        Ok(there)
    }

    /// Whether what is known of a request spares asking it.
    fn counts(&self, state: &State) -> bool {
        !(self.retry_failed && matches!(state, State::Failed { .. }))
    }

    /// Asks all bodies that no night knows.
    pub(super) async fn ask_all(
        &self,
        bodies: &[Value],
        asks: &mut Asks,
        terms: &Terms,
    ) -> Result<Vec<Key>, GatherError> {
        let keys: Vec<_> = bodies.iter().map(|body| Key::of(body.to_string().as_bytes())).collect();
        let mut unknown: Vec<_> =
            keys.iter().filter(|key| asks.get(key).is_none()).copied().collect();
        self.know_of_ledger(&unknown, asks).await?;
        unknown.retain(|key| asks.get(key).is_none());
        self.know_of_open_nights(&unknown, asks).await?;
        for body in bodies {
            asks.ask(body, terms, None)?;
        }
        Ok(keys)
    }

    async fn know_of_ledger(&self, keys: &[Key], asks: &mut Asks) -> Result<(), GatherError> {
        let of_ledger = |key: &Key| self.ledger.answers.get(key).map(|state| (*key, state));
        let mut wanted: Vec<_> = keys.iter().filter_map(of_ledger).collect();
        // An answer that was mended is known with the one that mended it.
        let mended: Vec<_> = wanted
            .iter()
            .filter_map(|(_, state)| match state {
                State::Repaired { by, .. } => of_ledger(by),
                _ => None,
            })
            .collect();
        wanted.extend(mended);
        let keys: Vec<_> = wanted.iter().map(|(key, _)| *key).collect();
        let there = self.there(&keys, asks).await?;
        for (key, state) in wanted {
            let is_whole = match state {
                State::Repaired { by, .. } => there.contains(by),
                _ => true,
            };
            if is_whole && there.contains(&key) {
                asks.know(key, state.clone());
            }
        }
        Ok(())
    }

    /// What a night that was never closed has answered; the rest of it is asked again.
    async fn know_of_open_nights(&self, keys: &[Key], asks: &mut Asks) -> Result<(), GatherError> {
        for (n, batch) in self.open.iter().enumerate() {
            let place = u16::try_from(self.ledger.batches.len() + n).unwrap_or(u16::MAX);
            for key in
                keys.iter().filter(|key| asks.get(key).is_none()).copied().collect::<Vec<_>>()
            {
                let Some(outcome) = self.store.outcome(batch, job_id(batch, &key)).await? else {
                    continue;
                };
                let text = answer::text(&outcome);
                let fits = self.schema.is_none_or(|schema| {
                    text.as_deref().is_some_and(|text| schema.read(text).is_ok())
                });
                if outcome.ending == Ending::Succeeded && fits {
                    let usage = Some(outcome.usage);
                    asks.know(key, State::Answered { batch: place, usage });
                }
            }
        }
        Ok(())
    }
}

/// A request's name in the queue and the store.
pub(super) fn job_id(batch: &BatchId, key: &Key) -> JobId {
    JobId::new(batch, &key.to_string())
}
