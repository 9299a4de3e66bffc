//! All settings together: checked, and turned into what the library takes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::deployment::{DeploymentConfig, most_paced_calls};
use super::error::{ConfigError, ConfigFault, ConfigFaults};
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
    /// Returns all settings that are out of their range or exclude each other.
    pub(super) fn faults(&self) -> Vec<ConfigFault> {
        let mut faults = self.section_faults();
        let counts = [
            ("state.lock_seconds", self.state.lock_seconds),
            ("input.max_line_mib", self.input.max_line_mib as u64),
            ("worker.max_tries", self.worker.max_tries.into()),
            ("worker.max_deliveries", self.worker.max_deliveries.into()),
            ("worker.request_timeout_seconds", self.worker.request_timeout_seconds),
            (
                "worker.first_byte_timeout_seconds",
                self.worker.first_byte_timeout_seconds.unwrap_or(1),
            ),
            ("worker.idle_timeout_seconds", self.worker.idle_timeout_seconds),
        ];
        let zeros = counts.into_iter().filter(|(_, value)| *value == 0);
        let to_fault = |key: &str| ConfigFault::new(key, ConfigError::Zero { key: key.to_owned() });
        faults.extend(zeros.map(|(key, _)| to_fault(key)));
        faults.extend(self.ranges().into_iter().filter_map(|(is_right, key, must)| {
            let cause = ConfigError::Range { key: key.to_owned(), must };
            (!is_right).then(|| ConfigFault::new(key, cause))
        }));
        faults.extend(self.deployments.iter().enumerate().flat_map(|(n, d)| d.faults(n)));
        faults
    }

    /// Returns faults of the sections that other crates check.
    fn section_faults(&self) -> Vec<ConfigFault> {
        let mut faults = Vec::new();
        #[cfg(feature = "azure")]
        if let QueueBackend::ServiceBus(settings) = &self.queue
            && let Err(error) = settings.check()
        {
            faults.push(ConfigFault::new("queue.service_bus", error));
        }
        if let Err(error) = self.webhook.target() {
            faults.push(ConfigFault::new("webhook", error));
        }
        #[cfg(feature = "documents")]
        if let Err(error) = self.documents.check() {
            faults.push(ConfigFault::new("documents", error));
        }
        #[cfg(feature = "serve")]
        faults.extend(self.serve.limits.zeros().map(|key| {
            let key = format!("serve.limits.{key}");
            ConfigFault::new(key.clone(), ConfigError::Zero { key })
        }));
        faults
    }

    /// Returns if each setting is within its range, its key, and the range in words.
    fn ranges(&self) -> [(bool, &'static str, &'static str); 4] {
        let formula::ScalingSettings { min_replicas, max_replicas, backlog_minutes } = self.scaling;
        let spill = (0.0..=86_400.0).contains(&self.pool.spill_after_seconds);
        let failures = (0.0..=100.0).contains(&self.worker.max_failure_rate);
        let replicas = max_replicas > 0 && min_replicas <= max_replicas;
        let backlog = (0.1..=1e6).contains(&backlog_minutes);
        [
            (spill, "pool.spill_after_seconds", "from 0 to 86400"),
            (failures, "worker.max_failure_rate", "a percentage, from 0 to 100"),
            (replicas, "scaling.max_replicas", "at least 1 and at least min_replicas"),
            (backlog, "scaling.backlog_minutes", "from 0.1 to 1000000"),
        ]
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
            max_failure_rate: self.worker.max_failure_rate / 100.0,
            max_deliveries: self.worker.max_deliveries,
            defer_from: worker::DEFER_FROM,
            shutdown_grace: Duration::from_secs(self.worker.shutdown_grace_seconds),
            unreachable_after: Duration::from_secs(self.worker.unreachable_after_seconds),
            spill_after: Duration::from_secs_f64(self.pool.spill_after_seconds),
        }
    }

    /// Returns the largest number of calls in flight at a time.
    fn max_calls(&self) -> usize {
        self.deployments.iter().map(|d| d.concurrency.unwrap_or_else(most_paced_calls)).sum()
    }

    /// Returns the longest time that a call may take.
    #[cfg(feature = "documents")]
    pub fn longest_call(&self) -> Duration {
        let own = self.deployments.iter().filter_map(|d| d.request_timeout_seconds);
        Duration::from_secs(own.fold(self.worker.request_timeout_seconds, u64::max))
    }

    /// Builds the call targets of all deployments.
    ///
    /// # Errors
    /// Tells every deployment whose endpoint or key can't be used.
    pub fn targets(&self) -> Result<Vec<WorkerTarget>, ConfigError> {
        self.of_deployments(|deployment| deployment.target(&self.worker))
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
    /// Tells every deployment whose endpoint is no URL.
    pub fn members(&self) -> Result<Vec<PoolMember>, ConfigError> {
        self.of_deployments(DeploymentConfig::member)
    }

    fn of_deployments<T>(
        &self,
        make: impl Fn(&DeploymentConfig) -> Result<T, ConfigError>,
    ) -> Result<Vec<T>, ConfigError> {
        let mut made = Vec::new();
        let mut faults = Vec::new();
        for (n, deployment) in self.deployments.iter().enumerate() {
            match make(deployment) {
                Ok(one) => made.push(one),
                Err(cause) => {
                    let name = || format!("deployment {}", deployment.display_name());
                    let place = (self.deployments.len() > 1).then(name);
                    faults.push(ConfigFault { key: format!("deployments.{n}"), place, cause });
                }
            }
        }
        ConfigFaults::into_result(faults)?;
        Ok(made)
    }
}
