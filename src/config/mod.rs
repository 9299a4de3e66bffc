//! The one configuration: defaults, a TOML file, the environment, then flags.
//!
//! Every key of the file can be set by a variable `PROMPTMILL__SECTION__KEY`. Unknown keys are
//! errors, so that a misspelt setting is found at start and not by its missing effect.
//! `layers` merges the environment over the file; `explain` shows the origin of each value.

mod deployment;
mod explain;
mod layers;
mod missing_feature;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::webhook;
use admission::PoolMember;
use domain::build_feature::MissingFeatureError;
use intake::{BatchTerms, LineOptions};
use model::ModelClientError;
use model::endpoint::EndpointError;
use report::autoscale::formula;
use worker::{self, WorkerTarget};

pub use deployment::{DEFAULT_CONCURRENCY, DeploymentConfig};
pub use layers::ConfigLayers;
#[cfg(feature = "serve")]
pub use serve::settings::{Role, ServeConfig, ServeToken, ServerConfig};

/// File that is read if none is named.
pub const DEFAULT_FILE: &str = "promptmill.toml";

const ENV_PREFIX: &str = "PROMPTMILL__";

/// All settings of the program.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub state: StateConfig,
    pub queue: QueueBackend,
    pub store: StoreBackend,
    pub input: InputConfig,
    pub worker: WorkerConfig,
    pub prices: PricesConfig,
    pub pool: PoolConfig,
    #[cfg(feature = "serve")]
    pub serve: ServeConfig,
    pub scaling: formula::ScalingSettings,
    pub log: LogConfig,
    pub telemetry: telemetry::TelemetrySettings,
    pub webhook: webhook::WebhookSettings,
    #[cfg(feature = "documents")]
    pub documents: documents::source::BlobSettings,
    pub deployments: Vec<DeploymentConfig>,
}

/// Queue backend of `enqueue` and `work`; `run` always uses the embedded one.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueBackend {
    /// In the state directory.
    #[default]
    Local,
    #[cfg(feature = "azure")]
    ServiceBus(queue::service_bus::ServiceBusSettings),
}

/// Store backend for outcomes, by the same rule.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreBackend {
    /// In the state directory.
    #[default]
    Local,
    #[cfg(feature = "azure")]
    Cosmos(store::cosmos::CosmosSettings),
}

/// Settings of the embedded queue and store.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StateConfig {
    pub dir: PathBuf,
    /// Lease of a job, in seconds: meanwhile no other worker gets it; renewed at half.
    pub lock_seconds: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InputConfig {
    /// Model for lines that name none.
    pub model: Option<String>,
    pub max_line_mib: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    pub max_tries: u32,
    pub max_deliveries: u32,
    pub shutdown_grace_seconds: u64,
    pub request_timeout_seconds: u64,
    pub unreachable_after_seconds: u64,
}

/// Settings of the price table.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PricesConfig {
    /// File with your own price table instead of the built-in one.
    pub file: Option<PathBuf>,
}

/// Settings of the log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text, for people.
    #[default]
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

/// Settings of the deployments as a pool.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PoolConfig {
    /// Seconds that a job waits for a tier before the one below may take it.
    pub spill_after_seconds: f64,
}

impl Default for StateConfig {
    fn default() -> Self {
        // A minute, as Service Bus has it: long enough that renewing costs nothing.
        Self { dir: ".promptmill".into(), lock_seconds: 60 }
    }
}

impl Default for InputConfig {
    fn default() -> Self {
        // Room for a prompt with a picture; the service rejects larger ones with its own error.
        Self { model: None, max_line_mib: 16 }
    }
}

impl Default for PoolConfig {
    fn default() -> Self {
        // A burst that a provisioned deployment can absorb by itself is over by then.
        Self { spill_after_seconds: 5.0 }
    }
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            // With full jitter up to a minute, eight attempts outlast outages of some minutes.
            max_tries: 8,
            // The default of Service Bus queues.
            max_deliveries: 10,
            // Below the 30 s that container platforms give after SIGTERM.
            shutdown_grace_seconds: 25,
            // Long answers of reasoning models take minutes.
            request_timeout_seconds: 600,
            unreachable_after_seconds: 300,
        }
    }
}

/// Jobs held besides those in flight: waiting, or being recorded.
const JOBS_BESIDE_CALLS: usize = 1024;

/// Error in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("can't read the configuration file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The parser's own text would show the line, which may hold a secret.
    #[error("{}, line {line}: {problem}", path.display())]
    Toml { path: PathBuf, line: usize, problem: String },
    #[error("{key}: {problem} (from {origin})")]
    Key { key: String, problem: String, origin: String },
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
    #[cfg(feature = "serve")]
    #[error(transparent)]
    Serve(#[from] serve::settings::ServeSettingsError),
    #[cfg(feature = "azure")]
    #[error("deployment {name}: the identity can't be used here: {source}")]
    Identity { name: String, source: identity::IdentityError },
}

impl Config {
    /// Reads the file (a missing default file counts as empty) and merges the environment over it.
    ///
    /// # Errors
    /// Names the key, the problem and, for a value of the wrong form, the sources that were read.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        ConfigLayers::read(file, environment)?.config()
    }

    fn check(&self) -> Result<(), ConfigError> {
        #[cfg(feature = "azure")]
        if let QueueBackend::ServiceBus(settings) = &self.queue {
            settings.check()?;
        }
        self.webhook.target()?;
        #[cfg(feature = "documents")]
        self.documents.check()?;
        let counts = [
            ("state.lock_seconds", self.state.lock_seconds),
            ("input.max_line_mib", self.input.max_line_mib as u64),
            ("worker.max_tries", self.worker.max_tries.into()),
            ("worker.max_deliveries", self.worker.max_deliveries.into()),
            ("worker.request_timeout_seconds", self.worker.request_timeout_seconds),
        ];
        let deployments = self.deployments.iter().enumerate().flat_map(|(n, d)| {
            let limits =
                [("tpm", d.tpm), ("rpm", d.rpm), ("concurrency", d.concurrency.map(|c| c as u64))];
            limits.map(|(key, value)| (format!("deployments.{n}.{key}"), value.unwrap_or(1)))
        });
        self.check_pool()?;
        #[cfg(feature = "serve")]
        self.serve.check()?;
        self.check_scaling()?;
        let counts = counts.map(|(key, value)| (key.to_owned(), value));
        match counts.into_iter().chain(deployments).find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(ConfigError::Zero { key }),
            None => Ok(()),
        }
    }

    fn check_scaling(&self) -> Result<(), ConfigError> {
        let formula::ScalingSettings { min_replicas, max_replicas, backlog_minutes } = self.scaling;
        if max_replicas == 0 || min_replicas > max_replicas {
            let key = "scaling.max_replicas".to_owned();
            return Err(ConfigError::Range { key, must: "at least 1 and at least min_replicas" });
        }
        if !(0.1..=1e6).contains(&backlog_minutes) {
            let key = "scaling.backlog_minutes".to_owned();
            return Err(ConfigError::Range { key, must: "from 0.1 to 1000000" });
        }
        Ok(())
    }

    fn check_pool(&self) -> Result<(), ConfigError> {
        if !(0.0..=86_400.0).contains(&self.pool.spill_after_seconds) {
            let key = "pool.spill_after_seconds".to_owned();
            return Err(ConfigError::Range { key, must: "from 0 to 86400" });
        }
        self.deployments.iter().enumerate().try_for_each(|(n, d)| d.check(n))
    }

    /// Returns the rules for reading input lines.
    pub fn reading(&self) -> LineOptions {
        let names = |d: &DeploymentConfig| {
            let names = d.model_names();
            (!names.is_empty()).then_some(names)
        };
        let models: Option<Vec<_>> = self.deployments.iter().map(names).collect();
        let models = models.map(|models| models.concat());
        LineOptions {
            default_model: self.input.model.clone(),
            models: models.filter(|models| !models.is_empty()),
            must_limit_output: false,
            max_line_bytes: self.input.max_line_mib << 20,
            terms: BatchTerms::default(),
        }
    }

    pub fn lease_duration(&self) -> Duration {
        Duration::from_secs(self.state.lock_seconds)
    }

    /// Returns the pipeline's settings, for a worker alone on its queue.
    pub fn worker_settings(&self) -> worker::WorkerSettings {
        let calls = self.max_calls();
        worker::WorkerSettings {
            drain: None,
            only_batch: None,
            prices: None,
            shared: false,
            // Besides those in flight: enough that the store is written in large groups, and that no
            // call ever waits for the queue.
            max_held: 2 * calls + JOBS_BESIDE_CALLS,
            max_attempts: self.worker.max_tries,
            max_deliveries: self.worker.max_deliveries,
            defer_from: worker::DEFER_FROM,
            shutdown_grace: Duration::from_secs(self.worker.shutdown_grace_seconds),
            unreachable_after: Duration::from_secs(self.worker.unreachable_after_seconds),
            spill_after: Duration::from_secs_f64(self.pool.spill_after_seconds),
        }
    }

    /// Returns the largest number of calls in flight at a time.
    fn max_calls(&self) -> usize {
        self.deployments.iter().map(|d| d.concurrency.unwrap_or(DEFAULT_CONCURRENCY)).sum()
    }

    /// Builds the call targets of all deployments.
    ///
    /// # Errors
    /// If an endpoint or its key can't be used.
    pub fn targets(&self) -> Result<Vec<WorkerTarget>, ConfigError> {
        let timeout = Duration::from_secs(self.worker.request_timeout_seconds);
        self.deployments.iter().map(|deployment| deployment.target(timeout)).collect()
    }

    /// All that the HTTP server takes from here.
    #[cfg(feature = "serve")]
    pub fn server(&self) -> ServerConfig {
        ServerConfig {
            serve: self.serve.clone(),
            scaling: self.scaling,
            reading: self.reading(),
            prices: self.prices.file.clone(),
            grace: Duration::from_secs(self.worker.shutdown_grace_seconds),
        }
    }

    /// Builds the admission members of all deployments, for users that make no call: reads no key.
    ///
    /// # Errors
    /// If an endpoint is no URL.
    pub fn members(&self) -> Result<Vec<PoolMember>, ConfigError> {
        self.deployments.iter().map(DeploymentConfig::member).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Config::load(Some(file.path()), env)
    }

    #[test]
    fn the_environment_lies_over_the_file() {
        let file = "[worker]\nmax_tries = 3\n[[deployments]]\nendpoint = \"http://a\"\ntpm = 5\n";
        let env = [
            ("PROMPTMILL__WORKER__MAX_DELIVERIES", "4"),
            ("PROMPTMILL__DEPLOYMENTS__0__TPM", "6"),
            ("PROMPTMILL__STATE__DIR", "/tmp/x"),
            ("OTHER", "1"),
        ];
        let config = load(file, &env).unwrap();
        assert_eq!((config.worker.max_tries, config.worker.max_deliveries), (3, 4));
        assert_eq!(config.deployments[0].tpm, Some(6));
        assert_eq!(config.state.dir, Path::new("/tmp/x"));
    }

    #[test]
    fn a_wrong_key_is_named() {
        let said = load("[worker]\nmax_trys = 3\n", &[]).unwrap_err().to_string();
        assert!(said.contains("worker") && said.contains("max_trys"), "{said}");
        let said = load("[worker]\nmax_tries = \"x\"\n", &[]).unwrap_err().to_string();
        assert!(said.starts_with("worker.max_tries: invalid type"), "{said}");
        let said = load("", &[("PROMPTMILL__WORKER__MAX_TRIES", "0")]).unwrap_err().to_string();
        assert_eq!(said, "worker.max_tries must be at least 1");
    }

    #[test]
    fn no_error_shows_a_secret() {
        let secrets = [
            "[queue.service_bus]\nqueue = \"q\"\nconnection_string = \"s3cret",
            "[queue.service_bus]\nqueue = \"q\"\nconnection_string = \"s3cret\"",
            "[store.cosmos]\nendpoint = \"https://a\"\ncredential = \"s3cret\"",
            "[store.cosmos]\nendpoint = \"https://a\"\ncredential = { kye = \"s3cret\" }",
        ];
        for text in secrets {
            let error = load(text, &[]).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        }
    }

    #[test]
    fn backends_are_local_until_a_table_says_otherwise() {
        assert!(matches!(load("", &[]).unwrap().queue, QueueBackend::Local));
        let env = [
            ("PROMPTMILL__QUEUE__SERVICE_BUS__QUEUE", "jobs"),
            ("PROMPTMILL__QUEUE__SERVICE_BUS__NAMESPACE", "h"),
        ];
        let said = load("queue = \"local\"", &env).unwrap_err().to_string();
        assert!(said.starts_with("queue.service_bus: 'namespace' needs"), "{said}");
        let text = "[queue.service_bus]\nqueue = \"q\"\nnamespace = \"h\"\n\
                    credential = \"workload_identity\"";
        assert!(matches!(load(text, &[]).unwrap().queue, QueueBackend::ServiceBus(_)));
    }

    #[test]
    fn models_are_known_only_if_every_deployment_says_its_own() {
        let one = "[[deployments]]\nendpoint = \"http://a\"\nmodel = \"m\"\n";
        let any = "[[deployments]]\nendpoint = \"http://b\"\n";
        assert_eq!(load(one, &[]).unwrap().reading().models, Some(vec!["m".to_owned()]));
        assert_eq!(load(&format!("{one}{any}"), &[]).unwrap().reading().models, None);
        assert_eq!(load("", &[]).unwrap().reading().models, None);
    }
}
