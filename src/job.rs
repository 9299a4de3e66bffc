//! What is asked: one prompt request and the names it goes by.
//!
//! Knows no other station, only its own [`History`]. The serde form of [`Job`] is the queue message: the same JSON on every
//! backend, so that a job enqueued by somebody else's script is worked like one of ours.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::history::History;

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

/// What is known of a body that lies in the store (a claim check).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aside {
    /// The [`Job::digest`] of the job with its body.
    #[serde(with = "hex")]
    pub digest: u64,
    /// The body's size.
    pub bytes: u64,
}

impl Job {
    /// A fingerprint of what is asked (API and body), to tell a repeated job from a changed one.
    pub fn digest(&self) -> u64 {
        self.aside.map_or_else(|| digest(self.api, &self.body), |aside| aside.digest)
    }

    /// Takes the body out, to be stored under [`Job::payload`] before the job is sent.
    pub fn put_aside(&mut self) -> Bytes {
        let body = std::mem::take(&mut self.body);
        self.aside = Some(Aside { digest: digest(self.api, &body), bytes: body.len() as u64 });
        body
    }

    /// The name in the store of a body that lies aside. It is of the job and the body: storing it
    /// again changes nothing, and another body of the same job gets another name.
    pub fn payload(&self) -> Option<String> {
        self.aside.map(|aside| format!("{}-{:016x}", self.id, aside.digest))
    }

    /// The job with its body at hand; `None` if this is not the body that was put aside.
    pub fn with_body(&self, body: Bytes) -> Option<Self> {
        let whole = Self { body, aside: None, ..self.clone() };
        (whole.digest() == self.digest()).then_some(whole)
    }

    /// Makes a dead letter's job one to be worked again. It may have been worked meanwhile, so it is
    /// to be looked up.
    pub(crate) fn begin_anew(&mut self) {
        self.history.resubmit();
        self.not_before = None;
        self.look_up = true;
    }

    /// The queue message: one JSON object.
    ///
    /// # Errors
    /// Fails if `body` or `metadata` is not JSON, which intake never lets through.
    pub fn to_message(&self) -> Result<Vec<u8>, serde_json::Error> {
        let body = match self.aside {
            None => Some(serde_json::from_slice(&self.body)?),
            Some(_) => None,
        };
        let metadata = self.metadata.as_deref().map(serde_json::from_str);
        serde_json::to_vec(&Message {
            custom_id: self.custom_id.as_str().into(),
            batch_id: self.batch_id.clone(),
            method: Some("POST".into()),
            url: self.api,
            body,
            body_ref: self.aside,
            model: self.aside.map(|_| self.model.as_str().into()),
            position: Some(self.position),
            estimate: self.estimate,
            deadline: self.deadline,
            not_before: self.not_before,
            priority: self.priority,
            metadata: metadata.transpose()?,
            look_up: self.look_up,
            history: self.history.clone(),
        })
    }

    /// Reads a queue message, from whoever wrote it.
    ///
    /// # Errors
    /// Says what the message lacks to be a job.
    pub fn from_message(message: &[u8]) -> Result<Self, serde_json::Error> {
        let m: Message<'_> = serde_json::from_slice(message)?;
        if m.method.as_deref().is_some_and(|method| method != "POST") {
            return Err(serde::de::Error::custom("'method' must be \"POST\""));
        }
        let model = match (m.body, m.body_ref) {
            (Some(body), None) => serde_json::from_str::<Model<'_>>(body.get())?.model,
            // Nobody fetches a body only to count it.
            (None, Some(_)) if m.estimate.is_none() => {
                return Err(serde::de::Error::missing_field("estimate"));
            }
            (None, Some(_)) => m.model.ok_or_else(|| serde::de::Error::missing_field("model"))?,
            (None, None) => return Err(serde::de::Error::missing_field("body")),
            (Some(_), Some(_)) => {
                return Err(serde::de::Error::custom("'body' and 'body_ref' exclude each other"));
            }
        };
        let body = m.body.map_or(&[][..], |body| body.get().as_bytes());
        Ok(Self {
            id: JobId::new(&m.batch_id, &m.custom_id),
            batch_id: m.batch_id,
            custom_id: m.custom_id.into_owned(),
            position: m.position.unwrap_or(0),
            api: m.url,
            model: model.into_owned(),
            body: Bytes::copy_from_slice(body),
            aside: m.body_ref,
            estimate: m.estimate,
            deadline: m.deadline,
            not_before: m.not_before,
            priority: m.priority,
            metadata: m.metadata.map(|raw| raw.get().into()),
            look_up: m.look_up,
            history: m.history,
        })
    }
}

fn digest(api: Api, body: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(body, api as u64)
}

/// Numbers above 2^53 lose digits in other programs' JSON, so they travel as text.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{number:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(serde::de::Error::custom)
    }
}

/// The JSON form of a [`Job`] in the queue.
#[derive(Serialize, Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    custom_id: std::borrow::Cow<'a, str>,
    batch_id: BatchId,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    method: Option<std::borrow::Cow<'a, str>>,
    url: Api,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    body: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_ref: Option<Aside>,
    /// Beside a body that lies aside; otherwise it stands in the body.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    model: Option<std::borrow::Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<Estimate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: i32,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    look_up: bool,
    #[serde(default, skip_serializing_if = "History::is_empty")]
    history: History,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(borrow)]
    model: std::borrow::Cow<'a, str>,
}

fn is_zero(priority: &i32) -> bool {
    *priority == 0
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
