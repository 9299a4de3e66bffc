//! Counts that the tally keeps and the report shows: a phase's, a second's, and why a run stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::call::{RequestSample, SampleStatus};

/// Service level that a good answer meets, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    pub ttft_ms: Option<f64>,
    pub tbt_ms: Option<f64>,
    pub e2e_ms: Option<f64>,
}

impl Slo {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn is_met(&self, sample: &RequestSample) -> bool {
        let within = |bound: Option<f64>, span: Option<Duration>| match (bound, span) {
            (Some(bound), Some(span)) => span.as_secs_f64() * 1_000.0 <= bound,
            _ => true,
        };
        within(self.ttft_ms, sample.ttft)
            && within(self.tbt_ms, sample.tbt)
            && within(self.e2e_ms, Some(sample.latency()))
    }
}

/// Counts of the requests that ended in one second of the measured part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct SecondCounts {
    pub succeeded: u64,
    pub throttled: u64,
    pub failed: u64,
    /// Succeeded within the service level.
    pub good: u64,
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    pub charged_tokens: u64,
    /// Largest value that the service reported, in percent.
    pub utilization: Option<f64>,
}

impl SecondCounts {
    pub(super) fn add(&mut self, sample: &RequestSample, good: bool) {
        match sample.status {
            SampleStatus::Succeeded => {
                self.succeeded += 1;
                self.charged_tokens += sample.charge;
            }
            SampleStatus::Throttled => self.throttled += 1,
            SampleStatus::Failed { .. } | SampleStatus::Misconfigured { .. } => self.failed += 1,
        }
        self.good += u64::from(good);
        self.prompt_tokens += sample.prompt_tokens;
        self.output_tokens += sample.output_tokens;
        self.utilization = match (self.utilization, sample.utilization) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
    }
}

/// Failed requests by error code of the service or the connection.
pub type ErrorCodeCounts = BTreeMap<String, u64>;

/// Counts of the requests whose intended start lies in the measured part.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PhaseCounts {
    pub succeeded: u64,
    /// Ended as throttled (429).
    pub throttled: u64,
    pub failed: u64,
    pub codes: ErrorCodeCounts,
    /// Open loop only: never started, since the most that may be in flight were until the end.
    pub unsent: u64,
    /// Calls, retries included; and those of them that were throttled (429).
    pub calls: u64,
    pub refused_calls: u64,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
}

impl PhaseCounts {
    pub(super) fn add(&mut self, sample: &RequestSample) {
        match &sample.status {
            SampleStatus::Succeeded => self.succeeded += 1,
            SampleStatus::Throttled => self.throttled += 1,
            SampleStatus::Failed { code } => {
                self.failed += 1;
                *self.codes.entry(code.clone()).or_default() += 1;
            }
            SampleStatus::Misconfigured { .. } => {
                self.failed += 1;
                *self.codes.entry("misconfigured".into()).or_default() += 1;
            }
        }
        self.calls += u64::from(sample.calls);
        self.refused_calls += u64::from(sample.throttled_calls);
        self.prompt_tokens += sample.prompt_tokens;
        self.cached_tokens += sample.cached_tokens;
        self.output_tokens += sample.output_tokens;
    }

    pub fn requests(&self) -> u64 {
        self.succeeded + self.throttled + self.failed
    }
}

/// Reason why a benchmark ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BenchStopReason {
    Complete,
    Interrupted,
    /// Too many failed requests.
    ErrorRate {
        rate: f64,
        /// Error of the last of them.
        last: String,
    },
    Misconfigured {
        why: String,
    },
}
