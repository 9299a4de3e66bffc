//! The prompts about all documents as a batch file, without a night: for `plan`, or to look at.

use std::fs::File;
use std::io;
use std::path::Path;

use documents::collect::{DocumentReader, collect_documents};
use documents::error::CollectError;
use documents::history::NightHistory;
use documents::ledger::NightLedger;
use documents::requests::{NightRequests, RequestTags};
use report::results::{AtomicFile, ResultsError};

/// Reason why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum PromptFileError {
    #[error(transparent)]
    Collect(#[from] CollectError),
    #[error(transparent)]
    Write(#[from] ResultsError),
}

/// A file that was written.
#[derive(Debug)]
pub struct PromptFile {
    pub prompts: usize,
    pub documents: usize,
    /// Documents that could not be read, each with its reason.
    pub unread: Vec<(String, String)>,
}

/// Writes the prompts about all documents as a batch file, ignoring earlier nights. Prompts that
/// combine answers are not among them: they are made of the answers.
///
/// # Errors
/// If the source or the disk fails; the file appears only when it is complete.
pub async fn write_prompts(
    reader: &DocumentReader<'_>,
    path: &Path,
) -> Result<PromptFile, PromptFileError> {
    let ledger = NightLedger::default();
    let history = NightHistory { ledger: &ledger, unclosed: None, schema: None };
    let tags = RequestTags { recipe: reader.recipe.name.clone(), ..RequestTags::default() };
    let mut requests = NightRequests::new(&reader.scratch).map_err(CollectError::RequestsFile)?;
    let documents = collect_documents(reader, &history, &mut requests, &tags, |_, _| {}).await?;
    let mut lines = File::open(requests.path()).map_err(CollectError::RequestsFile)?;
    let mut file = AtomicFile::create(path)?;
    io::copy(&mut lines, &mut file.file).map_err(|source| file.failed(source))?;
    file.finish()?;
    let unread = documents.iter().filter_map(|document| {
        document.unread.as_ref().map(|why| (document.name.clone(), why.clone()))
    });
    Ok(PromptFile {
        prompts: requests.added().len(),
        documents: documents.len(),
        unread: unread.collect(),
    })
}
