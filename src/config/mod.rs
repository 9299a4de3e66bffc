//! The one configuration: defaults, a TOML file, the environment, then flags.
//!
//! Every key of the file can be set by a variable `PROMPTMILL__SECTION__KEY`. Keys that nobody reads
//! are errors, so that a misspelt setting is found at start and not by its missing effect.
//! `layers` lays the environment over the file; `explain` says where each value came from.

mod deployment;
mod explain;
mod layers;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::webhook;
use admission::Member;
use documents::source;
use intake::{Reading, Terms};
use model::ClientError;
use model::endpoint::EndpointError;
use queue::service_bus;
use report::replicas::useful;
use store::cosmos;
use worker::{self, Target};

pub use deployment::{DEFAULT_CONCURRENCY, Deployment};
pub use layers::Layers;
pub use serve::settings::{Role, Serve, ServerConfig, Token};

/// The file that is read where none is named.
pub const DEFAULT_FILE: &str = "promptmill.toml";

const ENV_PREFIX: &str = "PROMPTMILL__";

/// Everything that can be set.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub state: State,
    pub queue: Queue,
    pub store: Store,
    pub input: Input,
    pub worker: Worker,
    pub prices: PriceTable,
    pub pool: Pool,
    pub serve: Serve,
    pub scaling: useful::Settings,
    pub log: Log,
    pub telemetry: telemetry::Settings,
    pub webhook: webhook::Settings,
    pub documents: source::BlobSettings,
    pub deployments: Vec<Deployment>,
}

/// Where jobs wait for `enqueue` and `work`; `run` always has its own.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Queue {
    /// In the state directory.
    #[default]
    Local,
    ServiceBus(service_bus::Settings),
}

/// Where outcomes are kept, by the same rule.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// In the state directory.
    #[default]
    Local,
    Cosmos(cosmos::Settings),
}

/// The embedded queue and store.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct State {
    pub dir: PathBuf,
    /// How long a job is hidden from others while it is worked on; renewed at half.
    pub lock_seconds: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Input {
    /// The model of lines that name none.
    pub model: Option<String>,
    pub max_line_mib: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Worker {
    pub max_tries: u32,
    pub max_deliveries: u32,
    pub shutdown_grace_seconds: u64,
    pub request_timeout_seconds: u64,
    pub unreachable_after_seconds: u64,
}

/// What tokens cost.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PriceTable {
    /// A table of your own instead of the built-in one.
    pub file: Option<PathBuf>,
}

/// How the program logs.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One object a line, for collectors.
    Json,
}

/// How the deployments serve together.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// How long a job waits for a tier before the one below may take it.
    pub spill_after_seconds: f64,
}

impl Default for State {
    fn default() -> Self {
        // A minute, as Service Bus has it: long enough that renewing costs nothing.
        Self { dir: ".promptmill".into(), lock_seconds: 60 }
    }
}

impl Default for Input {
    fn default() -> Self {
        // Room for a prompt with a picture; the service refuses larger ones in its own words.
        Self { model: None, max_line_mib: 16 }
    }
}

impl Default for Pool {
    fn default() -> Self {
        // A burst that a provisioned deployment can swallow by itself is over by then.
        Self { spill_after_seconds: 5.0 }
    }
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            // With full jitter up to a minute, eight tries last through outages of some minutes.
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

/// Jobs that wait or are being recorded, beside those in flight.
const HELD_BESIDE_CALLS: usize = 1024;

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("can't read the configuration file {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// The parser's own text would show the line, which may hold a secret.
    #[error("{}, line {line}: {problem}", path.display())]
    Toml { path: PathBuf, line: usize, problem: String },
    #[error("{key}: {problem} (from {origin})")]
    Key { key: String, problem: String, origin: String },
    #[error("queue.service_bus: {0}")]
    ServiceBus(#[from] service_bus::SettingsError),
    #[error(transparent)]
    Webhook(#[from] webhook::SettingsError),
    #[error("documents: {0}")]
    Documents(#[from] source::SettingsError),
    #[error("{key} must be at least 1")]
    Zero { key: String },
    #[error("{key} must be {must}")]
    Range { key: String, must: &'static str },
    #[error("deployments.{0}: 'ptu' has neither 'tpm' nor 'flex'; take them away")]
    PtuWithQuota(usize),
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the variable {0} is not set; it should hold the API key")]
    NoKeyVariable(String),
    #[error("can't read the API key from {}", path.display())]
    KeyFile { path: PathBuf, source: std::io::Error },
    #[error("deployment {0}: 'credential' and a key exclude each other; take one of them away")]
    KeyBesideCredential(String),
    #[error("deployment {0}: 'token_scope' goes with 'credential'")]
    ScopeWithoutCredential(String),
    #[error(transparent)]
    Serve(#[from] serve::settings::ServeSettingsError),
    #[error("deployment {name}: the identity can't be used here: {source}")]
    Identity { name: String, source: azure_core::Error },
}

impl Config {
    /// Reads the file (a missing default file is none) and lays the environment over it.
    ///
    /// # Errors
    /// Names the key, the fault and where the value came from.
    pub fn load(
        file: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        Layers::read(file, environment)?.config()
    }

    fn check(&self) -> Result<(), ConfigError> {
        if let Queue::ServiceBus(settings) = &self.queue {
            settings.check()?;
        }
        self.webhook.target()?;
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
        self.serve.check()?;
        self.check_scaling()?;
        let counts = counts.map(|(key, value)| (key.to_owned(), value));
        match counts.into_iter().chain(deployments).find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(ConfigError::Zero { key }),
            None => Ok(()),
        }
    }

    fn check_scaling(&self) -> Result<(), ConfigError> {
        let useful::Settings { min_replicas, max_replicas, backlog_minutes } = self.scaling;
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

    /// How input lines are read.
    pub fn reading(&self) -> Reading {
        let names = |d: &Deployment| {
            let names = d.names();
            (!names.is_empty()).then_some(names)
        };
        let models: Option<Vec<_>> = self.deployments.iter().map(names).collect();
        let models = models.map(|models| models.concat());
        Reading {
            default_model: self.input.model.clone(),
            models: models.filter(|models| !models.is_empty()),
            is_bounded: false,
            max_line_bytes: self.input.max_line_mib << 20,
            terms: Terms::default(),
        }
    }

    pub fn lock_duration(&self) -> Duration {
        Duration::from_secs(self.state.lock_seconds)
    }

    /// The pipeline's settings, for a worker alone on its queue.
    pub fn worker(&self) -> worker::Settings {
        let calls = self.calls();
        worker::Settings {
            drain: None,
            only: None,
            prices: None,
            shared: false,
            // Besides those in flight: enough that the store is written in large groups, and that no
            // call ever waits for the queue.
            max_held: 2 * calls + HELD_BESIDE_CALLS,
            max_tries: self.worker.max_tries,
            max_deliveries: self.worker.max_deliveries,
            postpone_from: worker::POSTPONE_FROM,
            shutdown_grace: Duration::from_secs(self.worker.shutdown_grace_seconds),
            unreachable_after: Duration::from_secs(self.worker.unreachable_after_seconds),
            spill_after: Duration::from_secs_f64(self.pool.spill_after_seconds),
        }
    }

    /// Calls that may be in flight at a time.
    fn calls(&self) -> usize {
        self.deployments.iter().map(|d| d.concurrency.unwrap_or(DEFAULT_CONCURRENCY)).sum()
    }

    /// The deployments, ready to be called.
    ///
    /// # Errors
    /// If an endpoint or its key can't be used.
    pub fn targets(&self) -> Result<Vec<Target>, ConfigError> {
        let timeout = Duration::from_secs(self.worker.request_timeout_seconds);
        self.deployments.iter().map(|deployment| deployment.target(timeout)).collect()
    }

    /// All that the HTTP server takes from here.
    pub fn server(&self) -> ServerConfig {
        ServerConfig {
            serve: self.serve.clone(),
            scaling: self.scaling.clone(),
            reading: self.reading(),
            prices: self.prices.file.clone(),
            grace: Duration::from_secs(self.worker.shutdown_grace_seconds),
        }
    }

    /// The deployments as admission knows them, for who calls none of them: keys are not looked for.
    ///
    /// # Errors
    /// If an endpoint is no URL.
    pub fn members(&self) -> Result<Vec<Member>, ConfigError> {
        self.deployments.iter().map(Deployment::member).collect()
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
        assert!(matches!(load("", &[]).unwrap().queue, Queue::Local));
        let env = [
            ("PROMPTMILL__QUEUE__SERVICE_BUS__QUEUE", "jobs"),
            ("PROMPTMILL__QUEUE__SERVICE_BUS__NAMESPACE", "h"),
        ];
        let said = load("queue = \"local\"", &env).unwrap_err().to_string();
        assert!(said.starts_with("queue.service_bus: 'namespace' needs"), "{said}");
        let text = "[queue.service_bus]\nqueue = \"q\"\nnamespace = \"h\"\n\
                    credential = \"workload_identity\"";
        assert!(matches!(load(text, &[]).unwrap().queue, Queue::ServiceBus(_)));
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
