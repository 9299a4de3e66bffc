//! What is asked: one prompt request and the names it goes by.
//!
//! Knows no other station. `message` is the form of a [`Job`] in every queue, `aside` is about bodies
//! that are too large for one, `history` what a job carries from one message to the next, and `trace`
//! which trace it belongs to.

mod amendment;
mod aside;
pub mod edit;
mod history;
mod message;
mod trace;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use amendment::Amendment;
pub use aside::Aside;
pub use history::History;
pub use trace::{BadTraceParent, TraceParent};

/// Namespace of all job ids. Changing it would make every known job a stranger.
const JOB_NAMESPACE: Uuid = Uuid::from_u128(0x7d3c_41a6_52f0_5a8e_9b1d_c0ff_ee00_0001);

/// The name of a batch: a set of jobs that is enqueued, watched and exported together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BatchId(Arc<str>);

/// A batch name that can't be one.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no batch name: use 1 to 100 letters, digits, '-', '_' or '.'")]
pub struct BadBatchId(String);

impl BatchId {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for BatchId {
    type Err = BadBatchId;

    /// Names are limited to what is safe in a file name, a URL path and a Cosmos DB id alike.
    fn from_str(name: &str) -> Result<Self, BadBatchId> {
        let legal = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.chars().count() > 100 || !name.chars().all(legal) {
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

/// A job's one name everywhere: message id in the queue, item id in the store, trace attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

impl JobId {
    /// The UUIDv5 of (batch id, custom id): the same input gives the same id on every machine.
    pub fn new(batch: &BatchId, custom_id: &str) -> Self {
        // No batch id contains a line feed, so two pairs never run together into one name.
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

/// The APIs a job can ask for, by the `url` of its line.
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

/// The tokens that a job is expected to take, counted once where it enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Estimate {
    /// Prompt tokens by the model's tokenizer, the chat format's own tokens included.
    pub prompt: u32,
    /// The most tokens the answer may have, over all choices.
    pub max_output: u32,
}

impl Estimate {
    /// What Azure OpenAI books against the quota on arrival: prompt plus maximum output.
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
    /// Place in the batch's input, from 0: what `--ordered` sorts by.
    pub position: u64,
    pub api: Api,
    /// The model that is asked for; the pool that serves it decides which deployment answers.
    pub model: String,
    /// The request body: one JSON object, as the user wrote it; empty while it lies aside.
    pub body: Bytes,
    /// Says that the body lies in the store, since it is too large for the queue.
    pub aside: Option<Aside>,
    /// Absent when whoever enqueued the job did not count; the worker counts then.
    pub estimate: Option<Estimate>,
    /// After this time the job ends as expired, without a call.
    pub deadline: Option<Timestamp>,
    /// Before this time the job is not handed out.
    pub not_before: Option<Timestamp>,
    /// Higher goes first; 0 where nothing was said.
    pub priority: i32,
    /// The user's own JSON object, carried to the outcome.
    pub metadata: Option<Box<str>>,
    /// The job may have an outcome although it was never handed out under this message: look it up
    /// before any call.
    pub look_up: bool,
    pub history: History,
}

impl Job {
    /// A fingerprint of what is asked (API and body), to tell a repeated job from a changed one.
    pub fn digest(&self) -> u64 {
        self.aside.map_or_else(|| digest(self.api, &self.body), |aside| aside.digest)
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
            aside: None,
            estimate: Some(Estimate { prompt: 3, max_output: 16 }),
            deadline: Some("2026-11-24T06:00:00Z".parse().unwrap()),
            not_before: None,
            priority: 2,
            metadata: Some(r#"{"team":"経理"}"#.into()),
            look_up: true,
            history: History { tries: 2, last_error: Some("逾時".into()), ..History::default() },
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
        let body = aside.put_aside();
        assert_eq!(aside.digest(), whole.digest());
        let message = aside.to_message().unwrap();
        assert!(!String::from_utf8(message.clone()).unwrap().contains("messages"));
        let received = Job::from_message(&message).unwrap();
        assert_eq!(received, aside);
        assert_eq!(received.with_body(body), Some(whole));
        assert_eq!(received.with_body(Bytes::from_static(b"{}")), None, "another body");
    }

    #[test]
    fn a_minimal_message_from_another_program_is_a_job() {
        let message = br#"{"custom_id":"x","batch_id":"b","url":"/v1/embeddings","body":{"model":"m","input":"hi"}}"#;
        let job = Job::from_message(message).unwrap();
        assert_eq!((job.api, job.priority, job.estimate), (Api::Embeddings, 0, None));
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
