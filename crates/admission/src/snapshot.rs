//! A deployment's state as people are shown it.

use serde::{Deserialize, Serialize};

use super::deployment::Service;

/// One deployment at one moment, in this instance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    pub name: String,
    /// 0 is asked first.
    pub tier: u8,
    pub service: Service,
    /// Tokens a minute, as configured.
    pub tpm_configured: Option<u64>,
    /// Tokens a minute where the headers or the refusals say otherwise.
    pub tpm_learnt: Option<u64>,
    /// Requests a minute, as the headers say or as configured.
    pub rpm: Option<u64>,
    /// What the service books for one token of ours.
    pub charge_factor: f64,
    /// The part of the quota that is left to others.
    pub reserve: f64,
    /// The part of the quota that this instance may use.
    pub share: f64,
    /// Tokens booked in the last minute.
    pub used_last_minute: u64,
    /// Tokens of the jobs in line that it may take.
    pub waiting: u64,
    pub in_flight: usize,
    /// Calls in flight that are allowed at present.
    pub calls_allowed: usize,
    /// Calls in flight that were configured. 0 in the words of older versions.
    #[serde(default)]
    pub concurrency: usize,
    /// How long a call lasts, and what is booked for it, by the last ones that were answered.
    #[serde(default)]
    pub call_seconds: Option<f64>,
    #[serde(default)]
    pub call_tokens: Option<f64>,
    /// A provisioned deployment's own word on how full it is.
    pub utilisation: Option<f64>,
    /// For how long a 429 still pauses it, in milliseconds.
    pub paused_ms: Option<u64>,
    pub breaker: BreakerState,
    /// The fault that opened the breaker.
    pub breaker_why: Option<String>,
    /// Why it is out of the pool for good.
    pub retired: Option<String>,
}

/// A deployment's state, and the part of its whole quota that this instance could use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    pub demand: f64,
    #[serde(flatten)]
    pub state: Snapshot,
}

/// Whether calls are kept off a deployment because of its faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    Closed,
    Open,
    /// A single call finds out.
    HalfOpen,
}
