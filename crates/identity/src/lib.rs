//! Entra ID identities that can be configured, to authenticate to Azure where no key is given.
//!
//! The settings are here; `credential` makes them work, and is left out without the feature `entra`.

#[cfg(feature = "entra")]
mod certificate;
#[cfg(feature = "entra")]
mod credential;
#[cfg(feature = "entra")]
mod error;

use serde::{Deserialize, Serialize};

#[cfg(feature = "entra")]
pub use azure_core::Error as IdentityError;

/// An Entra ID identity. Tokens are fetched when they are first needed, and renewed in time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// Identity of the machine or container; a client id selects one of several.
    ManagedIdentity { client_id: Option<String> },
    /// Identity of a Kubernetes service account.
    WorkloadIdentity,
    /// Account that is logged in to the Azure CLI or the Azure Developer CLI.
    DeveloperTools,
    /// A service principal: `AZURE_TENANT_ID`, `AZURE_CLIENT_ID`, and either `AZURE_CLIENT_SECRET` or
    /// `AZURE_CLIENT_CERTIFICATE_PATH` (PEM with the key), named as in Microsoft's own SDKs.
    Environment,
}
