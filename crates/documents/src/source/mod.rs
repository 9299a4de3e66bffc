//! Sources of documents: a folder, or a container of Azure Blob Storage.
//!
//! Both list documents and hand each over as a file. Their versions differ: a blob's ETag changes
//! whenever the blob does (Azure docs: "Specifying conditional headers for Blob service
//! operations"), so a blob with a known one need not be downloaded. A file's size and time are a
//! hint only, since copying tools set the time back; see [`DocumentSource::has_reliable_versions`].
//!
//! `container_url` parses the URL, `glob_filter` the globs, `folder` and `container` are the kinds,
//! `document` and `error` are what both return, `azure_error` converts
//! errors. Vendor types stay in `azure_error`, `container` and `settings`.

#[cfg(feature = "blob")]
mod azure_error;
#[cfg(feature = "blob")]
mod container;
#[cfg(feature = "blob")]
mod container_url;
mod document;
mod error;
mod folder;
mod glob_filter;
mod settings;

use std::io;
use std::path::{Path, PathBuf};

#[cfg(feature = "blob")]
pub use container::BlobContainer;
pub use document::{DocumentVersion, FetchedFile, ListedDocument};
pub use error::{BlobSettingsError, DocumentSourceError};
pub use folder::FolderSource;
use glob_filter::GlobFilter;
pub use settings::BlobSettings;

/// Source of a night's documents.
pub enum DocumentSource {
    Folder(FolderSource),
    #[cfg(feature = "blob")]
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
            return Self::open_container(given, settings).await;
        }
        let path = PathBuf::from(given);
        blocking(move || FolderSource::open(&path)).await.map(Self::Folder)
    }

    #[cfg(feature = "blob")]
    async fn open_container(
        given: &str,
        settings: &BlobSettings,
    ) -> Result<Self, DocumentSourceError> {
        BlobContainer::open(given, settings).await.map(Self::Container)
    }

    #[cfg(not(feature = "blob"))]
    async fn open_container(_: &str, _: &BlobSettings) -> Result<Self, DocumentSourceError> {
        Err(domain::build_feature::MissingFeatureError { feature: "azure" }.into())
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
            #[cfg(feature = "blob")]
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
        #[cfg_attr(
            not(feature = "blob"),
            expect(unused_variables, reason = "a file is not copied")
        )]
        scratch: &Path,
    ) -> Result<FetchedFile, DocumentSourceError> {
        match self {
            Self::Folder(folder) => {
                let (folder, listed) = (folder.clone(), listed.clone());
                blocking(move || folder.fetch(&listed, limit)).await
            }
            #[cfg(feature = "blob")]
            Self::Container(container) => container.fetch(listed, limit, scratch).await,
        }
    }

    /// Returns true if an equal version means an equal document, which need not be fetched.
    pub fn has_reliable_versions(&self) -> bool {
        !matches!(self, Self::Folder(_))
    }

    /// Lists one document, to check the access.
    ///
    /// # Errors
    /// If access is denied, or the service does not answer.
    pub async fn check_access(&self) -> Result<(), DocumentSourceError> {
        match self {
            Self::Folder(_) => Ok(()),
            #[cfg(feature = "blob")]
            Self::Container(container) => container.check_access().await,
        }
    }
}

/// Runs file operations on a thread that may wait for a disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DocumentSourceError> + Send + 'static,
) -> Result<T, DocumentSourceError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|ended| Err(DocumentSourceError::Io(io::Error::other(ended))))
}
