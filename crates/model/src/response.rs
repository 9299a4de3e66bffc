//! Responses of a service before they are judged, and after.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;

use domain::outcome::{AnswerFinish, AnswerFlaw, TokenUsage};

/// Largest answer. A longer one counts as a fault of the server, so that it can't use up the
/// memory. The largest models answer with well under 4 MB of text.
pub(crate) const LARGEST_ANSWER: usize = 64 * 1024 * 1024;

/// Service tier that calls ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceTier {
    /// Tier in the job's body, or the deployment's own.
    #[default]
    AsAsked,
    /// `service_tier: "flex"`: half the price, when there is room.
    Flex,
}

/// Response with a 2xx status, read to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelResponse {
    pub status: u16,
    /// The service's own id of the request.
    pub request_id: Option<String>,
    /// One JSON object; a stream's events are assembled to what the call without `stream` would
    /// have returned.
    pub body: Bytes,
    pub usage: TokenUsage,
    /// Service tier that is billed, if the service said so.
    pub service_tier: Option<Box<str>>,
    /// How it ended, if it says so.
    pub finish: Option<AnswerFinish>,
    /// Change that the body took to be kept.
    pub flaw: Option<AnswerFlaw>,
}

/// Result of a call before it is judged.
#[derive(Debug)]
pub enum RawResponse {
    Response {
        status: u16,
        headers: HeaderMap,
        body: Bytes,
    },
    /// Nothing was sent: no connection.
    NoConnection(reqwest::Error),
    /// Nothing was sent: Entra ID gave no token.
    NoToken(String),
    /// Something was sent, and no complete answer came.
    Broken {
        status: Option<u16>,
        error: reqwest::Error,
    },
    /// Something was sent, and nothing came for this long: no head, or after the head no more.
    Silent {
        status: Option<u16>,
        waited: Duration,
    },
    TooLarge {
        status: u16,
    },
    /// Redirect that is not followed, and its target without a query.
    Redirected {
        status: u16,
        to: String,
    },
}

/// Returns a header's value, if it is plain text.
pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}
