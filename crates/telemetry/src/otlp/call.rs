//! Span and metrics of one model call, by the conventions for generative AI.

use std::time::SystemTime;

use opentelemetry::trace::{Span as _, SpanKind};
use opentelemetry::{Array, KeyValue, StringValue, Value};
use opentelemetry_sdk::trace::Span;
use serde::Deserialize;
use tokio::time::Instant;

use super::active::{Telemetry, active};
use super::span::{self, SpanStart};
use super::{content, names};
use domain::job::{Api, Job};
use model::verdict::{ErrorReply, Verdict};
use model::{ModelClient, ModelResponse};

/// Span of a call in flight. Empty if telemetry is off.
#[must_use = "a call is recorded by `end`"]
pub struct CallSpan(Option<Box<OpenCall>>);

struct OpenCall {
    telemetry: &'static Telemetry,
    span: Span,
    /// Labels of the measurements.
    labels: Vec<KeyValue>,
    deployment: String,
    api: Api,
    began: Instant,
}

impl CallSpan {
    /// Begins the span; `attempts` is the number of earlier calls of the job that counted.
    pub fn begin(
        job: &Job,
        (deployment, client): (&str, &ModelClient),
        charge: u64,
        attempts: u32,
    ) -> Self {
        Self(active().map(|telemetry| {
            let labels = labels(job, client);
            let mut attributes = labels.clone();
            attributes.extend([
                KeyValue::new(names::DEPLOYMENT, deployment.to_owned()),
                KeyValue::new(names::BATCH, job.batch_id.to_string()),
                KeyValue::new(names::CHARGE, signed(charge)),
                KeyValue::new(names::ATTEMPT, i64::from(attempts) + 1),
            ]);
            let begin = SpanStart {
                name: format!("{} {}", operation(job.api), job.model),
                kind: SpanKind::Client,
                parent: job.history.traceparent,
                at: SystemTime::now(),
                attributes,
            };
            let mut span = telemetry.begin_span(begin);
            if span.is_recording() {
                span.set_attributes(request_attributes(job));
                if telemetry.content
                    && let Some(messages) = content::input(job.api, &job.body)
                {
                    span.set_attribute(KeyValue::new(names::INPUT_MESSAGES, messages));
                }
            }
            let (api, began) = (job.api, Instant::now());
            Box::new(OpenCall {
                telemetry,
                span,
                labels,
                deployment: deployment.into(),
                api,
                began,
            })
        }))
    }

    pub fn end(self, verdict: &Verdict) {
        if let Some(open) = self.0 {
            open.end(verdict);
        }
    }
}

impl OpenCall {
    fn end(mut self, verdict: &Verdict) {
        let instruments = &self.telemetry.instruments;
        let seconds = self.began.elapsed().as_secs_f64();
        let error = error_type(verdict);
        match error {
            Some(error) => {
                span::mark_failed(&mut self.span, error.clone());
                let mut labels = self.labels.clone();
                labels.push(KeyValue::new(names::ERROR_TYPE, error));
                instruments.call_duration.record(seconds, &labels);
            }
            None => instruments.call_duration.record(seconds, &self.labels),
        }
        if matches!(verdict, Verdict::Throttled { .. }) {
            let deployment = KeyValue::new(names::DEPLOYMENT, self.deployment.clone());
            instruments.throttled.add(1, &[deployment]);
        }
        if let Some(status) = status(verdict) {
            self.span.set_attribute(KeyValue::new(names::HTTP_STATUS, i64::from(status)));
        }
        if let Verdict::Answered(reply) = verdict {
            self.record_reply(reply);
        }
        self.span.end();
    }

    fn record_reply(&mut self, reply: &ModelResponse) {
        let usage = reply.usage;
        for (kind, tokens) in [("input", usage.prompt), ("output", usage.completion)] {
            // An embedding has no output; the service reports nothing where it bills nothing.
            if tokens > 0 {
                let mut labels = self.labels.clone();
                labels.push(KeyValue::new(names::TOKEN_TYPE, kind));
                self.telemetry.instruments.token_usage.record(tokens, &labels);
            }
        }
        if !self.span.is_recording() {
            return;
        }
        self.span.set_attributes([
            KeyValue::new(names::INPUT_TOKENS, signed(usage.prompt)),
            KeyValue::new(names::OUTPUT_TOKENS, signed(usage.completion)),
            KeyValue::new(names::CACHED_TOKENS, signed(usage.cached)),
            KeyValue::new(names::REASONING_TOKENS, signed(usage.reasoning)),
        ]);
        if let Some(tier) = &reply.service_tier {
            self.span.set_attribute(KeyValue::new(names::SERVICE_TIER, tier.to_string()));
        }
        self.span.set_attributes(response_attributes(&reply.body));
        if self.telemetry.content
            && let Some(messages) = content::output(self.api, &reply.body)
        {
            self.span.set_attribute(KeyValue::new(names::OUTPUT_MESSAGES, messages));
        }
    }
}

fn labels(job: &Job, client: &ModelClient) -> Vec<KeyValue> {
    let base = client.base();
    let mut labels = vec![
        KeyValue::new(names::GEN_AI_OPERATION, operation(job.api)),
        KeyValue::new(names::GEN_AI_PROVIDER, provider(client)),
        KeyValue::new(names::REQUEST_MODEL, job.model.clone()),
        KeyValue::new(names::SERVER_ADDRESS, base.host_str().unwrap_or_default().to_owned()),
    ];
    let port = base.port_or_known_default();
    labels.extend(port.map(|port| KeyValue::new(names::SERVER_PORT, i64::from(port))));
    labels
}

fn operation(api: Api) -> &'static str {
    match api {
        Api::ChatCompletions | Api::Responses => "chat",
        Api::Embeddings => "embeddings",
    }
}

/// Returns the provider, judged by the endpoint: a gateway keeps Azure's path.
fn provider(client: &ModelClient) -> &'static str {
    if client.speaks_azure() { "azure.ai.openai" } else { "openai" }
}

/// Returns the attributes of the request, without its content.
fn request_attributes(job: &Job) -> Vec<KeyValue> {
    #[derive(Default, Deserialize)]
    struct RequestFields {
        #[serde(alias = "max_completion_tokens", alias = "max_output_tokens")]
        max_tokens: Option<i64>,
        stream: Option<bool>,
    }
    // A body of another shape yields no attributes here, and the service judges it.
    let fields: RequestFields = serde_json::from_slice(&job.body).unwrap_or_default();
    let api = match job.api {
        Api::ChatCompletions => Some("chat_completions"),
        Api::Responses => Some("responses"),
        Api::Embeddings => None,
    };
    let api = api.map(|api| KeyValue::new(names::API_TYPE, api));
    let max_tokens = fields.max_tokens.map(|n| KeyValue::new(names::REQUEST_MAX_TOKENS, n));
    let stream = fields.stream.map(|stream| KeyValue::new(names::REQUEST_STREAM, stream));
    api.into_iter().chain(max_tokens).chain(stream).collect()
}

/// Returns the attributes of the answer, without its content.
fn response_attributes(body: &[u8]) -> Vec<KeyValue> {
    #[derive(Default, Deserialize)]
    struct ResponseFields {
        id: Option<String>,
        model: Option<String>,
        /// Status of a Responses answer; a chat completion has its choices' reasons.
        status: Option<String>,
        #[serde(default)]
        choices: Vec<ResponseChoice>,
    }
    #[derive(Deserialize)]
    struct ResponseChoice {
        finish_reason: Option<String>,
    }
    let answer: ResponseFields = serde_json::from_slice(body).unwrap_or_default();
    let reasons = answer.choices.into_iter().filter_map(|choice| choice.finish_reason);
    let reasons: Vec<StringValue> = reasons.chain(answer.status).map(Into::into).collect();
    let text = |name, value: Option<String>| value.map(|value| KeyValue::new(name, value));
    let mut attributes: Vec<_> = text(names::RESPONSE_ID, answer.id).into_iter().collect();
    attributes.extend(text(names::RESPONSE_MODEL, answer.model));
    if !reasons.is_empty() {
        attributes.push(KeyValue::new(names::FINISH_REASONS, Value::Array(Array::String(reasons))));
    }
    attributes
}

/// Returns one of few values, and never the service's own message, which may quote a prompt.
fn error_type(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Answered(_) => None,
        Verdict::Throttled { .. } => Some("429".into()),
        Verdict::Unreachable { .. } => Some("unreachable".into()),
        Verdict::Misconfigured { .. } => Some("misconfigured".into()),
        Verdict::Refused(error)
        | Verdict::RefusedHere(error)
        | Verdict::NoAnswer(error)
        | Verdict::Denied { error, .. }
        | Verdict::Transient { error, .. } => Some(label_of(error)),
    }
}

/// Returns the error's code where it is a plain word: a label must not be a text.
fn label_of(error: &ErrorReply) -> String {
    let code = &error.failure.code;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    match code.len() <= 48 && code.chars().all(is_plain) {
        true => code.clone(),
        false => error.status.map_or_else(|| "other".into(), |status| status.to_string()),
    }
}

fn status(verdict: &Verdict) -> Option<u16> {
    match verdict {
        Verdict::Answered(reply) => Some(reply.status),
        other => other.error().and_then(|error| error.status),
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_of_itself_without_its_content() {
        let body = br#"{"id":"c-1","model":"gpt-4.1-2025","choices":[
            {"finish_reason":"stop","message":{"content":"secret"}},{"finish_reason":"length"}]}"#;
        let told = response_attributes(body);
        let text = format!("{told:?}");
        assert!(!text.contains("secret"), "{text}");
        let names: Vec<_> = told.iter().map(|kv| kv.key.as_str()).collect();
        assert_eq!(names, [names::RESPONSE_ID, names::RESPONSE_MODEL, names::FINISH_REASONS]);
        assert_eq!(told[2].value.as_str(), r#"["stop","length"]"#);
        assert!(super::response_attributes(b"no JSON").is_empty());
    }
}
