//! Heartbeats that worker instances publish to each other, so that they share a deployment's quota.
//!
//! `admission::shares` defines the numbers, a store carries them, the worker exchanges them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Heartbeat of one instance to its siblings. Each new one replaces the one before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// New with every start of a process.
    pub instance: Uuid,
    /// Higher with every heartbeat: one read twice unchanged brings nothing new. No clock of
    /// another machine is ever compared with one's own.
    #[serde(rename = "beat")]
    pub sequence: u64,
    /// Claims by quota key, which is the same at every instance. Empty in the heartbeats of those
    /// who only query the workers.
    #[serde(rename = "parts")]
    pub quota_claims: BTreeMap<String, QuotaClaim>,
    /// Status for people: process, host, version, and the state of each deployment.
    #[serde(rename = "about")]
    pub status: serde_json::Value,
}

impl Heartbeat {
    /// Returns whether it comes from a worker. One without claims comes from somebody who only
    /// queries.
    pub fn is_worker(&self) -> bool {
        !self.quota_claims.is_empty()
    }
}

/// Claim of an instance on one deployment; both numbers are fractions of its whole quota.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct QuotaClaim {
    /// Fraction that it could use: 1 where it has more to do than its share allows.
    pub demand: f64,
    /// Most that it may take until its next heartbeat (the floor aside).
    pub claim: f64,
}
