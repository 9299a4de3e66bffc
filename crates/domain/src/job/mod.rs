//! Job: one prompt request and its ids.
//!
//! Depends on no other stage. `message` is the form of a [`Job`] in every queue, `claim_check`
//! refers to a stored body that is too large for one, `history` is what a job carries from one
//! message to the next, `resubmit` makes a dead letter's job one to be worked again (with an
//! `amendment`), and `trace` is the trace it belongs to.

mod amendment;
mod claim_check;
mod history;
pub mod json_edits;
mod message;
mod resubmit;
mod trace;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use amendment::Amendment;
pub use claim_check::ClaimCheck;
pub use history::JobHistory;
pub use trace::{BadTraceParent, TraceParent};

/// Namespace of all job ids. Changing it would change the id of every known job.
const JOB_NAMESPACE: Uuid = Uuid::from_u128(0x7d3c_41a6_52f0_5a8e_9b1d_c0ff_ee00_0001);

/// Name of a batch: a set of jobs that is enqueued, watched and exported together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BatchId(Arc<str>);

/// Most characters of a batch name.
const MAX_BATCH_NAME: usize = 100;

/// Invalid batch name.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is not a valid batch name: use 1 to 100 letters, digits, '-', '_' or '.'")]
pub struct BadBatchId(String);

/// End of the names of batches that the simulator answers.
const SIMULATED: &str = "-simulated";

impl BatchId {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name under which the simulator answers this batch: another one, so that no run
    /// takes its words for answers.
    #[must_use]
    pub fn simulated(&self) -> Self {
        if self.is_simulated() {
            return self.clone();
        }
        let kept = self.0.chars().take(MAX_BATCH_NAME - SIMULATED.len());
        Self(kept.chain(SIMULATED.chars()).collect::<String>().into())
    }

    /// Returns whether the simulator answers this batch: its tokens cost nothing.
    pub fn is_simulated(&self) -> bool {
        self.0.ends_with(SIMULATED)
    }
}

impl FromStr for BatchId {
    type Err = BadBatchId;

    /// Accepts only names that are safe in a file name, a URL path and a Cosmos DB id alike.
    fn from_str(name: &str) -> Result<Self, BadBatchId> {
        let legal = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.chars().count() > MAX_BATCH_NAME || !name.chars().all(legal) {
            return Err(BadBatchId(name.to_owned()));
        }
        Ok(Self(name.into()))
    }
}

impl TryFrom<String> for BatchId {
    type Error = BadBatchId;

    fn try_from(name: String) -> Result<Self, BadBatchId> {
        name.parse()
    }
}

impl From<BatchId> for String {
    fn from(id: BatchId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Id of a job everywhere: message id in the queue, item id in the store, trace attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

impl JobId {
    /// Returns the UUIDv5 of (batch id, custom id): the same input gives the same id on every
    /// machine.
    pub fn new(batch: &BatchId, custom_id: &str) -> Self {
        // No batch id contains a line feed, so two pairs never make the same name.
        let name = [batch.as_str(), "\n", custom_id].concat();
        Self(Uuid::new_v5(&JOB_NAMESPACE, name.as_bytes()))
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// APIs that a job can call, by the `url` of its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Api {
    #[serde(rename = "/v1/chat/completions", alias = "/chat/completions")]
    ChatCompletions,
    #[serde(rename = "/v1/responses", alias = "/responses")]
    Responses,
    #[serde(rename = "/v1/embeddings", alias = "/embeddings")]
    Embeddings,
}

impl Api {
    /// Reads a line's `url`; Azure's Batch API also writes it without `/v1`.
    pub fn from_url(url: &str) -> Option<Self> {
        match url {
            "/v1/chat/completions" | "/chat/completions" => Some(Self::ChatCompletions),
            "/v1/responses" | "/responses" => Some(Self::Responses),
            "/v1/embeddings" | "/embeddings" => Some(Self::Embeddings),
            _ => None,
        }
    }

    pub fn url(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/v1/chat/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
        }
    }
}

/// Tokens that a job is expected to take, counted once at intake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenEstimate {
    /// Prompt tokens by the model's tokenizer, the chat format's own tokens included.
    pub prompt: u32,
    /// Longest answer in tokens, over all choices.
    pub max_output: u32,
}

impl TokenEstimate {
    /// Returns what Azure OpenAI books against the quota on arrival: prompt plus maximum output.
    pub fn charge(self) -> u64 {
        u64::from(self.prompt) + u64::from(self.max_output)
    }
}

/// One prompt request.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    pub id: JobId,
    pub batch_id: BatchId,
    /// The user's own name for the job, unique within its batch.
    pub custom_id: String,
    /// Place in the batch's input, from 0: the sort key of `--ordered`.
    pub position: u64,
    pub api: Api,
    /// Requested model; the pool that serves it decides which deployment answers.
    pub model: String,
    /// Request body: one JSON object, as the user wrote it; empty with a claim check.
    pub body: Bytes,
    /// Reference to the stored body, if it is too large for the queue.
    pub claim_check: Option<ClaimCheck>,
    /// Absent when the job was enqueued without a count; the worker counts then.
    pub estimate: Option<TokenEstimate>,
    /// Time after which the job ends as expired, without a call.
    pub deadline: Option<Timestamp>,
    /// Time before which the job is not handed out.
    pub not_before: Option<Timestamp>,
    /// Higher goes first; 0 by default.
    pub priority: i32,
    /// The user's own JSON object, carried to the outcome.
    pub metadata: Option<Box<str>>,
    /// The job may have an outcome although it was never handed out under this message: look it up
    /// before any call.
    pub may_have_outcome: bool,
    pub history: JobHistory,
}

impl Job {
    /// Returns a fingerprint of API and body, to tell a repeated job from a changed one.
    pub fn digest(&self) -> u64 {
        self.claim_check.map_or_else(|| digest(self.api, &self.body), |aside| aside.digest)
    }

    /// Takes the body out, to be stored under [`Job::payload_name`] before the job is sent.
    pub fn offload_body(&mut self) -> Bytes {
        let body = std::mem::take(&mut self.body);
        self.claim_check =
            Some(ClaimCheck { digest: digest(self.api, &body), bytes: body.len() as u64 });
        body
    }

    /// Returns the name of a stored body. It is made of the job and the body: storing it again
    /// changes nothing, and another body of the same job gets another name.
    pub fn payload_name(&self) -> Option<String> {
        self.claim_check.map(|aside| format!("{}-{:016x}", self.id, aside.digest))
    }

    /// Returns the job with its body at hand; `None` if this is not the body that was stored.
    pub fn with_body(&self, body: Bytes) -> Option<Self> {
        let whole = Self { body, claim_check: None, ..self.clone() };
        (whole.digest() == self.digest()).then_some(whole)
    }
}

fn digest(api: Api, body: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(body, api as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        let batch_id: BatchId = "night".parse().unwrap();
        Job {
            id: JobId::new(&batch_id, "a"),
            batch_id,
            custom_id: "a".into(),
            position: 7,
            api: Api::ChatCompletions,
            model: "gpt-4.1".into(),
            body: Bytes::from_static(br#"{"model":"gpt-4.1","messages":[]}"#),
            claim_check: None,
            estimate: Some(TokenEstimate { prompt: 3, max_output: 16 }),
            deadline: Some("2026-11-24T06:00:00Z".parse().unwrap()),
            not_before: None,
            priority: 2,
            metadata: Some(r#"{"team":"経理"}"#.into()),
            may_have_outcome: true,
            history: JobHistory {
                attempts: 2,
                last_error: Some("逾時".into()),
                ..JobHistory::default()
            },
        }
    }

    #[test]
    fn a_job_survives_the_queue_unchanged() {
        let message = job().to_message().unwrap();
        assert_eq!(Job::from_message(&message).unwrap(), job());
    }

    #[test]
    fn a_job_whose_body_lies_aside_travels_without_it_and_knows_it_again() {
        let whole = job();
        let mut aside = whole.clone();
        let body = aside.offload_body();
        assert_eq!(aside.digest(), whole.digest());
        let message = aside.to_message().unwrap();
        assert!(!String::from_utf8(message.clone()).unwrap().contains("messages"));
        let received = Job::from_message(&message).unwrap();
        assert_eq!(received, aside);
        assert_eq!(received.with_body(body), Some(whole));
        assert_eq!(received.with_body(Bytes::from_static(b"{}")), None, "another body");
    }

    #[test]
    fn a_byte_order_mark_before_a_message_changes_nothing() {
        let message = job().to_message().unwrap();
        let marked = [b"\xef\xbb\xbf".as_slice(), &message].concat();
        assert_eq!(Job::from_message(&marked).unwrap(), job());
    }

    #[test]
    fn a_minimal_message_from_another_program_is_a_job() {
        let message = br#"{"custom_id":"x","batch_id":"b","url":"/v1/embeddings","body":{"model":"m","input":"hi"}}"#;
        let job = Job::from_message(message).unwrap();
        assert_eq!((job.api, job.priority, job.estimate), (Api::Embeddings, 0, None));
    }

    #[test]
    fn the_names_in_a_message_never_change() {
        let mut sent = job();
        sent.history.deferred = 1;
        let message: serde_json::Value =
            serde_json::from_slice(&sent.to_message().unwrap()).unwrap();
        assert_eq!(message["look_up"], true, "{message}");
        assert_eq!(message["history"]["tries"], 2, "{message}");
        assert_eq!(message["history"]["postponed"], 1, "{message}");
    }

    #[test]
    fn a_message_that_is_no_job_says_what_it_lacks() {
        let error = Job::from_message(br#"{"custom_id":"x"}"#).unwrap_err();
        assert!(error.to_string().contains("missing field `batch_id`"), "{error}");
    }

    #[test]
    fn the_id_depends_on_batch_and_custom_id_alone() {
        let (a, b): (BatchId, BatchId) = ("a".parse().unwrap(), "b".parse().unwrap());
        assert_eq!(JobId::new(&a, "1"), JobId::new(&a, "1"));
        assert_ne!(JobId::new(&a, "1"), JobId::new(&b, "1"));
        assert_eq!(
            JobId::new(&a, "1").to_string(),
            "09237301-dacb-5fbc-9c1f-ebdd5223cb29",
            "ids are stored: they must never change",
        );
    }

    #[test]
    fn batch_names_are_safe_everywhere() {
        for bad in ["", "a/b", "a b", "a\n", &"x".repeat(101)] {
            assert!(bad.parse::<BatchId>().is_err(), "{bad:?}");
        }
        assert!("夜間-2026.11_24".parse::<BatchId>().is_ok());
    }
}
