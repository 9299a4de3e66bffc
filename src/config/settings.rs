//! All settings together: checked, and turned into what the library takes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::deployment::{DEFAULT_CONCURRENCY, DeploymentConfig};
use super::error::ConfigError;
use super::sections::{
    InputConfig, LogConfig, PoolConfig, PricesConfig, QueueBackend, StateConfig, StoreBackend,
    WorkerConfig,
};
use crate::webhook;
use admission::PoolMember;
use intake::{BatchTerms, LineOptions};
use report::autoscale::formula;
#[cfg(feature = "serve")]
use serve::settings::{ServeConfig, ServerConfig};
use worker::{self, WorkerTarget};

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

/// Jobs held besides those in flight: waiting, or being recorded.
const JOBS_BESIDE_CALLS: usize = 1024;

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
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
