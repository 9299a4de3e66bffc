//! State of a deployment as one instance sees it, for display and for its siblings.
//!
//! `admission` takes these snapshots, heartbeats carry them, `report` sums them over all workers.

use serde::{Deserialize, Serialize};

/// Way in which a deployment serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceKind {
    /// Tokens and requests a minute.
    #[default]
    Standard,
    /// Provisioned throughput: no quota a minute, but a utilisation and 429s.
    Provisioned,
    /// The flex tier of a standard deployment: half the price, when there is room.
    Flex,
}

/// State of one deployment at one moment, in this instance.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeploymentSnapshot {
    pub name: String,
    /// Tier 0 is asked first.
    pub tier: u8,
    pub service: ServiceKind,
    /// Tokens a minute, as configured.
    pub tpm_configured: Option<u64>,
    /// Tokens a minute where the headers or the 429s say otherwise.
    pub tpm_learnt: Option<u64>,
    /// Requests a minute, as the headers say or as configured.
    pub rpm: Option<u64>,
    /// The service's charge for one token of ours.
    pub charge_factor: f64,
    /// Part of the quota that is left to others.
    pub reserve: f64,
    /// Part of the quota that this instance may use.
    pub share: f64,
    /// Tokens booked in the last minute.
    pub used_last_minute: u64,
    /// Tokens of the queued jobs that it may take.
    pub waiting: u64,
    pub in_flight: usize,
    /// Calls in flight that are allowed at present.
    pub calls_allowed: usize,
    /// Calls in flight that were configured. 0 in heartbeats of older versions.
    pub concurrency: usize,
    /// Mean duration of a call, and mean tokens booked for it, of the last calls that were
    /// answered.
    pub call_seconds: Option<f64>,
    pub call_tokens: Option<f64>,
    /// Utilisation that a provisioned deployment reports.
    pub utilisation: Option<f64>,
    /// Rest of the pause after a 429, in milliseconds.
    pub paused_ms: Option<u64>,
    /// Words of the last refusal, if nothing was answered since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_refusal: Option<String>,
    /// Rest of the wait that it asked for; it may be asked earlier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked_ms: Option<u64>,
    pub breaker: BreakerState,
    /// The fault that opened the breaker.
    pub breaker_why: Option<String>,
    /// Reason why it is out of the pool for good.
    pub retired: Option<String>,
}

/// State of a deployment, and the part of its whole quota that this instance could use.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DemandSnapshot {
    pub demand: f64,
    #[serde(flatten)]
    pub state: DeploymentSnapshot,
}

/// State of a deployment's circuit breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    #[default]
    Closed,
    Open,
    /// A single call probes.
    HalfOpen,
}
