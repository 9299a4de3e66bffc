//! JSON form of a job in a queue, the same on every backend: a job enqueued by somebody else's
//! script is worked like one of ours.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Api, BatchId, ClaimCheck, Job, JobHistory, JobId, TokenEstimate};

/// Some programs put it before their UTF-8, .NET among them.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

impl Job {
    /// Writes the queue message: one JSON object.
    ///
    /// # Errors
    /// Fails if `body` or `metadata` is not JSON, which intake never lets through.
    pub fn to_message(&self) -> Result<Vec<u8>, serde_json::Error> {
        let body = match self.claim_check {
            None => Some(serde_json::from_slice(&self.body)?),
            Some(_) => None,
        };
        let metadata = self.metadata.as_deref().map(serde_json::from_str);
        serde_json::to_vec(&JobMessage {
            custom_id: self.custom_id.as_str().into(),
            batch_id: self.batch_id.clone(),
            method: Some("POST".into()),
            url: self.api,
            body,
            body_ref: self.claim_check,
            model: self.claim_check.map(|_| self.model.as_str().into()),
            position: Some(self.position),
            estimate: self.estimate,
            deadline: self.deadline,
            not_before: self.not_before,
            priority: self.priority,
            metadata: metadata.transpose()?,
            may_have_outcome: self.may_have_outcome,
            history: self.history.clone(),
        })
    }

    /// Reads a queue message, written by any program.
    ///
    /// # Errors
    /// Says what the message lacks to be a job.
    pub fn from_message(message: &[u8]) -> Result<Self, serde_json::Error> {
        let message = message.strip_prefix(BYTE_ORDER_MARK).unwrap_or(message);
        let m: JobMessage<'_> = serde_json::from_slice(message)?;
        if m.method.as_deref().is_some_and(|method| method != "POST") {
            return Err(serde::de::Error::custom("'method' must be \"POST\""));
        }
        let model = match (m.body, m.body_ref) {
            (Some(body), None) => serde_json::from_str::<ModelField<'_>>(body.get())?.model,
            // No body is fetched only to count it.
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
            model: m.history.amendment.model.clone().unwrap_or_else(|| model.into_owned()),
            body: Bytes::copy_from_slice(body),
            claim_check: m.body_ref,
            estimate: m.estimate,
            deadline: m.deadline,
            not_before: m.not_before,
            priority: m.priority,
            metadata: m.metadata.map(|raw| raw.get().into()),
            may_have_outcome: m.may_have_outcome,
            history: m.history,
        })
    }
}

/// The JSON form of a [`Job`] in the queue.
#[derive(Serialize, Deserialize)]
struct JobMessage<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
    batch_id: BatchId,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    method: Option<Cow<'a, str>>,
    url: Api,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    body: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_ref: Option<ClaimCheck>,
    /// Set with `body_ref`; otherwise the model is in the body.
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    model: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate: Option<TokenEstimate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: i32,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a RawValue>,
    #[serde(rename = "look_up", default, skip_serializing_if = "std::ops::Not::not")]
    may_have_outcome: bool,
    #[serde(default, skip_serializing_if = "JobHistory::is_empty")]
    history: JobHistory,
}

#[derive(Deserialize)]
struct ModelField<'a> {
    #[serde(borrow)]
    model: Cow<'a, str>,
}

fn is_zero(priority: &i32) -> bool {
    *priority == 0
}
