//! Documents become requests: listed, read as far as they are not known, cut, and put into the template.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value};

use super::asks::{Asks, Key, Terms};
use super::earlier::Earlier;
use super::ledger::Known;
use super::parts::{Part, parts};
use super::recipe::Recipe;
use super::source::{Listed, Source, SourceError};
use super::template::{About, TemplateError, Templates};
use reader::{self, Limits};
use store::StoreError;

/// Documents that are fetched and read at the same time, at most: each may take the memory of its
/// limits, and a core.
const AT_A_TIME: usize = 4;

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
        let read = reader::read_apart(self.reader, &fetched, &listed.name, self.limits).await;
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
        let prepared =
            stream::iter(listed).map(|listed| self.prepare(listed)).buffered(at_a_time());
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

fn at_a_time() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(AT_A_TIME)
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
    let (same, others) = earlier.unchanged(reading, listed, asks);
    tracked.extend(same);
    seen(tracked.len(), all);
    let mut prepared =
        stream::iter(others).map(|listed| reading.prepare(listed)).buffered(at_a_time());
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
                    earlier.end_as_before(&mut document, known, asks);
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
    pub(super) fn new(listed: &Listed, standing: Standing) -> Self {
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
