//! What is known of a deployment before it was ever asked.

use serde::{Deserialize, Serialize};

/// How a deployment serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// By tokens and requests a minute.
    #[default]
    Standard,
    /// Provisioned throughput: no quota a minute, but a utilisation and 429s.
    Provisioned,
    /// The flex tier of a standard deployment: half the price, when there is room.
    Flex,
}

/// What is known of a deployment before it was ever asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Tokens a minute; `None`: to be found out.
    pub tpm: Option<u64>,
    /// Requests a minute.
    pub rpm: Option<u64>,
    /// Calls in flight at a time.
    pub concurrency: usize,
    pub service: Service,
    /// The part of the quota that is left to others, from 0 to 1.
    pub reserve: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tpm: None, rpm: None, concurrency: 64, service: Service::Standard, reserve: 0.0 }
    }
}
