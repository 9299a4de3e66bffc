//! Verdict on the end of a call: whether the job or the deployment is at fault.
//!
//! One pure function, `judge`; nothing else in the program looks at a status code to decide.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde::Deserialize;

use super::{ModelResponse, RawResponse, ServiceTier, stream};
use domain::job::Api;
use domain::outcome::{JobFailure, TokenUsage};

/// Wait in a 429 which says that the request is larger than the whole quota ("retry after 86400
/// seconds"): it can never pass.
const NEVER_FITS_WAIT: Duration = Duration::from_secs(86_400);

/// Longest pause of a deployment on one response: quotas are judged by the minute, and a wrong
/// header must not stop a whole night.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// Pause after a 429 that names no time.
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);

/// Characters kept of an error text that is not JSON.
const KEPT_TEXT: usize = 500;

/// Result of a call, judged.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Answered(ModelResponse),
    /// The job can never pass.
    Refused(ErrorReply),
    /// The deployment is full: pause it, keep the job.
    Throttled {
        pause: Duration,
    },
    /// Transient error: try again, at the earliest after `retry_after`.
    Transient {
        error: ErrorReply,
        retry_after: Option<Duration>,
    },
    /// No connection: nothing was sent, nothing can have been paid.
    Unreachable {
        why: String,
    },
    /// No such deployment, or not yet: one that was just created takes some minutes.
    Missing {
        why: String,
    },
    /// The deployment will not answer as configured; the message says how to fix it.
    Misconfigured {
        why: String,
    },
}

impl Verdict {
    /// Returns one word for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Answered(_) => "answered",
            Self::Refused(_) => "refused",
            Self::Throttled { .. } => "throttled",
            Self::Transient { .. } => "transient",
            Self::Unreachable { .. } => "unreachable",
            Self::Missing { .. } => "missing",
            Self::Misconfigured { .. } => "misconfigured",
        }
    }
}

/// Details of a call that brought no answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorReply {
    pub status: Option<u16>,
    pub request_id: Option<String>,
    /// The service's error, if it was JSON.
    pub body: Option<Bytes>,
    pub failure: JobFailure,
}

/// Judges the response. `now` is for `retry-after` as a date.
pub(super) fn judge((api, tier): (Api, ServiceTier), raw: RawResponse, now: SystemTime) -> Verdict {
    match raw {
        RawResponse::NoConnection(error) => Verdict::Unreachable { why: causes(&error) },
        RawResponse::NoToken(why) => Verdict::Unreachable { why },
        RawResponse::Broken { status, error } => {
            let code = if error.is_timeout() { "timeout" } else { "connection_broken" };
            transient(status, code, causes(&error), None)
        }
        RawResponse::TooLarge => {
            transient(None, "answer_too_large", "the answer exceeds 64 MiB".into(), None)
        }
        RawResponse::Response { status: status @ 200..=299, headers, body } => {
            judge_answer(api, status, &headers, body)
        }
        RawResponse::Response { status: 400, headers, body } if tier == ServiceTier::Flex => {
            judge_flex_refusal(&headers, body, now)
        }
        RawResponse::Response { status, headers, body } => judge_error(status, &headers, body, now),
    }
}

fn judge_answer(api: Api, status: u16, headers: &HeaderMap, body: Bytes) -> Verdict {
    let unreadable = |why: String| transient(Some(status), "unreadable_answer", why, None);
    let streamed = header(headers, CONTENT_TYPE.as_str())
        .is_some_and(|kind| kind.starts_with("text/event-stream"));
    let body = if streamed {
        let Ok(text) = simdutf8::basic::from_utf8(&body) else {
            return unreadable("the stream is not UTF-8".into());
        };
        match stream::assemble(api, text) {
            Ok(whole) => Bytes::from(whole.to_string()),
            Err(error) => return unreadable(error.to_string()),
        }
    } else {
        body
    };
    match serde_json::from_slice::<ResponseMetadata>(&body) {
        Ok(answer) => Verdict::Answered(ModelResponse {
            status,
            request_id: request_id(headers),
            usage: answer.usage.map_or_else(TokenUsage::default, WireUsage::into_usage),
            service_tier: answer.service_tier,
            body,
        }),
        Err(error) => unreadable(format!("the answer is not the JSON it should be: {error}")),
    }
}

/// Judges a 400 on the flex tier. A model without that tier refuses it so (Azure docs: "flex
/// processing"): then the deployment is at fault and not the job.
fn judge_flex_refusal(headers: &HeaderMap, body: Bytes, now: SystemTime) -> Verdict {
    let said = ErrorBody::read(&body);
    let is_about_tier = said.param.as_deref() == Some("service_tier")
        || said.message.contains("service_tier")
        || said.message.to_ascii_lowercase().contains("flex");
    if !is_about_tier {
        return judge_error(400, headers, body, now);
    }
    let why = format!(
        "400: {} The model has no flex tier: remove 'flex = true' from this deployment.",
        said.message
    );
    Verdict::Misconfigured { why }
}

fn judge_error(status: u16, headers: &HeaderMap, body: Bytes, now: SystemTime) -> Verdict {
    let said = ErrorBody::read(&body);
    let retry_after = retry_after(headers, now);
    let code = said.code.unwrap_or_default();
    let failure = JobFailure {
        code: if code.is_empty() { format!("http_{status}") } else { code.clone() },
        message: said.message,
    };
    let error = ErrorReply {
        status: Some(status),
        request_id: request_id(headers),
        body: said.is_json.then_some(body),
        failure,
    };
    match status {
        429 if code == "insufficient_quota" => Verdict::Misconfigured {
            why: format!("429: {} Add credit or quota.", error.failure.message),
        },
        429 if retry_after.is_some_and(|after| after >= NEVER_FITS_WAIT) => Verdict::Refused(error),
        429 => {
            let pause = retry_after.unwrap_or(DEFAULT_PAUSE).min(LONGEST_PAUSE);
            Verdict::Throttled { pause }
        }
        401 if code == "PermissionDenied" => Verdict::Misconfigured {
            why: format!(
                "401: {} Give the identity the role 'Cognitive Services OpenAI User' on this \
                 resource; a new assignment takes some minutes.",
                error.failure.message
            ),
        },
        401 => Verdict::Misconfigured {
            why: format!(
                "401: {} Check the API key and that it belongs to this endpoint.",
                error.failure.message
            ),
        },
        403 => Verdict::Misconfigured {
            why: format!(
                "403: {} Check the network rules and the role 'Cognitive Services OpenAI User'.",
                error.failure.message
            ),
        },
        404 => Verdict::Missing {
            why: format!(
                "404: {} Check the endpoint's path and the deployment's name; \
                 a deployment that was just created takes some minutes.",
                error.failure.message
            ),
        },
        408 | 409 | 425 | 500..=599 => Verdict::Transient { error, retry_after },
        // Any other 4xx concerns the request itself; no redirect is followed.
        400..=499 => Verdict::Refused(error),
        _ => Verdict::Misconfigured {
            why: format!(
                "the endpoint answers with status {status}: is it an OpenAI-compatible API?"
            ),
        },
    }
}

fn transient(
    status: Option<u16>,
    code: &str,
    message: String,
    retry_after: Option<Duration>,
) -> Verdict {
    let failure = JobFailure { code: code.to_owned(), message };
    let error = ErrorReply { status, request_id: None, body: None, failure };
    Verdict::Transient { error, retry_after }
}

/// Returns the wait that the service asks for: milliseconds first, then seconds or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let seconds = |s: f64| Duration::try_from_secs_f64(s).ok();
    if let Some(ms) = header(headers, "retry-after-ms").and_then(|v| v.parse::<f64>().ok()) {
        return seconds(ms / 1000.0);
    }
    let after = header(headers, "retry-after")?;
    match after.parse::<f64>() {
        Ok(s) => seconds(s),
        Err(_) => {
            let at = httpdate::parse_http_date(after).ok()?;
            Some(at.duration_since(now).unwrap_or_default())
        }
    }
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    ["apim-request-id", "x-request-id"]
        .iter()
        .find_map(|name| header(headers, name))
        .map(Into::into)
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Returns an error and its causes in one line; reqwest hides the reason in the chain. The URL is
/// left out, as it may be confidential.
fn causes(error: &reqwest::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        texts.push(cause.to_string());
        source = cause.source();
    }
    if texts.is_empty() {
        texts.push(if error.is_timeout() { "timed out".into() } else { "failed".into() });
    }
    texts.dedup();
    texts.join(": ")
}

/// Error body as it is read, JSON or not.
struct ErrorBody {
    is_json: bool,
    code: Option<String>,
    param: Option<String>,
    message: String,
}

impl ErrorBody {
    fn read(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct ErrorEnvelope<'a> {
            #[serde(borrow)]
            error: Option<ErrorObject<'a>>,
            /// Message of API Management's own errors: `{"statusCode":…,"message":…}`.
            #[serde(borrow)]
            message: Option<Cow<'a, str>>,
        }
        #[derive(Deserialize)]
        struct ErrorObject<'a> {
            code: Option<serde_json::Value>,
            r#type: Option<serde_json::Value>,
            param: Option<serde_json::Value>,
            #[serde(borrow)]
            message: Option<Cow<'a, str>>,
        }
        let text = |value: serde_json::Value| match value {
            serde_json::Value::String(text) => Some(text),
            serde_json::Value::Null => None,
            other => Some(other.to_string()),
        };
        match serde_json::from_slice::<ErrorEnvelope<'_>>(body) {
            Ok(ErrorEnvelope { error: Some(inner), .. }) => Self {
                is_json: true,
                code: inner.code.and_then(text).or_else(|| inner.r#type.and_then(text)),
                param: inner.param.and_then(text),
                message: inner.message.unwrap_or_default().into_owned(),
            },
            Ok(ErrorEnvelope { message, error: None }) => {
                let message = message.unwrap_or_default().into_owned();
                Self { is_json: true, code: None, param: None, message }
            }
            Err(_) => {
                let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
                let text = String::from_utf8_lossy(body);
                let message = text.chars().take(KEPT_TEXT).collect();
                Self { is_json, code: None, param: None, message }
            }
        }
    }
}

#[derive(Deserialize)]
struct ResponseMetadata {
    usage: Option<WireUsage>,
    service_tier: Option<Box<str>>,
}

/// Usage in all three APIs: chat and embeddings say prompt and completion, Responses says input
/// and output. Details can be absent.
#[derive(Deserialize)]
struct WireUsage {
    #[serde(alias = "input_tokens", default)]
    prompt_tokens: u64,
    #[serde(alias = "output_tokens", default)]
    completion_tokens: u64,
    #[serde(alias = "input_tokens_details")]
    prompt_tokens_details: Option<PromptDetails>,
    #[serde(alias = "output_tokens_details")]
    completion_tokens_details: Option<CompletionDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct CompletionDetails {
    reasoning_tokens: Option<u64>,
}

impl WireUsage {
    fn into_usage(self) -> TokenUsage {
        let cached = self.prompt_tokens_details.and_then(|d| d.cached_tokens);
        let reasoning = self.completion_tokens_details.and_then(|d| d.reasoning_tokens);
        TokenUsage {
            prompt: self.prompt_tokens,
            cached: cached.unwrap_or(0),
            completion: self.completion_tokens,
            reasoning: reasoning.unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn respond(status: u16, headers: &[(&'static str, &str)], body: &str) -> Verdict {
        respond_to(ServiceTier::AsAsked, status, headers, body)
    }

    fn respond_to(
        tier: ServiceTier,
        status: u16,
        headers: &[(&'static str, &str)],
        body: &str,
    ) -> Verdict {
        let headers =
            headers.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect();
        let body = Bytes::copy_from_slice(body.as_bytes());
        let now = httpdate::parse_http_date("Mon, 23 Nov 2026 16:00:00 GMT").unwrap();
        judge((Api::ChatCompletions, tier), RawResponse::Response { status, headers, body }, now)
    }

    #[test]
    fn every_status_has_its_owner() {
        let cases = [
            (200, "{}", "answered"),
            (200, r#"{"choices":["#, "transient"),
            (400, r#"{"error":{"code":"content_filter","message":"m"}}"#, "refused"),
            (400, r#"{"error":{"code":"context_length_exceeded","message":"m"}}"#, "refused"),
            (413, "too large", "refused"),
            (422, "{}", "refused"),
            (431, "", "refused"),
            (401, r#"{"error":{"code":"401","message":"m"}}"#, "misconfigured"),
            (403, "{}", "misconfigured"),
            (404, r#"{"error":{"code":"DeploymentNotFound","message":"m"}}"#, "missing"),
            (302, "", "misconfigured"),
            (408, "", "transient"),
            (409, "", "transient"),
            (500, "<html>", "transient"),
            (503, "", "transient"),
            (429, r#"{"error":{"code":"429","message":"m"}}"#, "throttled"),
            (429, r#"{"error":{"code":"insufficient_quota","message":"m"}}"#, "misconfigured"),
        ];
        for (status, body, expected) in cases {
            assert_eq!(respond(status, &[], body).name(), expected, "{status} {body}");
        }
    }

    #[test]
    fn a_model_without_a_flex_tier_is_the_lanes_fault_and_not_the_jobs() {
        let about = r#"{"error":{"message":"Unsupported value: 'flex'","param":"service_tier"}}"#;
        let other = r#"{"error":{"code":"context_length_exceeded","message":"m"}}"#;
        let named = |tier, body| respond_to(tier, 400, &[], body).name();
        assert_eq!(named(ServiceTier::Flex, about), "misconfigured");
        assert_eq!(named(ServiceTier::Flex, other), "refused");
        assert_eq!(named(ServiceTier::AsAsked, about), "refused", "the job asked for it");
    }

    #[test]
    fn an_answer_says_what_it_is_billed_as() {
        let Verdict::Answered(reply) = respond(200, &[], r#"{"service_tier":"flex"}"#) else {
            panic!("answered");
        };
        assert_eq!(reply.service_tier.as_deref(), Some("flex"));
    }

    #[test]
    fn the_wait_is_read_in_all_three_spellings() {
        let cases = [
            (vec![("retry-after-ms", "1500"), ("retry-after", "9")], Duration::from_millis(1500)),
            (vec![("retry-after", "3")], Duration::from_secs(3)),
            (vec![("retry-after", "Mon, 23 Nov 2026 16:00:20 GMT")], Duration::from_secs(20)),
            (vec![("retry-after", "Mon, 23 Nov 2026 15:00:00 GMT")], Duration::ZERO),
            (vec![("retry-after", "7200")], LONGEST_PAUSE),
            (vec![("retry-after", "-1")], DEFAULT_PAUSE),
            (vec![], DEFAULT_PAUSE),
        ];
        for (headers, pause) in cases {
            assert_eq!(respond(429, &headers, "{}"), Verdict::Throttled { pause }, "{headers:?}");
        }
    }

    #[test]
    fn a_request_larger_than_the_whole_quota_fails_at_once() {
        let verdict = respond(429, &[("retry-after", "86400")], r#"{"error":{"message":"m"}}"#);
        assert_eq!(verdict.name(), "refused");
    }

    #[test]
    fn the_services_error_is_kept_with_its_code_and_request_id() {
        let body = r#"{"error":{"code":"content_filter","message":"filtered","innererror":{}}}"#;
        let Verdict::Refused(error) = respond(400, &[("apim-request-id", "r-1")], body) else {
            panic!("refused");
        };
        assert_eq!(error.failure.code, "content_filter");
        assert_eq!(error.request_id.as_deref(), Some("r-1"));
        assert_eq!(error.body.as_deref(), Some(body.as_bytes()));
    }

    #[test]
    fn usage_is_read_from_every_apis_spelling() {
        let chat = r#"{"usage":{"prompt_tokens":20,"completion_tokens":9,"total_tokens":29,
            "prompt_tokens_details":{"cached_tokens":4,"audio_tokens":null},
            "completion_tokens_details":{"reasoning_tokens":5}}}"#;
        let responses = r#"{"usage":{"input_tokens":20,"input_tokens_details":{"cached_tokens":4},
            "output_tokens":9,"output_tokens_details":{"reasoning_tokens":5},"total_tokens":29}}"#;
        let expected = TokenUsage { prompt: 20, cached: 4, completion: 9, reasoning: 5 };
        for body in [chat, responses] {
            let Verdict::Answered(reply) = respond(200, &[], body) else { panic!("answered") };
            assert_eq!(reply.usage, expected);
        }
        let Verdict::Answered(reply) = respond(200, &[], r#"{"usage":{"prompt_tokens":1}}"#) else {
            panic!("answered");
        };
        assert_eq!(reply.usage, TokenUsage { prompt: 1, ..TokenUsage::default() });
    }
}
