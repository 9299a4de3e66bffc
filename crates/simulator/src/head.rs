//! Status and headers of responses: rate limits, request ids, and Azure's other headers.
//!
//! Neighbours: `rate_report` gives the numbers, `refusal` the errors; `service` adds the deployment.
//!
//! `x-ratelimit-limit-*` is the rate per minute whatever the window; `remaining` and `reset` refer
//! to the current window: the amount that can still be booked, and the seconds until it resets.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use uuid::Uuid;

use super::body::ReplyBody;
use super::capacity::CapacityStatus;
use super::faults::mix;
use super::rate_report::RateReport;
use super::refusal::{HttpRefusal, ceil_millis, ceil_seconds};

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

/// Capacity of the header map: more than are ever set, so that it is allocated once.
const MAX_HEADERS: usize = 24;

/// Headers collected for one response.
pub struct ResponseHead {
    headers: HeaderMap,
}

impl ResponseHead {
    pub fn new(request_headers: &HeaderMap, region: &HeaderValue, ids: &RequestIds) -> Self {
        let mut headers = HeaderMap::with_capacity(MAX_HEADERS);
        let (apim, request) = ids.next();
        headers.insert(APIM_REQUEST_ID, apim);
        headers.insert(REQUEST_ID, request);
        headers.insert(REGION, region.clone());
        if let Some(id) = request_headers.get(CLIENT_REQUEST_ID) {
            headers.insert(CLIENT_REQUEST_ID, id.clone());
        }
        Self { headers }
    }

    pub fn set_deployment(&mut self, name: &HeaderValue) {
        self.headers.insert(DEPLOYMENT_NAME, name.clone());
        self.headers.insert(MODEL_SESSION, SESSION);
    }

    /// Sets the provisioned deployment that spilled the request, and its error status.
    pub fn set_spilled(&mut self, from: &HeaderValue, status: StatusCode) {
        self.headers.insert(SPILLED_FROM, from.clone());
        self.headers.insert(SPILLED_FOR, status.as_u16().into());
    }

    pub fn set_capacity_status(&mut self, reading: &CapacityStatus) {
        set_capacity_status(&mut self.headers, reading);
    }

    /// Sets the meaningless numbers that have been seen on Responses calls.
    pub fn set_odd_rate_headers(&mut self) {
        for name in [LIMIT_REQUESTS, LIMIT_TOKENS, REMAINING_REQUESTS, REMAINING_TOKENS] {
            self.headers.insert(name, HeaderValue::from_static("-1"));
        }
        for name in [RESET_REQUESTS, RESET_TOKENS] {
            self.headers.insert(name, HeaderValue::from_static("0"));
        }
    }

    pub fn json(self, body: ReplyBody) -> Response<ReplyBody> {
        self.answer(StatusCode::OK, JSON, body)
    }

    pub fn json_lines(self, body: ReplyBody) -> Response<ReplyBody> {
        self.answer(StatusCode::OK, JSON_LINES, body)
    }

    pub fn events(self, body: ReplyBody) -> Response<ReplyBody> {
        self.answer(StatusCode::OK, EVENTS, body)
    }

    pub fn refuse(mut self, refusal: HttpRefusal) -> Response<ReplyBody> {
        if let Some(span) = refusal.retry_after {
            self.headers.insert(RETRY_AFTER_MS, ceil_millis(span).into());
            self.headers.insert(RETRY_AFTER, ceil_seconds(span).into());
        }
        self.answer(refusal.status, JSON, ReplyBody::plain(refusal.body))
    }

    fn answer(
        mut self,
        status: StatusCode,
        kind: HeaderValue,
        body: ReplyBody,
    ) -> Response<ReplyBody> {
        self.headers.insert(CONTENT_TYPE, kind);
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = self.headers;
        response
    }
}

/// Sets the headers that report a deployment's capacity, over those that are there.
pub fn set_capacity_status(headers: &mut HeaderMap, reading: &CapacityStatus) {
    match reading {
        CapacityStatus::Quota(report) => set_rate_report(headers, report),
        // The format that Azure's own benchmark reads: a number and a percent sign.
        CapacityStatus::Utilization(share) => {
            let percent = HeaderValue::from_str(&format!("{:.1}%", share * 100.0))
                .expect("digits fit a header");
            headers.insert(UTILIZATION, percent);
        }
        CapacityStatus::Hidden => {}
    }
}

fn set_rate_report(headers: &mut HeaderMap, report: &RateReport) {
    let numbers = [
        (LIMIT_TOKENS, report.limit_tokens),
        (REMAINING_TOKENS, report.remaining_tokens),
        (RESET_TOKENS, report.reset_tokens),
        (LIMIT_REQUESTS, report.limit_requests),
        (REMAINING_REQUESTS, report.remaining_requests),
        (RESET_REQUESTS, report.reset_requests),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            headers.insert(name, number.into());
        }
    }
}

/// Generator of request ids: unlike everything else, different in each run.
#[derive(Debug)]
pub struct RequestIds {
    salt: u64,
    next: AtomicU64,
}

impl RequestIds {
    pub fn new(salt: u64) -> Self {
        Self { salt, next: AtomicU64::new(0) }
    }

    /// Returns the gateway's id and the model's.
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
