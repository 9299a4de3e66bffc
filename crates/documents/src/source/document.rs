//! A document as listed, its version, and the file that holds its bytes.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
#[cfg(feature = "blob")]
use tempfile::TempPath;

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
    pub(super) path: Option<PathBuf>,
}

/// Value that changes when a document does: a blob's ETag, a file's size and time. Versions of
/// different documents can't be compared.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DocumentVersion(pub(super) String);

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

/// File that holds a document's bytes. A temporary one is deleted with this value.
#[derive(Debug)]
pub struct FetchedFile(pub(super) FileLocation);

#[derive(Debug)]
pub(super) enum FileLocation {
    Original(PathBuf),
    #[cfg(feature = "blob")]
    Temporary(TempPath),
}

impl Deref for FetchedFile {
    type Target = Path;

    fn deref(&self) -> &Path {
        match &self.0 {
            FileLocation::Original(path) => path,
            #[cfg(feature = "blob")]
            FileLocation::Temporary(path) => path,
        }
    }
}
