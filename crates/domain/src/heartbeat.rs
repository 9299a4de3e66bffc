//! Heartbeats that worker instances publish to each other, so that they share a deployment's quota.
//!
//! `admission::shares` defines the numbers, a store carries them, the worker exchanges them. Workers
//! of several versions read each other's heartbeats: the serialized names never change, and a part
//! of a status that this version cannot read counts as absent.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

use crate::deployment::DemandSnapshot;
use crate::inquiry::{InquiryAnswer, WorkerInquiry};

/// Interval from one exchange of heartbeats to the next.
pub const EXCHANGE_INTERVAL: Duration = Duration::from_secs(2);

/// Heartbeat of one instance to its siblings. Each new one replaces the one before.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
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
    #[serde(rename = "about")]
    pub status: WorkerStatus,
}

impl Heartbeat {
    /// Returns the heartbeat that carries an inquiry to the workers. It claims no share of any
    /// quota.
    pub fn asking(inquiry: WorkerInquiry, instance: Uuid) -> Self {
        let status = WorkerStatus { inquiry: Some(inquiry), ..WorkerStatus::default() };
        Self { instance, sequence: 1, quota_claims: BTreeMap::new(), status }
    }

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

/// Status of an instance: its process, the state of each deployment, and the inquiries and answers
/// of `promptmill why`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerStatus {
    /// Name of its machine or container.
    #[serde(deserialize_with = "or_absent", skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(deserialize_with = "or_absent", skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(deserialize_with = "or_absent", skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(deserialize_with = "or_absent", skip_serializing_if = "Option::is_none")]
    pub started: Option<Timestamp>,
    #[serde(deserialize_with = "or_absent", skip_serializing_if = "Vec::is_empty")]
    pub deployments: Vec<DeploymentReport>,
    /// Inquiry to all workers, from somebody who queries.
    #[serde(
        rename = "asks",
        deserialize_with = "or_absent",
        skip_serializing_if = "Option::is_none"
    )]
    pub inquiry: Option<WorkerInquiry>,
    /// Answers to the open inquiries, by the instance that asks.
    #[serde(deserialize_with = "or_absent", skip_serializing_if = "BTreeMap::is_empty")]
    pub answers: BTreeMap<Uuid, InquiryAnswer>,
}

/// State of one deployment as an instance reports it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DeploymentReport {
    pub name: String,
    /// Key of its quota, the same at every instance.
    pub quota: String,
    #[serde(rename = "standing")]
    pub snapshot: DemandSnapshot,
}

/// Reads a value, or its default where another version wrote one that does not fit.
fn or_absent<'de, D, T>(value: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned + Default,
{
    let value = serde_json::Value::deserialize(value)?;
    Ok(T::deserialize(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::inquiry::{JobStage, LeasedJobCounts};

    const ASKER: &str = "00000000-0000-0000-0000-000000000009";

    /// Heartbeat as versions before the typed status wrote it.
    fn old_document() -> Value {
        let standing = json!({
            "demand": 1.0, "name": "sim", "tier": 1, "service": "flex", "tpm_configured": 60_000,
            "tpm_learnt": null, "rpm": 600, "charge_factor": 1.5, "reserve": 0.25, "share": 0.5,
            "used_last_minute": 20_000, "waiting": 100, "in_flight": 2, "calls_allowed": 8,
            "concurrency": 16, "call_seconds": 2.5, "call_tokens": 100.0, "utilisation": null,
            "paused_ms": 30, "breaker": "half_open", "breaker_why": "503", "retired": null,
        });
        let block = json!({
            "deployment": "sim", "tier": 1, "for": "tokens", "tpm": 60_000, "share": 0.5,
            "over_in_ms": 250,
        });
        let wait = json!({
            "charge": 100, "ahead": 3, "ahead_tokens": 300, "blocks": [block], "goes_in_ms": null,
        });
        let id = "00000000-0000-0000-0000-000000000003";
        let of_job = |stage: Value| {
            let mut job = json!({
                "job": id, "batch": "night", "tries": 2, "last_error": "500", "deadline_ms": 7,
            });
            job.as_object_mut().unwrap().extend(stage.as_object().unwrap().clone());
            job
        };
        let counts = json!({
            "lines": [{ "jobs": 4, "tokens": 400, "first": wait }], "calls": { "sim": 2 },
            "retries": 1, "next_retry_in_ms": 50,
        });
        let answer = json!({
            "jobs": [
                of_job(json!({ "at": "line", "wait": wait })),
                of_job(json!({ "at": "call", "deployment": "sim", "since_ms": 5 })),
                of_job(json!({ "at": "retry", "due_in_ms": 6 })),
            ],
            "batch": counts, "all": counts,
        });
        json!({
            "instance": "00000000-0000-0000-0000-000000000001", "beat": 12,
            "parts": { "h/sim": { "demand": 1.0, "claim": 0.5 } },
            "about": {
                "host": "night-1", "pid": 7, "version": "0.1.0", "started": "2026-01-01T00:00:00Z",
                "deployments": [{ "name": "sim", "quota": "h/sim", "standing": standing }],
                "asks": { "jobs": [id], "batch": "night" }, "answers": { ASKER: answer },
            },
        })
    }

    fn read(document: Value) -> Heartbeat {
        serde_json::from_value(document).unwrap()
    }

    #[test]
    fn workers_of_older_versions_are_understood_and_understand_us() {
        let heartbeat = read(old_document());
        assert_eq!((heartbeat.sequence, heartbeat.quota_claims["h/sim"].claim), (12, 0.5));
        let status = &heartbeat.status;
        assert_eq!((status.host.as_deref(), status.pid), (Some("night-1"), Some(7)));
        assert_eq!(status.deployments[0].snapshot.state.concurrency, 16);
        let answer = &status.answers[&ASKER.parse().unwrap()];
        assert_eq!(answer.jobs[0].attempts, 2);
        assert!(matches!(answer.jobs[2].at, JobStage::Retry { due_in_ms: 6 }));
        assert_eq!(answer.batch.as_ref().map(LeasedJobCounts::jobs), Some(7));
        // What we write is the same document, name by name.
        assert_eq!(serde_json::to_value(&heartbeat).unwrap(), old_document());
    }

    #[test]
    fn a_part_that_another_version_wrote_otherwise_takes_nothing_else_with_it() {
        let mut document = old_document();
        document["about"]["deployments"] = json!([{ "quota": "h/sim", "standing": "idle" }]);
        document["about"]["answers"] = json!([ASKER]);
        document["about"]["pid"] = json!("seven");
        document["about"]["cores"] = json!(4);
        let heartbeat = read(document);
        assert_eq!(heartbeat.quota_claims.len(), 1, "it goes on sharing the quota");
        let WorkerStatus { host, pid, deployments, answers, .. } = heartbeat.status;
        assert_eq!((host.as_deref(), pid), (Some("night-1"), None));
        assert_eq!((deployments.len(), answers.len()), (0, 0));
        let mut older = old_document();
        let standing = &mut older["about"]["deployments"][0]["standing"];
        *standing = json!({ "demand": 0.5, "name": "sim", "share": 0.5 });
        let snapshot = read(older).status.deployments[0].snapshot.clone();
        assert_eq!((snapshot.demand, snapshot.state.call_seconds), (0.5, None));
    }

    #[test]
    fn who_only_asks_claims_nothing() {
        let inquiry = WorkerInquiry { batch: "night".parse().ok(), ..WorkerInquiry::default() };
        let asking = Heartbeat::asking(inquiry, Uuid::from_u128(9));
        assert!(!asking.is_worker());
        let written = serde_json::to_value(&asking).unwrap();
        assert_eq!(written["about"], json!({ "asks": { "batch": "night" } }));
    }
}
