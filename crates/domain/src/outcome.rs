//! Outcome of a job: exactly one [`Outcome`] each, with the tokens it took.
//!
//! Depends only on [`crate::job`].

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::job::{BatchId, JobId};

/// Final status of a job. Only a dead one is reopened, by resubmitting its dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutcomeStatus {
    Succeeded,
    /// The service refused it for good: content filter, context too long, invalid request.
    Failed,
    /// All attempts are used up; the message is among the dead letters.
    Dead,
    Cancelled,
    /// Its deadline passed before it could be sent.
    Expired,
}

impl OutcomeStatus {
    pub const ALL: [Self; 5] =
        [Self::Succeeded, Self::Failed, Self::Dead, Self::Cancelled, Self::Expired];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ending| ending.as_str() == name)
    }
}

impl fmt::Display for OutcomeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Way in which an answer ended, in the words of chat completions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerFinish {
    Stop,
    /// Cut off: the longest answer that was asked for, or the model's own limit.
    Length,
    /// Cut off or left out by a content filter.
    ContentFilter,
    ToolCalls,
    /// The model refused in words.
    Refusal,
    /// Not whole, for a reason that has no name here.
    Incomplete,
}

impl AnswerFinish {
    pub const ALL: [Self; 6] = [
        Self::Stop,
        Self::Length,
        Self::ContentFilter,
        Self::ToolCalls,
        Self::Refusal,
        Self::Incomplete,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ContentFilter => "content_filter",
            Self::ToolCalls => "tool_calls",
            Self::Refusal => "refusal",
            Self::Incomplete => "incomplete",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|finish| finish.as_str() == name)
    }

    /// Returns whether more room would have made the answer longer.
    pub fn is_truncated(self) -> bool {
        matches!(self, Self::Length | Self::Incomplete)
    }
}

impl fmt::Display for AnswerFinish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Flaw of an answer that was kept all the same: it was paid for, and most of it can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerFlaw {
    /// It had bytes that are no UTF-8; U+FFFD stands in their place.
    NotUtf8,
    /// It was not quite JSON: `NaN`, or raw control characters within texts; they were replaced.
    NotJson,
}

impl AnswerFlaw {
    pub const ALL: [Self; 2] = [Self::NotUtf8, Self::NotJson];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotUtf8 => "not_utf8",
            Self::NotJson => "not_json",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|flaw| flaw.as_str() == name)
    }
}

/// Tokens that a response reports. Cached is part of prompt, reasoning is part of completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenUsage {
    pub prompt: u64,
    pub cached: u64,
    pub completion: u64,
    pub reasoning: u64,
    /// Answers of which the service did not report all tokens: the sums are the least.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unreported: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl TokenUsage {
    pub fn total(self) -> u64 {
        self.prompt.saturating_add(self.completion)
    }
}

/// Saturates: a count is what a service said, and must not bring a sum down.
impl std::ops::AddAssign for TokenUsage {
    fn add_assign(&mut self, other: Self) {
        self.prompt = self.prompt.saturating_add(other.prompt);
        self.cached = self.cached.saturating_add(other.cached);
        self.completion = self.completion.saturating_add(other.completion);
        self.reasoning = self.reasoning.saturating_add(other.reasoning);
        self.unreported = self.unreported.saturating_add(other.unreported);
    }
}

/// Error of a job without an answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JobFailure {
    /// The service's error code where it gave one (`content_filter`), else ours (`timeout`).
    pub code: String,
    pub message: String,
}

/// Final result of a job.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub job_id: JobId,
    pub batch_id: BatchId,
    pub custom_id: String,
    /// The job's place in its batch's input.
    pub position: u64,
    /// The job's [`crate::job::Job::digest`].
    pub digest: u64,
    pub ending: OutcomeStatus,
    /// The HTTP status of the last response, if there was one.
    pub status_code: Option<u16>,
    /// The service's own request id, to quote to its support.
    pub request_id: Option<String>,
    /// The service's JSON body unchanged, of an answer and of an error alike.
    pub body: Option<Bytes>,
    pub failure: Option<JobFailure>,
    pub usage: TokenUsage,
    /// Way in which the answer ended, if it is one and said so.
    pub finish: Option<AnswerFinish>,
    /// Change that an answer took to be kept.
    pub flaw: Option<AnswerFlaw>,
    /// Service tier that was billed (`default`, `flex`), if the service said so.
    pub service_tier: Option<Box<str>>,
    /// HTTP calls that counted as attempts; throttled ones do not.
    pub attempts: u32,
    /// Calls that were throttled (429), since the job was last enqueued anew.
    pub throttled: u32,
    /// The deployment that answered last; empty if no call was made.
    pub deployment: String,
    pub model: String,
    /// Time from sending the last attempt to its last byte.
    pub latency_ms: u64,
    pub finished_at: Timestamp,
    /// Time by which it was wanted.
    pub deadline: Option<Timestamp>,
    /// The job's `metadata`, a JSON object.
    pub metadata: Option<Box<str>>,
}
