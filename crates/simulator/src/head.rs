//! Status and headers of answers: rate limits, request ids, and what else Azure sends along.
//!
//! Neighbours: `quota` tells the standing, `refusal` the errors; `service` fills in who asks.
//!
//! `x-ratelimit-limit-*` is the rate per minute whatever the window; `remaining` and `reset` are of
//! the window as it is: what can still be booked, and in how many seconds that starts again.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use uuid::Uuid;

use super::body::Reply;
use super::capacity::Reading;
use super::faults::mix;
use super::quota::Standing;
use super::refusal::{Refusal, whole_millis, whole_seconds};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const JSON_LINES: HeaderValue = HeaderValue::from_static("application/jsonl");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");
const SESSION: HeaderValue = HeaderValue::from_static("simulator-1");

const LIMIT_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const LIMIT_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const REMAINING_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const RESET_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
const RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");
const UTILIZATION: HeaderName = HeaderName::from_static("azure-openai-deployment-utilization");
const SPILLED_FROM: HeaderName = HeaderName::from_static("x-ms-spillover-from-deployment");
const SPILLED_FOR: HeaderName = HeaderName::from_static("x-ms-spillover-error");
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");
const APIM_REQUEST_ID: HeaderName = HeaderName::from_static("apim-request-id");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_REQUEST_ID: HeaderName = HeaderName::from_static("x-ms-client-request-id");
const REGION: HeaderName = HeaderName::from_static("x-ms-region");
const MODEL_SESSION: HeaderName = HeaderName::from_static("azureml-model-session");
const DEPLOYMENT_NAME: HeaderName = HeaderName::from_static("x-ms-deployment-name");

/// More than are ever set, so that the map is made once.
const HEADERS: usize = 24;

/// Headers on their way to an answer.
pub struct Head {
    headers: HeaderMap,
}

impl Head {
    pub fn new(asked: &HeaderMap, region: &HeaderValue, ids: &RequestIds) -> Self {
        let mut headers = HeaderMap::with_capacity(HEADERS);
        let (apim, request) = ids.next();
        headers.insert(APIM_REQUEST_ID, apim);
        headers.insert(REQUEST_ID, request);
        headers.insert(REGION, region.clone());
        if let Some(id) = asked.get(CLIENT_REQUEST_ID) {
            headers.insert(CLIENT_REQUEST_ID, id.clone());
        }
        Self { headers }
    }

    pub fn set_deployment(&mut self, name: &HeaderValue) {
        self.headers.insert(DEPLOYMENT_NAME, name.clone());
        self.headers.insert(MODEL_SESSION, SESSION);
    }

    /// The provisioned deployment that handed the request on, and what it would have answered.
    pub fn set_spilled(&mut self, from: &HeaderValue, status: StatusCode) {
        self.headers.insert(SPILLED_FROM, from.clone());
        self.headers.insert(SPILLED_FOR, status.as_u16().into());
    }

    pub fn set_reading(&mut self, reading: &Reading) {
        match reading {
            Reading::Quota(standing) => self.set_standing(standing),
            // As Azure's own benchmark reads it: a number and a percent sign.
            Reading::Utilization(share) => {
                let percent = HeaderValue::from_str(&format!("{:.1}%", share * 100.0))
                    .expect("digits fit a header");
                self.headers.insert(UTILIZATION, percent);
            }
            Reading::Hidden => {}
        }
    }

    /// A deployment without a limit has no headers about it.
    fn set_standing(&mut self, standing: &Standing) {
        if let (Some(limit), Some(left)) = (standing.limits.tpm, standing.remaining_tokens) {
            self.headers.insert(LIMIT_TOKENS, limit.into());
            self.headers.insert(REMAINING_TOKENS, left.into());
            self.headers.insert(RESET_TOKENS, whole_seconds(standing.reset_tokens).into());
        }
        if let (Some(limit), Some(left)) = (standing.limits.rpm, standing.remaining_requests) {
            self.headers.insert(LIMIT_REQUESTS, limit.into());
            self.headers.insert(REMAINING_REQUESTS, left.into());
            self.headers.insert(RESET_REQUESTS, whole_seconds(standing.reset_requests).into());
        }
    }

    /// The numbers without meaning that Responses calls have been seen to bring.
    pub fn set_odd_standing(&mut self) {
        for name in [LIMIT_REQUESTS, LIMIT_TOKENS, REMAINING_REQUESTS, REMAINING_TOKENS] {
            self.headers.insert(name, HeaderValue::from_static("-1"));
        }
        for name in [RESET_REQUESTS, RESET_TOKENS] {
            self.headers.insert(name, HeaderValue::from_static("0"));
        }
    }

    pub fn json(self, body: Reply) -> Response<Reply> {
        self.answer(StatusCode::OK, JSON, body)
    }

    pub fn json_lines(self, body: Reply) -> Response<Reply> {
        self.answer(StatusCode::OK, JSON_LINES, body)
    }

    pub fn events(self, body: Reply) -> Response<Reply> {
        self.answer(StatusCode::OK, EVENTS, body)
    }

    pub fn refuse(mut self, refusal: Refusal) -> Response<Reply> {
        if let Some(span) = refusal.retry_after {
            self.headers.insert(RETRY_AFTER_MS, whole_millis(span).into());
            self.headers.insert(RETRY_AFTER, whole_seconds(span).into());
        }
        self.answer(refusal.status, JSON, Reply::plain(refusal.body))
    }

    fn answer(mut self, status: StatusCode, kind: HeaderValue, body: Reply) -> Response<Reply> {
        self.headers.insert(CONTENT_TYPE, kind);
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// Makes the ids that requests are traced by: unlike everything else, different in each run.
#[derive(Debug)]
pub struct RequestIds {
    salt: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub fn new(salt: u64) -> Self {
        Self { salt, next: AtomicU64::new(0) }
    }

    /// The gateway's id and the model's.
    fn next(&self) -> (HeaderValue, HeaderValue) {
        let number = mix(self.salt ^ self.next.fetch_add(1, Ordering::Relaxed));
        (id(number, 1), id(number, 2))
    }
}

fn id(number: u64, which: u64) -> HeaderValue {
    let uuid = Uuid::from_u64_pair(mix(number ^ which), number);
    let mut text = Uuid::encode_buffer();
    let text = uuid.hyphenated().encode_lower(&mut text);
    HeaderValue::from_str(text).expect("hexadecimal digits and hyphens fit a header")
}
