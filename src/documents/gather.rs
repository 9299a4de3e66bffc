//! Documents become requests: listed, read as far as they are not known, cut, and put into the template.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value};

use super::answer;
use super::asks::{Asks, Key, State, Terms};
use super::ledger::{Known, Ledger};
use super::parts::{Part, parts};
use super::read::{self, Limits};
use super::recipe::Recipe;
use super::schema::Schema;
use super::source::{Listed, Source, SourceError};
use super::template::{About, TemplateError, Templates};
use crate::job::{BatchId, JobId};
use crate::outcome::Ending;
use crate::store::{Store, StoreError};

/// Documents that are fetched and read at the same time.
const AT_A_TIME: usize = 4;

/// Requests that are looked up in one call.
pub(super) const LOOKED_UP: usize = 500;

/// How a document stands beside the last night.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    New,
    Changed,
    Same,
}

impl Standing {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Changed => "changed",
            Self::Same => "same",
        }
    }
}

/// A document on its way through the night.
#[derive(Debug)]
pub struct Tracked {
    pub name: String,
    pub version: String,
    pub standing: Standing,
    /// Why nothing can be asked about it.
    pub unread: Option<String>,
    /// For the templates of `[reduce]`.
    pub metadata: Map<String, Value>,
    /// What is asked about its parts.
    pub parts: Vec<Key>,
    /// What its answers are to come from: its parts, or what combines them.
    pub level: Vec<Key>,
    /// How often they were combined.
    pub depth: u32,
    /// What was asked before that.
    pub between: Vec<Key>,
}

/// Why no night can be made of the documents.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("can't write down what is asked: {0}")]
    Scratch(#[from] std::io::Error),
    #[error("a task that reads a document panicked; its message is above")]
    Panicked,
}

/// Where documents come from and how they are read.
pub struct Reading<'a> {
    pub source: &'a Source,
    pub recipe: &'a Arc<Recipe>,
    /// The program that reads what may break its reader.
    pub reader: &'a Path,
    pub limits: &'a Limits,
    pub scratch: PathBuf,
}

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

/// A document as it was read.
struct Prepared {
    listed: Listed,
    bodies: Result<(Vec<Value>, Map<String, Value>), String>,
}

impl Reading<'_> {
    /// All documents that the recipe wants, by name.
    ///
    /// # Errors
    /// If the source can't be listed.
    pub async fn list(&self) -> Result<Vec<Listed>, SourceError> {
        self.source.list(&self.recipe.include, &self.recipe.exclude).await
    }

    /// The request bodies of one document, or why there are none.
    ///
    /// # Errors
    /// If that is not the document's fault.
    async fn prepare(&self, listed: Listed) -> Result<Prepared, GatherError> {
        let limit = self.recipe.max_file_mib << 20;
        let fetched = match self.source.fetch(&listed, limit, &self.scratch).await {
            Ok(fetched) => fetched,
            Err(error) if error.is_the_documents() => {
                return Ok(Prepared { listed, bodies: Err(error.to_string()) });
            }
            Err(error) => return Err(error.into()),
        };
        let read = read::read_apart(self.reader, &fetched, &listed.name, self.limits).await;
        let document = match read {
            Ok(document) => document,
            Err(error) => return Ok(Prepared { listed, bodies: Err(error.to_string()) }),
        };
        let recipe = self.recipe.clone();
        let work = tokio::task::spawn_blocking(move || {
            let metadata = document.metadata.clone();
            let parts = parts(document, &recipe);
            let bodies = bodies(&recipe, &listed.name, &metadata, &parts);
            (listed, bodies.map(|bodies| (bodies, metadata)))
        });
        let (listed, bodies) = work.await.map_err(|_| GatherError::Panicked)?;
        let bodies = match bodies {
            Ok((bodies, _)) if bodies.is_empty() => Err("holds no rows".to_owned()),
            Ok(found) => Ok(found),
            Err(error) => Err(error.to_string()),
        };
        Ok(Prepared { listed, bodies })
    }

    /// The first `count` documents with their request bodies, in the order of their names.
    ///
    /// # Errors
    /// If the source can't be listed or read.
    pub async fn preview(
        &self,
        count: usize,
    ) -> Result<Vec<(String, Result<Vec<Value>, String>)>, GatherError> {
        let listed = self.list().await?.into_iter().take(count);
        let prepared = stream::iter(listed).map(|listed| self.prepare(listed)).buffered(AT_A_TIME);
        let named = prepared
            .map_ok(|Prepared { listed, bodies }| (listed.name, bodies.map(|(bodies, _)| bodies)));
        named.try_collect().await
    }
}

fn bodies(
    recipe: &Recipe,
    document: &str,
    metadata: &Map<String, Value>,
    parts: &[Part],
) -> Result<Vec<Value>, TemplateError> {
    let templates = Templates::new(recipe)?;
    let about = About { document, metadata };
    let body = |(n, part)| templates.about_part(&about, part, (n + 1, parts.len()));
    parts.iter().enumerate().map(body).collect()
}

/// Goes through all documents: what is known is taken over into `asks`, the rest is asked there. `seen`
/// hears how many are done.
///
/// # Errors
/// If the source, the store or the disk fails; a document's own fault is in the result.
pub async fn gather(
    reading: &Reading<'_>,
    earlier: &Earlier<'_>,
    asks: &mut Asks,
    terms: &Terms,
    seen: impl Fn(usize, usize),
) -> Result<Vec<Tracked>, GatherError> {
    let listed = reading.list().await?;
    let all = listed.len();
    let mut tracked = Vec::with_capacity(all);
    let (same, others) = earlier.unchanged(reading, listed, asks).await?;
    tracked.extend(same);
    seen(tracked.len(), all);
    let mut prepared =
        stream::iter(others).map(|listed| reading.prepare(listed)).buffered(AT_A_TIME);
    while let Some(Prepared { listed, bodies }) = prepared.try_next().await? {
        let known = earlier.ledger.documents.get(&listed.name);
        let standing = if known.is_some() { Standing::Changed } else { Standing::New };
        let mut document = Tracked::new(&listed, standing);
        match bodies {
            Err(why) => document.unread = Some(why),
            Ok((bodies, metadata)) => {
                let terms = Terms { document: listed.name.clone(), ..terms.clone() };
                document.parts = earlier.ask_all(&bodies, asks, &terms).await?;
                document.level = document.parts.clone();
                if let Some(known) = known.filter(|known| known.parts == document.parts) {
                    document.standing = Standing::Same;
                    earlier.end_as_before(&mut document, known, asks).await?;
                }
                if reading.recipe.reduce.is_some() && document.level.len() > 1 {
                    document.metadata = metadata;
                }
            }
        }
        tracked.push(document);
        seen(tracked.len(), all);
    }
    tracked.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tracked)
}

impl Tracked {
    fn new(listed: &Listed, standing: Standing) -> Self {
        Self {
            name: listed.name.clone(),
            version: listed.version.to_string(),
            standing,
            unread: None,
            metadata: Map::new(),
            parts: Vec::new(),
            level: Vec::new(),
            depth: 0,
            between: Vec::new(),
        }
    }

    /// What the ledger is to know of it.
    pub fn known(&self) -> Known {
        Known {
            version: self.version.clone(),
            parts: self.parts.clone(),
            ends: self.level.clone(),
            between: self.between.clone(),
        }
    }
}

impl Earlier<'_> {
    /// Parts the listing into documents that need not be read, since their versions and all of their
    /// answers are known, and the rest.
    async fn unchanged(
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
    async fn end_as_before(
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
            } else if let Some(batch) =
                state.filter(|s| self.counts(s)).and_then(super::ledger::batch_of)
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
