//! Items as stored in the containers: ids, partition keys, shards.
//!
//! Field names appear in users' queries: they must not change. Bodies and metadata are kept as JSON
//! text, byte for byte as they came: as JSON values the database would reorder keys, round long
//! numbers and refuse deep nesting. `StringToObject(c.body)` opens them in a query.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::error::BadItem;
use crate::unstorable::MAX_COUNT;
use crate::{
    Batch, BatchSenders, BatchState, EnqueuedInput, FinishCounts, KvRecord, MinuteTotals, Recorded,
    StoreError,
};
use domain::heartbeat::{Heartbeat, QuotaClaim, WorkerStatus};
use domain::job::{BatchId, JobId};
use domain::outcome::{AnswerFinish, AnswerFlaw, JobFailure, Outcome, OutcomeStatus, TokenUsage};

pub(super) const OUTCOMES: &str = "outcomes";
pub(super) const BATCHES: &str = "batches";
pub(super) const USAGE: &str = "usage";
pub(super) const SHARES: &str = "shares";
pub(super) const PAYLOADS: &str = "payloads";

/// The partition key of one shard of a batch.
pub(super) fn partition_key(batch: &BatchId, shard: u32) -> String {
    format!("{batch}|{shard}")
}

/// The shard of a job: the id's last 32 bits modulo the batch's number of shards.
///
/// A job id is a hash already. So any script finds an item: `int(job_id[-8:], 16) % shards`.
pub(super) fn shard_of(job: JobId, shards: u32) -> u32 {
    let [.., a, b, c, d] = *job.as_bytes();
    u32::from_be_bytes([a, b, c, d]) % shards.max(1)
}

/// An item of `outcomes`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct OutcomeItem<'a> {
    pub id: Cow<'a, str>,
    pub pk: Cow<'a, str>,
    pub batch_id: Cow<'a, str>,
    pub custom_id: Cow<'a, str>,
    pub position: u64,
    /// In hex: numbers above 2^53 lose digits on the way.
    pub digest: Cow<'a, str>,
    pub ending: OutcomeStatus,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Cow<'a, JobFailure>>,
    pub usage: TokenUsage,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<AnswerFinish>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flaw: Option<AnswerFlaw>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<Cow<'a, str>>,
    pub attempts: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub throttled: u32,
    pub deployment: Cow<'a, str>,
    pub model: Cow<'a, str>,
    pub latency_ms: u64,
    pub finished_at: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Cow<'a, str>>,
    /// The payload that holds the body, if it is too big for this item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_ref: Option<Cow<'a, str>>,
    /// Id of the write that created the item: tells our repeated write from another worker's.
    pub write_id: Cow<'a, str>,
}

impl<'a> OutcomeItem<'a> {
    pub(super) fn new(o: &'a Outcome, pk: &'a str, write_id: &'a str) -> Result<Self, StoreError> {
        let body = o.body.as_deref().map(simdutf8::basic::from_utf8).transpose();
        Ok(Self {
            id: o.job_id.to_string().into(),
            pk: pk.into(),
            batch_id: o.batch_id.as_str().into(),
            custom_id: o.custom_id.as_str().into(),
            position: o.position.min(MAX_COUNT),
            digest: format!("{:016x}", o.digest).into(),
            ending: o.ending,
            status_code: o.status_code,
            request_id: o.request_id.as_deref().map(Cow::from),
            failure: o.failure.as_ref().map(Cow::Borrowed),
            usage: o.usage,
            finish: o.finish,
            flaw: o.flaw,
            service_tier: o.service_tier.as_deref().map(Cow::from),
            attempts: o.attempts,
            throttled: o.throttled,
            deployment: o.deployment.as_str().into(),
            model: o.model.as_str().into(),
            latency_ms: o.latency_ms.min(MAX_COUNT),
            finished_at: o.finished_at.to_string().into(),
            deadline: o.deadline,
            metadata: o.metadata.as_deref().map(Cow::from),
            body: body.map_err(|_| BadItem::BodyNotText(o.job_id))?.map(Cow::from),
            body_ref: None,
            write_id: write_id.into(),
        })
    }

    /// Returns the proof for a later writer.
    pub(super) fn recorded(&self, job: JobId) -> Result<Recorded, BadItem> {
        let digest = parse_digest(&self.digest)
            .ok_or_else(|| BadItem::Field { id: job.to_string(), field: "digest" })?;
        Ok(Recorded { job_id: job, ending: self.ending, digest, first: false })
    }

    /// Converts to an outcome, without a body that is stored as a payload.
    pub(super) fn into_outcome(self) -> Result<Outcome, BadItem> {
        let id = self.id;
        let bad = |field| BadItem::Field { id: id.clone().into_owned(), field };
        Ok(Outcome {
            job_id: parse_job_id(&id).ok_or_else(|| bad("id"))?,
            batch_id: self.batch_id.parse().map_err(|_| bad("batchId"))?,
            custom_id: self.custom_id.into_owned(),
            position: self.position,
            digest: parse_digest(&self.digest).ok_or_else(|| bad("digest"))?,
            ending: self.ending,
            status_code: self.status_code,
            request_id: self.request_id.map(Cow::into_owned),
            body: self.body.map(|body| body.into_owned().into()),
            failure: self.failure.map(Cow::into_owned),
            usage: self.usage,
            finish: self.finish,
            flaw: self.flaw,
            service_tier: self.service_tier.map(|tier| tier.into_owned().into()),
            attempts: self.attempts,
            throttled: self.throttled,
            deployment: self.deployment.into_owned(),
            model: self.model.into_owned(),
            latency_ms: self.latency_ms,
            finished_at: self.finished_at.parse().map_err(|_| bad("finishedAt"))?,
            deadline: self.deadline,
            metadata: self.metadata.map(|text| text.into_owned().into()),
        })
    }
}

/// Cost of a withdrawn outcome: an item of `outcomes` without an ending, so no outcome itself.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WithdrawnItem<'a> {
    id: String,
    pk: &'a str,
    batch_id: &'a str,
    custom_id: &'a str,
    withdrawn: OutcomeStatus,
    attempts: u32,
    #[serde(skip_serializing_if = "is_zero")]
    throttled: u32,
    usage: TokenUsage,
    deployment: &'a str,
    model: &'a str,
    latency_ms: u64,
    finished_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'a str>,
}

impl<'a> WithdrawnItem<'a> {
    pub(super) fn new(item: &'a OutcomeItem<'_>) -> Self {
        Self {
            id: format!("{}.{}", item.id, item.write_id),
            pk: &item.pk,
            batch_id: &item.batch_id,
            custom_id: &item.custom_id,
            withdrawn: item.ending,
            attempts: item.attempts,
            throttled: item.throttled,
            usage: item.usage,
            deployment: &item.deployment,
            model: &item.model,
            latency_ms: item.latency_ms,
            finished_at: &item.finished_at,
            metadata: item.metadata.as_deref(),
            service_tier: item.service_tier.as_deref(),
        }
    }
}

/// Fields of an `outcomes` item that a proof needs.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ProofFields {
    ending: OutcomeStatus,
    digest: String,
    #[serde(default)]
    pub write_id: String,
}

impl ProofFields {
    pub(super) fn recorded(&self, job: JobId, first: bool) -> Result<Recorded, BadItem> {
        let digest = parse_digest(&self.digest)
            .ok_or_else(|| BadItem::Field { id: job.to_string(), field: "digest" })?;
        Ok(Recorded { job_id: job, ending: self.ending, digest, first })
    }
}

/// Fields of an `outcomes` item that the totals need.
#[derive(Debug, Deserialize)]
pub(super) struct TotalsFields {
    /// `None` for a withdrawn outcome.
    #[serde(default)]
    pub ending: Option<OutcomeStatus>,
    pub attempts: u64,
    pub usage: TokenUsage,
    #[serde(default)]
    pub finish: Option<AnswerFinish>,
}

/// An item of `batches`. Without a state it only fixes the number of shards, for jobs of a batch
/// that nobody announced.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct BatchItem {
    pub id: BatchId,
    /// Fixed when the item is created: another number would put the same job elsewhere.
    pub shards: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<BatchState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default)]
    pub jobs: u64,
    #[serde(default)]
    pub prompt_tokens: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<EnqueuedInput>,
    #[serde(default)]
    pub senders: BatchSenders,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_at: Option<String>,
}

impl BatchItem {
    pub(super) fn unannounced(id: &BatchId, shards: u32) -> Self {
        Self {
            id: id.clone(),
            shards,
            state: None,
            reason: None,
            jobs: 0,
            prompt_tokens: 0,
            inputs: Vec::new(),
            senders: BatchSenders::Unknown,
            created_at: None,
        }
    }

    pub(super) fn new(batch: &Batch, shards: u32) -> Self {
        Self {
            id: batch.id.clone(),
            shards,
            state: Some(batch.state),
            reason: batch.reason.clone(),
            jobs: batch.jobs,
            prompt_tokens: batch.prompt_tokens,
            inputs: batch.inputs.clone(),
            senders: batch.senders,
            created_at: Some(batch.created_at.to_string()),
        }
    }

    pub(super) fn into_batch(self) -> Result<Option<Batch>, BadItem> {
        let Some((state, created_at)) = self.state.zip(self.created_at) else { return Ok(None) };
        let created_at = created_at
            .parse()
            .map_err(|_| BadItem::Field { id: self.id.to_string(), field: "createdAt" })?;
        Ok(Some(Batch {
            id: self.id,
            state,
            reason: self.reason,
            jobs: self.jobs,
            prompt_tokens: self.prompt_tokens,
            inputs: self.inputs,
            senders: self.senders,
            created_at,
        }))
    }
}

/// An item of `usage`: one writer's sums for one batch, deployment, model, service tier and hour.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct UsageItem {
    pub id: String,
    pub batch_id: BatchId,
    /// Process that alone writes this item.
    pub worker: String,
    pub deployment: String,
    pub model: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<Box<str>>,
    /// "2026-11-23T16", in UTC.
    pub hour: String,
    /// Jobs that ended, by the minute of the hour.
    #[serde(default)]
    pub minutes: BTreeMap<u8, MinuteTotals>,
    pub endings: BTreeMap<OutcomeStatus, u64>,
    /// Dead outcomes that this writer withdrew, whichever worker had recorded them.
    #[serde(default)]
    pub withdrawn: u64,
    pub attempts: u64,
    pub usage: TokenUsage,
    #[serde(default, skip_serializing_if = "FinishCounts::is_empty")]
    pub finishes: FinishCounts,
}

/// Partition of all heartbeats, so that one read of one partition returns them all.
pub(super) const HEARTBEATS: &str = "words";

/// An item of `shares`: an instance's heartbeat; its id is the instance's.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HeartbeatItem<'a> {
    pub id: Uuid,
    pub pk: Cow<'a, str>,
    pub beat: u64,
    pub parts: Cow<'a, BTreeMap<String, QuotaClaim>>,
    pub about: Cow<'a, WorkerStatus>,
}

impl<'a> HeartbeatItem<'a> {
    pub(super) fn new(heartbeat: &'a Heartbeat) -> Self {
        Self {
            id: heartbeat.instance,
            pk: HEARTBEATS.into(),
            beat: heartbeat.sequence,
            parts: Cow::Borrowed(&heartbeat.quota_claims),
            about: Cow::Borrowed(&heartbeat.status),
        }
    }

    pub(super) fn into_heartbeat(self) -> Heartbeat {
        let (parts, about) = (self.parts.into_owned(), self.about.into_owned());
        Heartbeat { instance: self.id, sequence: self.beat, quota_claims: parts, status: about }
    }
}

/// An item of `shares`: a key-value record, which stays until it is removed or expires.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct KvItem {
    pub id: String,
    pub pk: String,
    /// Kept as text: it comes back byte for byte, so that a change can be detected.
    pub json: String,
    /// In seconds; -1: exempt from the container's time to live (Azure docs: "Time to Live (TTL)").
    ttl: i32,
}

impl KvItem {
    pub(super) fn partition(kind: &str) -> String {
        format!("notes|{kind}")
    }

    pub(super) fn new(note: &KvRecord) -> Self {
        let (id, json) = (note.id.clone(), note.json.clone());
        let seconds = |ttl: Duration| i32::try_from(ttl.as_secs().max(1)).unwrap_or(i32::MAX);
        Self { id, pk: Self::partition(&note.kind), json, ttl: note.ttl.map_or(-1, seconds) }
    }
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn parse_job_id(id: &str) -> Option<JobId> {
    serde_json::from_value(id.into()).ok()
}

fn parse_digest(hex: &str) -> Option<u64> {
    u64::from_str_radix(hex, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_stays_on_its_shard_for_ever() {
        let batch: BatchId = "a".parse().unwrap();
        let job = JobId::new(&batch, "1");
        assert_eq!(job.to_string(), "09237301-dacb-5fbc-9c1f-ebdd5223cb29");
        assert_eq!(shard_of(job, 64), 0x5223_cb29 % 64, "items are stored: this must never change");
    }

    #[test]
    fn shards_are_filled_evenly() {
        let batch: BatchId = "a".parse().unwrap();
        let mut counts = [0_u32; 16];
        for n in 0..16_000 {
            counts[shard_of(JobId::new(&batch, &n.to_string()), 16) as usize] += 1;
        }
        assert!(counts.iter().all(|n| (800..1200).contains(n)), "{counts:?}");
    }
}
