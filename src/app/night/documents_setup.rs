//! A recipe, its documents, and the program and limits for reading them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use crate::config::Config;
use documents::collect::DocumentReader;
use documents::source::{DocumentSource, DocumentSourceError};
use documents::{Recipe, RecipeError};
use reader::ReadLimits;

/// Reason why the documents of a recipe can't be read.
#[derive(Debug, thiserror::Error)]
pub enum DocumentsSetupError {
    #[error("name the location of the documents: --source")]
    NoSource,
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Source(#[from] DocumentSourceError),
    #[error("can't find this program's own file, which reads documents in a process of its own")]
    Program(#[source] io::Error),
    #[error("can't create a temporary folder: make room, or name another by TMPDIR")]
    Scratch(#[source] io::Error),
}

/// A recipe, its documents, and the program and limits for reading them.
pub struct DocumentsSetup {
    recipe: Arc<Recipe>,
    source: DocumentSource,
    reader_program: PathBuf,
    limits: ReadLimits,
    scratch: TempDir,
}

impl DocumentsSetup {
    /// Loads the recipe, and opens the source: the one given, or the configured one.
    ///
    /// # Errors
    /// Names what is wrong with the recipe or the source.
    pub async fn open(
        recipe: &Path,
        source: Option<&str>,
        config: &Config,
    ) -> Result<Self, DocumentsSetupError> {
        let recipe = Arc::new(Recipe::load(recipe)?);
        let limits = ReadLimits { file_bytes: recipe.max_file_mib << 20, ..ReadLimits::default() };
        let source = source.or(config.documents.source.as_deref());
        let source = source.ok_or(DocumentsSetupError::NoSource)?;
        Ok(Self {
            recipe,
            source: DocumentSource::open(source, &config.documents).await?,
            reader_program: std::env::current_exe().map_err(DocumentsSetupError::Program)?,
            limits,
            scratch: tempfile::tempdir().map_err(DocumentsSetupError::Scratch)?,
        })
    }

    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    pub fn reader(&self) -> DocumentReader<'_> {
        DocumentReader {
            source: &self.source,
            recipe: &self.recipe,
            reader_program: &self.reader_program,
            limits: &self.limits,
            scratch: self.scratch.path().to_owned(),
        }
    }
}
