//! Verdict on the end of a call: whether the job or the deployment is at fault.
//!
//! One pure function, `judge`; nothing else in the program looks at a status code to decide.
//! `refusal` has the table of refusals, `answer` tells an answer from what only looks like one.
//! docs/replies.md shows what becomes of job, deployment and run; a test holds it against this.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue};

use super::answer::{self, AnswerContent, AnswerReading};
use super::error_body::ErrorBody;
use super::refusal::{RefusalKind, classify};
use super::reply_text::{ReplyText, ReplyTextError, mend_json, plain};
use super::response::{ModelResponse, RawResponse, ServiceTier, header};
use super::{stream, wait};
use domain::job::Api;
use domain::outcome::{AnswerFlaw, JobFailure, TokenUsage};
use domain::suspect::Suspect;

/// Most calls of one job for an answer that was complete and can't be read, or was none: it may be
/// paid for each time.
pub const MOST_CALLS_FOR_NO_ANSWER: u32 = 2;

/// Largest answer that is kept as a text where it can't be read as JSON, in bytes.
const LARGEST_TEXT: usize = 256 * 1024;

/// Characters kept of a request's id.
const LONGEST_ID: usize = 200;

/// Result of a call, judged.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Answered(ModelResponse),
    /// The job can never pass.
    Refused(ErrorReply),
    /// The job can never pass at this deployment; another one may take it.
    RefusedHere(ErrorReply),
    /// Refused, and only what the deployment answers to others tells whose fault it is; `why` says
    /// how to fix the deployment.
    Denied {
        error: ErrorReply,
        suspect: Suspect,
        why: String,
    },
    /// The deployment is full: pause it, keep the job. `asked` is the wait that it named.
    Throttled {
        error: ErrorReply,
        asked: Option<Duration>,
    },
    /// Transient error: try again, at the earliest after `retry_after`.
    Transient {
        error: ErrorReply,
        retry_after: Option<Duration>,
    },
    /// A complete answer that is none, or can't be read: ask again, at most
    /// [`MOST_CALLS_FOR_NO_ANSWER`] times in all.
    NoAnswer(ErrorReply),
    /// No connection: nothing was sent, nothing can have been paid.
    Unreachable {
        why: String,
    },
    /// The deployment will not answer as configured; the message says how to fix it.
    Misconfigured {
        why: String,
    },
}

impl Verdict {
    /// One word for each, for logs and for docs/replies.md.
    pub const NAMES: [&'static str; 9] = [
        "answered",
        "refused",
        "refused_here",
        "denied",
        "throttled",
        "transient",
        "no_answer",
        "unreachable",
        "misconfigured",
    ];

    /// Returns its word of [`Self::NAMES`].
    pub fn name(&self) -> &'static str {
        let place = match self {
            Self::Answered(_) => 0,
            Self::Refused(_) => 1,
            Self::RefusedHere(_) => 2,
            Self::Denied { .. } => 3,
            Self::Throttled { .. } => 4,
            Self::Transient { .. } => 5,
            Self::NoAnswer(_) => 6,
            Self::Unreachable { .. } => 7,
            Self::Misconfigured { .. } => 8,
        };
        Self::NAMES[place]
    }

    /// Returns the details of a call that brought no answer, where there was a response.
    pub fn error(&self) -> Option<&ErrorReply> {
        match self {
            Self::Refused(error)
            | Self::RefusedHere(error)
            | Self::NoAnswer(error)
            | Self::Denied { error, .. }
            | Self::Throttled { error, .. }
            | Self::Transient { error, .. } => Some(error),
            Self::Answered(_) | Self::Unreachable { .. } | Self::Misconfigured { .. } => None,
        }
    }
}

/// Details of a call that brought no answer.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ErrorReply {
    pub status: Option<u16>,
    pub request_id: Option<String>,
    /// The service's JSON, or its text as a JSON string where it was to be an answer.
    pub body: Option<Bytes>,
    pub failure: JobFailure,
    /// Tokens that were reported with it.
    pub usage: TokenUsage,
}

impl ErrorReply {
    /// Returns the error in one line: status, code and the service's words.
    pub fn words(&self) -> String {
        let JobFailure { code, message } = &self.failure;
        match self.status {
            Some(status) if *code == format!("http_{status}") || *code == status.to_string() => {
                format!("{status}: {message}")
            }
            Some(status) => format!("{status} {code}: {message}"),
            None => format!("{code}: {message}"),
        }
    }
}

/// Request whose response is judged.
#[derive(Debug, Clone, Copy)]
pub(super) struct JudgedRequest<'a> {
    pub(super) api: Api,
    pub(super) tier: ServiceTier,
    /// Headers with keys and tokens that it was sent with: a reply may quote them.
    pub(super) secrets: [Option<&'a HeaderValue>; 2],
}

/// Judges the response. `now` is for `retry-after` as a date.
pub(super) fn judge(request: &JudgedRequest<'_>, raw: RawResponse, now: SystemTime) -> Verdict {
    match raw {
        RawResponse::NoConnection(error) => Verdict::Unreachable { why: causes(&error) },
        RawResponse::NoToken(why) => Verdict::Unreachable { why },
        RawResponse::Broken { status, error } => {
            let code = if error.is_timeout() { "timeout" } else { "connection_broken" };
            Verdict::Transient { error: own_error(status, code, causes(&error)), retry_after: None }
        }
        RawResponse::Silent { status, waited } => {
            let part = if status.is_some() { "more of the answer" } else { "answer" };
            let message = format!("no {part} came for {} s", waited.as_secs());
            Verdict::Transient { error: own_error(status, "timeout", message), retry_after: None }
        }
        RawResponse::TooLarge { status } => {
            let message = "the answer exceeds 64 MiB".to_owned();
            Verdict::NoAnswer(own_error(Some(status), "answer_too_large", message))
        }
        RawResponse::Redirected { status, to } => judge_redirect(status, &to),
        RawResponse::Response { status, headers, body } => {
            let JudgedRequest { api, tier, secrets } = *request;
            let reply = Reply { api, tier, status, headers: &headers };
            match ReplyText::read(&headers, body).map(|text| text.without(secrets)) {
                Ok(text) if (200..300).contains(&status) => reply.judge_answer(text),
                Ok(text) => reply.judge_error(&ErrorBody::read(&text.bytes, text.as_str()), now),
                Err(why) => reply.judge_packed(&why, now),
            }
        }
    }
}

/// Judges a redirect that was not followed.
fn judge_redirect(status: u16, to: &str) -> Verdict {
    let message = format!("the endpoint redirects to {}", plain(to, LONGEST_ID));
    let why = format!(
        "{status}: {message}. A key is never sent to another host by itself, nor is a request \
         made another: if this is yours, give it as the endpoint."
    );
    let error = own_error(Some(status), "redirected", message);
    Verdict::Denied { error, suspect: Suspect::Deployment, why }
}

/// Response of which the text is judged.
struct Reply<'a> {
    api: Api,
    tier: ServiceTier,
    status: u16,
    headers: &'a HeaderMap,
}

impl Reply<'_> {
    fn judge_answer(&self, text: ReplyText) -> Verdict {
        let is_stream = header(self.headers, CONTENT_TYPE.as_str())
            .is_some_and(|kind| kind.starts_with("text/event-stream"));
        let is_lossy = text.is_lossy;
        if is_stream {
            return match stream::assemble(self.api, text.as_str()) {
                Ok(whole) => self.judge_json(whole.to_string().into(), text, is_lossy),
                Err(stream::StreamError::Truncated) => {
                    let message = stream::StreamError::Truncated.to_string();
                    let error = own_error(Some(self.status), "connection_broken", message);
                    Verdict::Transient { error, retry_after: None }
                }
                Err(error) => self.unreadable(error.to_string(), &text),
            };
        }
        self.judge_json(text.bytes.clone(), text, is_lossy)
    }

    /// Judges an answer's JSON; `text` is what came.
    fn judge_json(&self, json: Bytes, text: ReplyText, is_lossy: bool) -> Verdict {
        let written = simdutf8::basic::from_utf8(&json).unwrap_or_default();
        match answer::read(self.api, written) {
            Ok(reading) => {
                let flaw = is_lossy.then_some(AnswerFlaw::NotUtf8);
                drop(text);
                self.judge_reading(reading, json, flaw)
            }
            Err(error) => {
                let Cow::Owned(mended) = mend_json(written) else {
                    return self.unreadable(not_json(&error), &text);
                };
                match answer::read(self.api, &mended) {
                    Ok(reading) => {
                        self.judge_reading(reading, mended.into(), Some(AnswerFlaw::NotJson))
                    }
                    Err(_) => self.unreadable(not_json(&error), &text),
                }
            }
        }
    }

    fn judge_reading(
        &self,
        reading: AnswerReading,
        body: Bytes,
        flaw: Option<AnswerFlaw>,
    ) -> Verdict {
        let AnswerReading { content, usage, service_tier } = reading;
        match content {
            AnswerContent::Whole(finish) => Verdict::Answered(ModelResponse {
                status: self.status,
                request_id: request_id(self.headers),
                usage,
                service_tier,
                finish,
                flaw,
                body,
            }),
            AnswerContent::Failed(said) => self.judge_failed_answer(said, body, usage),
            AnswerContent::Hollow(why) => {
                let failure = JobFailure { code: "no_answer".into(), message: why.into() };
                // Nobody bills what has neither an answer nor a usage.
                let usage = TokenUsage { unreported: 0, ..usage };
                Verdict::NoAnswer(self.error_with(failure, Some(body), usage))
            }
            AnswerContent::Unfinished(status) => {
                let message = format!(
                    "the service took the request and answered with the status '{status}': \
                     remove 'background' from the body, answers are not fetched later"
                );
                let failure = JobFailure { code: "answer_in_background".into(), message };
                Verdict::Refused(self.error_with(failure, Some(body), usage))
            }
        }
    }

    /// Judges an error that came with a 2xx: as one with the status that it names.
    fn judge_failed_answer(&self, said: ErrorBody, body: Bytes, usage: TokenUsage) -> Verdict {
        let is_billed = usage.unreported == 0;
        let usage = if is_billed { usage } else { TokenUsage::default() };
        let said = ErrorBody { json: Some(body).filter(ErrorBody::may_be_kept), ..said };
        let kind = classify(status_of(&said), &said, wait::from_message(&said.message));
        let verdict = self.verdict_of(kind, &said, None);
        match verdict {
            // It was paid for, so it is not asked for again and again.
            Verdict::Transient { error, .. } if is_billed => {
                Verdict::NoAnswer(ErrorReply { usage, ..error })
            }
            Verdict::Refused(error) => Verdict::Refused(ErrorReply { usage, ..error }),
            verdict => verdict,
        }
    }

    fn judge_error(&self, said: &ErrorBody, now: SystemTime) -> Verdict {
        if self.status == 400 && self.tier == ServiceTier::Flex && is_about_tier(said) {
            let why = format!(
                "400: {} The model has no flex tier: remove 'flex = true' from this deployment.",
                said.message
            );
            return Verdict::Misconfigured { why };
        }
        let by_header = wait::from_headers(self.headers, now);
        let asked = by_header.or_else(|| wait::from_message(&said.message));
        self.verdict_of(classify(self.status, said, asked), said, asked)
    }

    fn judge_packed(&self, why: &ReplyTextError, now: SystemTime) -> Verdict {
        let said = header(self.headers, CONTENT_ENCODING.as_str()).unwrap_or("none");
        let message = format!("{why} (content-encoding: {})", plain(said, LONGEST_ID));
        if (200..300).contains(&self.status) {
            let error = own_error(Some(self.status), "unreadable_answer", message);
            return Verdict::NoAnswer(with_unknown_usage(error));
        }
        self.judge_error(&ErrorBody { message, ..ErrorBody::default() }, now)
    }

    fn verdict_of(&self, kind: RefusalKind, said: &ErrorBody, asked: Option<Duration>) -> Verdict {
        let failure = JobFailure {
            code: said.name().map_or_else(|| format!("http_{}", self.status), Into::into),
            message: said.message.clone(),
        };
        let error = self.error_with(failure, said.json.clone(), TokenUsage::default());
        match kind {
            RefusalKind::Job => Verdict::Refused(error),
            RefusalKind::JobHere => Verdict::RefusedHere(error),
            RefusalKind::Open(suspect, advice) => {
                let why = format!("{} {advice}", error.words());
                Verdict::Denied { error, suspect, why }
            }
            RefusalKind::Full => Verdict::Throttled { error, asked },
            RefusalKind::Passing => Verdict::Transient { error, retry_after: asked },
            RefusalKind::Closed(advice) => {
                Verdict::Misconfigured { why: format!("{} {advice}", error.words()) }
            }
        }
    }

    /// Keeps an answer that can't be read as what it is: a text.
    fn unreadable(&self, why: String, text: &ReplyText) -> Verdict {
        let failure = JobFailure { code: "unreadable_answer".into(), message: why };
        let mut end = text.bytes.len().min(LARGEST_TEXT);
        while !text.as_str().is_char_boundary(end) {
            end -= 1;
        }
        let kept = serde_json::to_vec(&text.as_str()[..end]).ok().map(Bytes::from);
        let error = self.error_with(failure, kept, TokenUsage::default());
        Verdict::NoAnswer(with_unknown_usage(error))
    }

    fn error_with(
        &self,
        failure: JobFailure,
        body: Option<Bytes>,
        usage: TokenUsage,
    ) -> ErrorReply {
        let request_id = request_id(self.headers);
        ErrorReply { status: Some(self.status), request_id, body, failure, usage }
    }
}

/// Returns the status that an error in a 2xx stands for: the one that it names, or the one that the
/// service would have sent with its code.
fn status_of(said: &ErrorBody) -> u16 {
    let named = said.code.as_deref().and_then(|code| code.parse().ok());
    if let Some(named @ 400..=599) = named {
        return named;
    }
    if said.is(&["rate_limit_exceeded", "too_many_requests", "insufficient_quota"]) {
        return 429;
    }
    let refused = [
        "invalid_request_error",
        "invalid_prompt",
        "content_filter",
        "content_policy_violation",
        "context_length_exceeded",
        "image_content_policy_violation",
    ];
    if said.is(&refused) { 400 } else { 502 }
}

/// Returns whether a refusal concerns the flex tier: a model without it refuses it so (Azure docs:
/// "flex processing"), and then the deployment is at fault and not the job.
fn is_about_tier(said: &ErrorBody) -> bool {
    said.param.as_deref() == Some("service_tier") || said.mentions(&["service_tier", "flex"])
}

fn not_json(error: &serde_json::Error) -> String {
    format!("the answer is not the JSON it should be: {error}")
}

fn with_unknown_usage(error: ErrorReply) -> ErrorReply {
    ErrorReply { usage: TokenUsage { unreported: 1, ..TokenUsage::default() }, ..error }
}

fn own_error(status: Option<u16>, code: &str, message: String) -> ErrorReply {
    let failure = JobFailure { code: code.into(), message };
    ErrorReply { status, failure, ..ErrorReply::default() }
}

fn request_id(headers: &HeaderMap) -> Option<String> {
    ["apim-request-id", "x-request-id"]
        .iter()
        .find_map(|name| header(headers, name))
        .map(|id| plain(id, LONGEST_ID))
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

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "verdict_property.rs"]
mod property;
