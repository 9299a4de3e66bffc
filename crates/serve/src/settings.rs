//! The settings of the HTTP server: `[serve]` of the configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use domain::secret::hidden_option;

/// Shortest token accepted, in bytes: shorter ones could be guessed.
const SHORTEST_TOKEN: usize = 16;

/// A setting of the server that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ServeSettingsError {
    #[error("serve.tokens '{name}': {problem}")]
    Token { name: String, problem: String },
}

/// All that the server takes from the configuration.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    pub serve: ServeConfig,
    pub scaling: report::autoscale::formula::ScalingSettings,
    /// How uploaded lines are read.
    pub reading: intake::LineOptions,
    /// The user's own price table.
    pub prices: Option<PathBuf>,
    /// How long requests under way may go on after a stop.
    pub grace: std::time::Duration,
}

/// Section `[serve]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeConfig {
    pub listen: SocketAddr,
    /// Lets the dashboard show prompts and answers.
    pub show_content: bool,
    pub tokens: Vec<ServeToken>,
    pub limits: ServeLimits,
}

/// One caller's token, and the role it grants.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeToken {
    /// Name in logs and metrics.
    pub name: String,
    pub role: Role,
    #[serde(serialize_with = "hidden_option")]
    pub token: Option<SecretString>,
    pub token_env: Option<String>,
    pub token_file: Option<PathBuf>,
}

/// Permissions of a caller; each role includes those before it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// See the status of batches, and their results.
    #[default]
    Read,
    /// Upload files, create batches, and cancel them.
    Submit,
    /// Pause, resume, retry and drop what others submitted.
    Operate,
}

/// Limits on what callers may ask of the server.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServeLimits {
    /// Largest upload, in MiB.
    pub file_mib: u64,
    /// Limit for each token, and for all callers without one together.
    pub requests_per_second: u32,
    /// Connections open at a time.
    pub connections: usize,
    /// Time limit of all requests but uploads and downloads.
    pub request_seconds: u64,
    /// Time without progress after which an upload or download is ended.
    pub idle_seconds: u64,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8780)),
            show_content: false,
            tokens: Vec::new(),
            limits: ServeLimits::default(),
        }
    }
}

impl Default for ServeLimits {
    fn default() -> Self {
        Self {
            // The limit of OpenAI's Batch API: 200 MB.
            file_mib: 200,
            requests_per_second: 100,
            connections: 512,
            request_seconds: 30,
            idle_seconds: 60,
        }
    }
}

impl ServeLimits {
    /// Returns the names of the limits that are zero: each must be at least 1.
    pub fn zeros(&self) -> impl Iterator<Item = &'static str> {
        let counts = [
            ("file_mib", self.file_mib),
            ("requests_per_second", self.requests_per_second.into()),
            ("connections", self.connections as u64),
            ("request_seconds", self.request_seconds),
            ("idle_seconds", self.idle_seconds),
        ];
        counts.into_iter().filter(|(_, value)| *value == 0).map(|(name, _)| name)
    }
}

impl ServeToken {
    /// Returns the token itself.
    ///
    /// # Errors
    /// If there is none, or it is too short to be safe.
    pub fn secret(&self) -> Result<SecretString, ServeSettingsError> {
        let wrong =
            |problem: String| ServeSettingsError::Token { name: self.name.clone(), problem };
        let text = match (&self.token, &self.token_env, &self.token_file) {
            (Some(token), None, None) => token.clone(),
            (None, Some(variable), None) => std::env::var(variable)
                .map_err(|_| wrong(format!("the variable {variable} is not set")))?
                .into(),
            (None, None, Some(path)) => std::fs::read_to_string(path)
                .map_err(|error| wrong(format!("can't read {}: {error}", path.display())))?
                .trim()
                .to_owned()
                .into(),
            _ => return Err(wrong("give one of 'token', 'token_env' and 'token_file'".into())),
        };
        use secrecy::ExposeSecret;
        if text.expose_secret().len() < SHORTEST_TOKEN {
            return Err(wrong(format!(
                "it is shorter than {SHORTEST_TOKEN} characters; make one with: openssl rand -hex 32"
            )));
        }
        Ok(text)
    }
}
