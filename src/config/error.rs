//! Errors in the configuration: each names its key and the mend. All of one configuration are told at
//! once, each with its place.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

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

/// One fault, and the place where a person mends it.
#[derive(Debug)]
pub struct ConfigFault {
    /// Dotted path of the setting; empty for a fault of the whole file.
    pub key: String,
    /// Line of the file, or variable; `None` where neither is known.
    pub place: Option<String>,
    pub cause: ConfigError,
}

/// Every fault that was found, at least one.
#[derive(Debug)]
pub struct ConfigFaults(Vec<ConfigFault>);

impl ConfigFault {
    pub(super) fn new(key: impl Into<String>, cause: impl Into<ConfigError>) -> Self {
        Self { key: key.into(), place: None, cause: cause.into() }
    }

    /// Returns whether the setting is another's part, or the same one.
    pub(super) fn is_within(&self, key: &str) -> bool {
        let rest = self.key.strip_prefix(key);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

impl ConfigFaults {
    /// # Errors
    /// If there is a fault.
    pub(super) fn into_result(faults: Vec<ConfigFault>) -> Result<(), ConfigError> {
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::Faults(Self(faults))) }
    }
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.cause.to_string();
        // Faults in a list have no chain of causes that the caller could print.
        let mut cause = self.cause.source();
        while let Some(inner) = cause {
            let said = inner.to_string();
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            cause = inner.source();
        }
        match &self.place {
            Some(place) => write!(f, "{text} ({place})"),
            None => f.write_str(&text),
        }
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [only] = self.0.as_slice() {
            return only.fmt(f);
        }
        write!(f, "the configuration has {} faults:", self.0.len())?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

impl Error for ConfigFaults {}
