//! Who we are to Azure where no key is given: the Entra ID identities that can be configured.

use std::sync::Arc;

use azure_core::credentials::TokenCredential;
use azure_identity::{
    DeveloperToolsCredential, ManagedIdentityCredential, ManagedIdentityCredentialOptions,
    UserAssignedId, WorkloadIdentityCredential,
};
use serde::{Deserialize, Serialize};

/// An Entra ID identity. Tokens are fetched when they are first needed, and renewed in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// That of the machine or container; with a client id, that one of several.
    ManagedIdentity { client_id: Option<String> },
    /// That of a Kubernetes service account.
    WorkloadIdentity,
    /// Whoever is logged in to the Azure CLI.
    DeveloperTools,
}

impl Identity {
    /// # Errors
    /// If this machine lacks what the identity is made of, such as a service account's variables.
    pub fn credential(&self) -> azure_core::Result<Arc<dyn TokenCredential>> {
        Ok(match self {
            Self::ManagedIdentity { client_id } => {
                let user_assigned_id = client_id.clone().map(UserAssignedId::ClientId);
                let options =
                    ManagedIdentityCredentialOptions { user_assigned_id, ..Default::default() };
                ManagedIdentityCredential::new(Some(options))?
            }
            Self::WorkloadIdentity => WorkloadIdentityCredential::new(None)?,
            Self::DeveloperTools => DeveloperToolsCredential::new(None)?,
        })
    }
}
