//! Turns documents into requests: lists, reads those not known, splits, and fills in the template.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value};

use super::document::{DocumentChange, NightDocument};
pub use super::error::CollectError;
use super::history::NightHistory;
use super::parts::{DocumentPart, parts};
use super::recipe::Recipe;
use super::requests::{NightRequests, RequestTags};
use super::source::{DocumentSource, DocumentSourceError, ListedDocument};
use super::template::{DocumentContext, RecipeTemplates, TemplateError};
use reader::{self, ReadLimits};

/// Most documents fetched and read at once: each may take the memory of its limits, and a core.
const MAX_CONCURRENCY: usize = 4;

/// Source of documents, and how to read them.
pub struct DocumentReader<'a> {
    pub source: &'a DocumentSource,
    pub recipe: &'a Arc<Recipe>,
    /// Program that runs the sandboxed readers.
    pub reader_program: &'a Path,
    pub limits: &'a ReadLimits,
    pub scratch: PathBuf,
}

/// A document that was read.
struct PreparedDocument {
    listed: ListedDocument,
    bodies: Result<(Vec<Value>, Map<String, Value>), String>,
}

impl DocumentReader<'_> {
    /// Lists all documents that the recipe selects, by name.
    ///
    /// # Errors
    /// If the source can't be listed.
    pub async fn list(&self) -> Result<Vec<ListedDocument>, DocumentSourceError> {
        self.source.list(&self.recipe.include, &self.recipe.exclude).await
    }

    /// Returns the request bodies of one document, or why there are none.
    ///
    /// # Errors
    /// If the failure is not the document's own.
    async fn prepare(&self, listed: ListedDocument) -> Result<PreparedDocument, CollectError> {
        let limit = self.recipe.max_file_mib << 20;
        let fetched = match self.source.fetch(&listed, limit, &self.scratch).await {
            Ok(fetched) => fetched,
            Err(error) if error.is_document_error() => {
                return Ok(PreparedDocument { listed, bodies: Err(error.to_string()) });
            }
            Err(error) => return Err(error.into()),
        };
        let read =
            reader::read_sandboxed(self.reader_program, &fetched, &listed.name, self.limits).await;
        let document = match read {
            Ok(document) => document,
            Err(error) => return Ok(PreparedDocument { listed, bodies: Err(error.to_string()) }),
        };
        let recipe = self.recipe.clone();
        let work = tokio::task::spawn_blocking(move || {
            let metadata = document.metadata.clone();
            let parts = parts(document, &recipe);
            let bodies = bodies(&recipe, &listed.name, &metadata, &parts);
            (listed, bodies.map(|bodies| (bodies, metadata)))
        });
        let (listed, bodies) = work.await.map_err(|_| CollectError::Panicked)?;
        let bodies = match bodies {
            Ok((bodies, _)) if bodies.is_empty() => Err("holds no rows".to_owned()),
            Ok(found) => Ok(found),
            Err(error) => Err(error.to_string()),
        };
        Ok(PreparedDocument { listed, bodies })
    }

    /// Returns the first `count` documents with their request bodies, in order of their names.
    ///
    /// # Errors
    /// If the source can't be listed or read.
    pub async fn preview(
        &self,
        count: usize,
    ) -> Result<Vec<(String, Result<Vec<Value>, String>)>, CollectError> {
        let listed = self.list().await?.into_iter().take(count);
        let prepared =
            stream::iter(listed).map(|listed| self.prepare(listed)).buffered(concurrency());
        let named = prepared.map_ok(|PreparedDocument { listed, bodies }| {
            (listed.name, bodies.map(|(bodies, _)| bodies))
        });
        named.try_collect().await
    }
}

fn bodies(
    recipe: &Recipe,
    document: &str,
    metadata: &Map<String, Value>,
    parts: &[DocumentPart],
) -> Result<Vec<Value>, TemplateError> {
    let templates = RecipeTemplates::new(recipe)?;
    let about = DocumentContext { document, metadata };
    let body = |(n, part)| templates.part_request(&about, part, (n + 1, parts.len()));
    parts.iter().enumerate().map(body).collect()
}

fn concurrency() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(MAX_CONCURRENCY)
}

/// Goes through all documents: reuses known results, and adds requests for the rest. Calls
/// `on_progress` with the documents done and their total.
///
/// # Errors
/// If the source, the store or the disk fails; a document's own error is in the result.
pub async fn collect_documents(
    reader: &DocumentReader<'_>,
    history: &NightHistory<'_>,
    requests: &mut NightRequests,
    tags: &RequestTags,
    on_progress: impl Fn(usize, usize),
) -> Result<Vec<NightDocument>, CollectError> {
    let listed = reader.list().await?;
    let all = listed.len();
    let mut tracked = Vec::with_capacity(all);
    let (same, others) = unchanged(history, reader, listed, requests);
    tracked.extend(same);
    on_progress(tracked.len(), all);
    let mut prepared =
        stream::iter(others).map(|listed| reader.prepare(listed)).buffered(concurrency());
    while let Some(PreparedDocument { listed, bodies }) = prepared.try_next().await? {
        let known = history.ledger.documents.get(&listed.name);
        let change = if known.is_some() { DocumentChange::Changed } else { DocumentChange::New };
        let mut document = NightDocument::new(&listed, change);
        match bodies {
            Err(why) => document.unread = Some(why),
            Ok((bodies, metadata)) => {
                let tags = RequestTags { document: listed.name.clone(), ..tags.clone() };
                document.parts = history.request_all(&bodies, requests, &tags).await?;
                document.level = document.parts.clone();
                if let Some(known) = known.filter(|known| known.parts == document.parts) {
                    document.change = DocumentChange::Same;
                    history.reuse_answers(&mut document, known, requests);
                }
                if reader.recipe.reduce.is_some() && document.level.len() > 1 {
                    document.metadata = metadata;
                }
            }
        }
        tracked.push(document);
        on_progress(tracked.len(), all);
    }
    tracked.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tracked)
}

/// Splits the listing into documents that need not be read, since their versions and all of
/// their answers are known, and the rest.
fn unchanged(
    history: &NightHistory<'_>,
    reader: &DocumentReader<'_>,
    listed: Vec<ListedDocument>,
    requests: &mut NightRequests,
) -> (Vec<NightDocument>, Vec<ListedDocument>) {
    let knows = reader.source.has_reliable_versions()
        && history.ledger.fingerprint == reader.recipe.fingerprint();
    if !knows {
        return (Vec::new(), listed);
    }
    let (mut same, mut others) = (Vec::new(), Vec::new());
    for listed in listed {
        let known = history.ledger.documents.get(&listed.name);
        let known = known.filter(|known| known.version == listed.version.as_str());
        let mut document = NightDocument::new(&listed, DocumentChange::Same);
        match known {
            Some(known) if history.reuse_answers(&mut document, known, requests) => {
                same.push(document);
            }
            _ => others.push(listed),
        }
    }
    (same, others)
}
