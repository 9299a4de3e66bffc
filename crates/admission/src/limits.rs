//! Configuration of a deployment: what is known before its first call.

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

/// Limits of a deployment, known before its first call.
#[derive(Debug, Clone, PartialEq)]
pub struct DeploymentLimits {
    /// Tokens a minute; `None`: to be learnt.
    pub tpm: Option<u64>,
    /// Requests a minute.
    pub rpm: Option<u64>,
    /// Calls in flight at a time.
    pub concurrency: usize,
    pub service: ServiceKind,
    /// Part of the quota that is left to others, from 0 to 1.
    pub reserve: f64,
}

impl Default for DeploymentLimits {
    fn default() -> Self {
        Self { tpm: None, rpm: None, concurrency: 64, service: ServiceKind::Standard, reserve: 0.0 }
    }
}
