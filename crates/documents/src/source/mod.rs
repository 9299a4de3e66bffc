//! Where documents lie: a folder, or a container of Azure Blob Storage.
//!
//! Both list what there is and hand a document over as a file. They differ in what a listing is worth:
//! a blob's ETag changes whenever the blob does (Azure docs: "Specifying conditional headers for Blob
//! service operations"), so a blob that is known by it need not be downloaded. A file's size and time
//! are a hint only, since copying tools set the time back; [`Source::knows_versions`] tells which it is.
//!
//! `address` reads the URL, `choose` the globs, `folder` and `container` are the two kinds, and
//! `fault` says what Blob Storage's refusals mean. Vendor types stay in `container` and `fault`.

mod address;
mod choose;
mod container;
mod fault;
mod folder;
mod settings;

use std::fmt;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::TempPath;

use choose::Choice;
pub use container::Container;
pub use folder::Folder;
pub use settings::{BlobSettings, SettingsError};

/// A document as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its path below the source, parts separated by `/`. What is not UTF-8 in a file's name is shown
    /// as `\xNN`. A folder that can't be read stands here too, its name ending in `/`, so that it is
    /// told and not missed.
    pub name: String,
    pub version: Version,
    pub bytes: u64,
    /// Where it lies below its folder, if the name does not tell.
    path: Option<PathBuf>,
}

/// What changes when a document does: a blob's ETag, a file's size and time. Two versions of different
/// documents tell nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(String);

impl Version {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a night's documents come from.
pub enum Source {
    Folder(Folder),
    Container(Container),
}

impl Source {
    /// `given` is a folder's path, or `https://ACCOUNT.blob.core.windows.net/CONTAINER[/PREFIX]`. Of an
    /// identity a token is fetched here, so that one that does not work is told at once.
    ///
    /// # Errors
    /// If there is no such folder, the URL is none of Blob Storage, or the identity gives no token.
    pub async fn open(given: &str, settings: &BlobSettings) -> Result<Self, SourceError> {
        if given.starts_with("https://") || given.starts_with("http://") {
            return Container::open(given, settings).await.map(Self::Container);
        }
        let path = PathBuf::from(given);
        blocking(move || Folder::open(&path)).await.map(Self::Folder)
    }

    /// All documents that a glob of `include` finds and none of `exclude`, by name. Globs are those of
    /// shells: `*` and `**` don't find names that begin with a dot, and letters match in either case.
    /// Holds what it finds in memory, and one page of 5,000 blobs besides.
    ///
    /// # Errors
    /// If a glob is none, or Blob Storage does not let us list.
    pub async fn list(
        &self,
        include: &[String],
        exclude: &[String],
    ) -> Result<Vec<Listed>, SourceError> {
        let choice = Choice::new(include, exclude)?;
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

    /// The file that holds the document's bytes: itself, or a temporary one in `scratch`, which ends
    /// in the document's extension. Neither is larger than `limit` bytes. Of a blob it is exactly the
    /// listed version.
    ///
    /// # Errors
    /// [`SourceError::is_the_documents`] tells whether others may still be had.
    pub async fn fetch(
        &self,
        listed: &Listed,
        limit: u64,
        scratch: &Path,
    ) -> Result<Fetched, SourceError> {
        match self {
            Self::Folder(folder) => {
                let (folder, listed) = (folder.clone(), listed.clone());
                blocking(move || folder.fetch(&listed, limit)).await
            }
            Self::Container(container) => container.fetch(listed, limit, scratch).await,
        }
    }

    /// Whether a document whose version is the same is the same, so that it need not be fetched.
    pub fn knows_versions(&self) -> bool {
        matches!(self, Self::Container(_))
    }

    /// Asks for one document's name, to see that we may.
    ///
    /// # Errors
    /// If we may not, or nobody answers.
    pub async fn reach(&self) -> Result<(), SourceError> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Container(container) => container.reach().await,
        }
    }
}

/// A document's bytes, as the path of a file. If the file was made for it, it ends with this value.
#[derive(Debug)]
pub struct Fetched(Place);

#[derive(Debug)]
enum Place {
    Theirs(PathBuf),
    Ours(TempPath),
}

impl Deref for Fetched {
    type Target = Path;

    fn deref(&self) -> &Path {
        match &self.0 {
            Place::Theirs(path) => path,
            Place::Ours(path) => path,
        }
    }
}

/// Why a source, or one document of it, can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("'{glob}' is no glob: {source}")]
    Glob { glob: String, source: glob::PatternError },
    #[error("the source {} is no folder", path.display())]
    NoFolder { path: PathBuf },
    /// The address is shown without its query, which may be a secret.
    #[error("the source {address}: {problem}")]
    Address { address: String, problem: &'static str },
    #[error("documents: {0}")]
    Settings(#[from] SettingsError),
    #[error("documents.credential: {0}")]
    Identity(String),
    #[error("Blob Storage does not answer: {0}")]
    Unreachable(String),
    #[error("Blob Storage answers what can't be read: {0}")]
    Answer(String),
    #[error("Blob Storage refuses with {status} {code}{mend}")]
    Refused { status: u16, code: String, mend: &'static str },
    #[error("its download broke off each time: {0}")]
    BrokenOff(String),
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
    LeadsOut,
    #[error("can't be read: {0}")]
    Io(#[from] io::Error),
}

impl SourceError {
    /// Whether it is one document's own, so that the night goes on without it.
    pub fn is_the_documents(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::BrokenOff(_)
            | Self::Vanished
            | Self::Changed
            | Self::Archived
            | Self::TooLarge { .. }
            | Self::LeadsOut
            | Self::Io(_) => true,
            Self::Glob { .. }
            | Self::NoFolder { .. }
            | Self::Address { .. }
            | Self::Settings(_)
            | Self::Identity(_)
            | Self::Unreachable(_)
            | Self::Answer(_) => false,
        }
    }

    /// Whether waiting may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::BrokenOff(_))
    }
}

/// Files are read where they may wait for a disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|ended| Err(SourceError::Io(io::Error::other(ended))))
}
