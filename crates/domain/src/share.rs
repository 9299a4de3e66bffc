//! What worker instances tell each other, so that they share a deployment's quota.
//!
//! `admission::shares` says what the numbers mean, a store carries them, the worker exchanges them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// One instance's word to its siblings. Each new one takes the place of the one before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Word {
    /// New with every start of a process.
    pub instance: Uuid,
    /// Higher with every word: who reads it twice unchanged has heard nothing new. No clock of
    /// another machine is ever compared with one's own.
    pub beat: u64,
    /// By what makes a quota one: the deployment's key, the same at every instance. Empty in the
    /// words of those who only ask the workers something.
    pub parts: BTreeMap<String, Part>,
    /// For people: process, host, version, and how each deployment stands.
    pub about: serde_json::Value,
}

impl Word {
    /// Whether a worker says it. One without parts comes from somebody who only asks.
    pub fn is_worker(&self) -> bool {
        !self.parts.is_empty()
    }
}

/// An instance's part in one deployment; both are fractions of its whole quota.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// What it could use: 1 where it has more to do than its share allows.
    pub demand: f64,
    /// What it may take, at the most, until its next word (the floor aside).
    pub claim: f64,
}
