//! Sources of documents: a folder, or a container of Azure Blob Storage.
//!
//! Both list documents and hand each over as a file. Their versions differ: a blob's ETag changes
//! whenever the blob does (Azure docs: "Specifying conditional headers for Blob service
//! operations"), so a blob with a known one need not be downloaded. A file's size and time are a
//! hint only, since copying tools set the time back; see [`DocumentSource::has_reliable_versions`].
//!
//! `container_url` parses the URL, `glob_filter` the globs, `folder` and `container` are the kinds,
//! `azure_error` converts errors. Vendor types stay in `azure_error`, `container` and `settings`.

mod azure_error;
mod container;
mod container_url;
mod folder;
mod glob_filter;
mod settings;

use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempPath;

pub use container::BlobContainer;
pub use folder::FolderSource;
use glob_filter::GlobFilter;
pub use settings::{BlobSettings, BlobSettingsError};

/// A document as listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedDocument {
    /// Path below the source, separated by `/`. Bytes of a file's name that are not UTF-8 are shown
    /// as `\xNN`. A folder that can't be read is listed too, its name ending in `/`, so that it is
    /// reported and not missed.
    pub name: String,
    pub version: DocumentVersion,
    pub bytes: u64,
    /// Path below its folder, if `name` does not show it exactly.
    path: Option<PathBuf>,
}

/// Value that changes when a document does: a blob's ETag, a file's size and time. Versions of
/// different documents can't be compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DocumentVersion(String);

impl DocumentVersion {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DocumentVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Source of a night's documents.
pub enum DocumentSource {
    Folder(FolderSource),
    Container(BlobContainer),
}

impl DocumentSource {
    /// Opens a folder, or `https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]`. Fetches a
    /// token of an identity, so that one that does not work is reported at once.
    ///
    /// # Errors
    /// If the folder does not exist, the URL is not one of Blob Storage, or there is no token.
    pub async fn open(given: &str, settings: &BlobSettings) -> Result<Self, DocumentSourceError> {
        if given.starts_with("https://") || given.starts_with("http://") {
            return BlobContainer::open(given, settings).await.map(Self::Container);
        }
        let path = PathBuf::from(given);
        blocking(move || FolderSource::open(&path)).await.map(Self::Folder)
    }

    /// Lists all documents that a glob of `include` matches and none of `exclude`, by name. Globs
    /// are those of shells: `*` and `**` don't match names that begin with a dot; but case is
    /// ignored. Holds the result in memory, and one page of 5,000 blobs besides.
    ///
    /// # Errors
    /// If a glob is invalid, or Blob Storage does not let us list.
    pub async fn list(
        &self,
        include: &[String],
        exclude: &[String],
    ) -> Result<Vec<ListedDocument>, DocumentSourceError> {
        let choice = GlobFilter::new(include, exclude)?;
        let mut found = match self {
            Self::Folder(folder) => {
                let folder = folder.clone();
                blocking(move || Ok(folder.list(&choice))).await?
            }
            Self::Container(container) => container.list(&choice).await?,
        };
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Returns the file that holds the document's bytes: the original, or a temporary one in
    /// `scratch` with the document's extension. Neither is larger than `limit` bytes. A blob's is
    /// exactly the listed version.
    ///
    /// # Errors
    /// [`DocumentSourceError::is_document_error`] tells if others may still be fetched.
    pub async fn fetch(
        &self,
        listed: &ListedDocument,
        limit: u64,
        scratch: &Path,
    ) -> Result<FetchedFile, DocumentSourceError> {
        match self {
            Self::Folder(folder) => {
                let (folder, listed) = (folder.clone(), listed.clone());
                blocking(move || folder.fetch(&listed, limit)).await
            }
            Self::Container(container) => container.fetch(listed, limit, scratch).await,
        }
    }

    /// Returns true if an equal version means an equal document, which need not be fetched.
    pub fn has_reliable_versions(&self) -> bool {
        matches!(self, Self::Container(_))
    }

    /// Lists one document, to check the access.
    ///
    /// # Errors
    /// If access is denied, or the service does not answer.
    pub async fn check_access(&self) -> Result<(), DocumentSourceError> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Container(container) => container.check_access().await,
        }
    }
}

/// File that holds a document's bytes. A temporary one is deleted with this value.
#[derive(Debug)]
pub struct FetchedFile(FileLocation);

#[derive(Debug)]
enum FileLocation {
    Original(PathBuf),
    Temporary(TempPath),
}

impl Deref for FetchedFile {
    type Target = Path;

    fn deref(&self) -> &Path {
        match &self.0 {
            FileLocation::Original(path) => path,
            FileLocation::Temporary(path) => path,
        }
    }
}

/// Reason why a source, or one document of it, is not available.
#[derive(Debug, thiserror::Error)]
pub enum DocumentSourceError {
    #[error("'{glob}' is not a valid glob: {source}")]
    Glob { glob: String, source: glob::PatternError },
    #[error("the source {} is no folder", path.display())]
    NoFolder { path: PathBuf },
    /// The address is shown without its query, which may be a secret.
    #[error("the source {address}: {problem}")]
    Address { address: String, problem: &'static str },
    #[error("documents: {0}")]
    Settings(#[from] BlobSettingsError),
    #[error("documents.credential: {0}")]
    Identity(String),
    #[error("Blob Storage does not answer: {0}")]
    Unreachable(String),
    #[error("Blob Storage sent an invalid response: {0}")]
    InvalidResponse(String),
    #[error("Blob Storage refuses with {status} {code}{hint}")]
    Refused { status: u16, code: String, hint: &'static str },
    #[error("its download broke off each time: {0}")]
    Interrupted(String),
    #[error("is gone since it was listed")]
    Vanished,
    #[error("changed since it was listed; the next run takes it as it is then")]
    Changed,
    #[error(
        "lies in the archive tier, from which nothing can be read; move it to the hot, cool or cold \
         tier, which takes hours, or exclude it"
    )]
    Archived,
    #[error("has {bytes} bytes, more than {limit}; raise max_file_mib in the recipe, or cut it")]
    TooLarge { bytes: u64, limit: u64 },
    #[error("is a link that leads out of the source; copy the file, or take a source above both")]
    OutsideSource,
    #[error("can't be read: {0}")]
    Io(#[from] io::Error),
}

impl DocumentSourceError {
    /// Returns true if the error is one document's own, so that the night goes on without it.
    pub fn is_document_error(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::Interrupted(_)
            | Self::Vanished
            | Self::Changed
            | Self::Archived
            | Self::TooLarge { .. }
            | Self::OutsideSource
            | Self::Io(_) => true,
            Self::Glob { .. }
            | Self::NoFolder { .. }
            | Self::Address { .. }
            | Self::Settings(_)
            | Self::Identity(_)
            | Self::Unreachable(_)
            | Self::InvalidResponse(_) => false,
        }
    }

    /// Returns true if waiting may help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::Interrupted(_))
    }
}

/// Runs file operations on a thread that may wait for a disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DocumentSourceError> + Send + 'static,
) -> Result<T, DocumentSourceError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|ended| Err(DocumentSourceError::Io(io::Error::other(ended))))
}
