//! Sections of the configuration, with their defaults.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

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
    /// Percentage of a batch's last 200 jobs that may fail before it is paused; 100: all.
    pub max_failure_rate: f64,
    pub shutdown_grace_seconds: u64,
    /// Time limit of a whole call, from sending to the last byte.
    pub request_timeout_seconds: u64,
    /// Time limit until an answer's head; absent: that of the whole call.
    pub first_byte_timeout_seconds: Option<u64>,
    /// Time limit between two parts of an answer's body.
    pub idle_timeout_seconds: u64,
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
            // Above it something is wrong that a person should see before more is paid.
            max_failure_rate: 50.0,
            // Below the 30 s that container platforms give after SIGTERM.
            shutdown_grace_seconds: 25,
            // Long answers of reasoning models take minutes.
            request_timeout_seconds: 600,
            // An answer that is not streamed comes when it is complete.
            first_byte_timeout_seconds: None,
            idle_timeout_seconds: 120,
            unreachable_after_seconds: 300,
        }
    }
}
