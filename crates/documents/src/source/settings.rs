//! The section `[documents]`.

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::error::BlobSettingsError;
#[cfg(feature = "blob")]
use super::error::DocumentSourceError;
use domain::secret::hidden_option;
use identity::Identity;

/// Source of documents, and access to Blob Storage: with an identity, with a shared access
/// signature, or with neither to a public container. Not with an account's key, which may do
/// anything: Microsoft's crate takes none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BlobSettings {
    /// Folder or container of `documents` if its command line names none.
    pub source: Option<String>,
    /// Needs the role "Storage Blob Data Reader".
    pub credential: Option<Identity>,
    /// Shared access signature for reading and listing: the part of its URL after the `?`. Best
    /// given by the environment.
    #[serde(serialize_with = "hidden_option")]
    pub sas: Option<SecretString>,
    /// Server on this machine or network that is not Azure's: plain HTTP, its account in the path.
    pub emulator: bool,
}

/// Identity that gives tokens for Blob Storage.
#[cfg(feature = "blob")]
type BlobCredential = std::sync::Arc<dyn azure_core::credentials::TokenCredential>;

impl BlobSettings {
    /// # Errors
    /// If the section is invalid.
    pub fn check(&self) -> Result<(), BlobSettingsError> {
        if self.credential.is_some() && self.sas.is_some() {
            return Err(BlobSettingsError::Both);
        }
        // The source is shown wherever settings are.
        match &self.source {
            Some(url) if url.starts_with("http") && url.contains('?') => {
                Err(BlobSettingsError::SasInSource)
            }
            _ => Ok(()),
        }
    }

    #[cfg(feature = "blob")]
    pub(super) fn identity(&self) -> Result<Option<BlobCredential>, DocumentSourceError> {
        let identity = self.credential.as_ref().map(Identity::credential).transpose();
        identity.map_err(|e| DocumentSourceError::Identity(format!("it can't be used here: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_shown_nowhere() {
        let given: BlobSettings = toml::from_str("sas = \"sv=2026&sig=s3cret\"").unwrap();
        assert!(given.check().is_ok());
        let shown = format!("{given:?}{}", toml::to_string(&given).unwrap());
        assert!(!shown.contains("s3cret"), "{shown}");
        let misplaced = "source = \"https://a/docs?sig=s3cret\"";
        let error = toml::from_str::<BlobSettings>(misplaced).unwrap().check().unwrap_err();
        assert!(!error.to_string().contains("s3cret"));
    }

    #[test]
    fn only_one_way_to_come_is_taken() {
        let both = "sas = \"a\"\ncredential = \"workload_identity\"";
        let error = toml::from_str::<BlobSettings>(both).unwrap().check().unwrap_err();
        assert!(error.to_string().contains("exclude each other"));
    }
}
