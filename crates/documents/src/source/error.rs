//! Errors of sources and of the section `[documents]`.

use std::io;
use std::path::PathBuf;

use domain::build_feature::MissingFeatureError;

/// Reason why the section is invalid.
#[derive(Debug, thiserror::Error)]
pub enum BlobSettingsError {
    #[error("'credential' and 'sas' exclude each other; take one of them away")]
    Both,
    #[error("'source' is no place for a SAS; give what follows its '?' as the setting 'sas'")]
    SasInSource,
}

/// Reason why a source, or one document of it, is not available.
#[derive(Debug, thiserror::Error)]
pub enum DocumentSourceError {
    #[error("'{glob}' is not a valid glob: {source}")]
    Glob { glob: String, source: glob::PatternError },
    #[error(transparent)]
    Feature(#[from] MissingFeatureError),
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
            | Self::Feature(_)
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
