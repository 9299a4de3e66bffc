//! Errors in the configuration: each names its key and the mend.

use std::path::PathBuf;

use super::fault::ConfigFaults;
use crate::webhook;
use domain::build_feature::MissingFeatureError;
use model::ModelClientError;
use model::endpoint::EndpointError;

/// Error in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Faults(ConfigFaults),
    #[error("can't read the configuration file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The parser's own text would show the line, which may hold a secret.
    #[error("{}, line {line}: {problem}", path.display())]
    Toml { path: PathBuf, line: usize, problem: String },
    #[error("{key}: {problem}")]
    Key { key: String, problem: String },
    #[error("{key}: {source}")]
    Feature { key: String, source: MissingFeatureError },
    #[cfg(feature = "azure")]
    #[error("queue.service_bus: {0}")]
    ServiceBus(#[from] queue::service_bus::ServiceBusSettingsError),
    #[error(transparent)]
    Webhook(#[from] webhook::WebhookSettingsError),
    #[cfg(feature = "documents")]
    #[error("documents: {0}")]
    Documents(#[from] documents::source::BlobSettingsError),
    #[error("{key} must be at least 1")]
    Zero { key: String },
    #[error("{key} must be {must}")]
    Range { key: String, must: &'static str },
    #[error("deployments.{0}: 'ptu' excludes 'tpm' and 'flex'; remove them")]
    PtuWithQuota(usize),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error("{key}: {source}")]
    DeploymentEndpoint { key: String, source: EndpointError },
    #[error(transparent)]
    Client(#[from] ModelClientError),
    #[error("the variable {0} is not set; it should hold the API key")]
    NoKeyVariable(String),
    #[error("can't read the API key from {}", path.display())]
    KeyFile { path: PathBuf, source: std::io::Error },
    #[error("deployment {0}: 'credential' and a key exclude each other; remove one of them")]
    KeyBesideCredential(String),
    #[error("deployment {0}: 'token_scope' needs 'credential'")]
    ScopeWithoutCredential(String),
    #[cfg(feature = "azure")]
    #[error("deployment {name}: the identity can't be used here: {source}")]
    Identity { name: String, source: identity::IdentityError },
}
