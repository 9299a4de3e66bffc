//! One line of an OpenAI/Azure Batch file: parsing into a job, and the faults of an invalid line.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::LineFault;
use domain::job::json_edits::{self, JsonEdits};
use domain::job::{Api, BatchId, Job, JobHistory, JobId, TokenEstimate};

/// Options for reading lines.
#[derive(Debug, Clone)]
pub struct LineOptions {
    /// Model of lines whose body names none.
    pub default_model: Option<String>,
    /// Models that can be requested; `None`: any.
    pub models: Option<Vec<String>>,
    /// Every prompt must limit its output: there is a budget to keep.
    pub must_limit_output: bool,
    /// Longer lines are rejected, so that one line can't use up the memory.
    pub max_line_bytes: usize,
    pub terms: BatchTerms,
}

/// Terms of a batch that apply to all its lines.
#[derive(Debug, Clone, Default)]
pub struct BatchTerms {
    /// The only API that may be requested.
    pub api: Option<Api>,
    /// Latest deadline that a job gets.
    pub deadline: Option<Timestamp>,
    /// JSON object for lines that have no metadata of their own.
    pub metadata: Option<Box<str>>,
}

impl LineOptions {
    /// Returns the options that change the jobs that are read.
    pub(super) fn fingerprint(&self) -> String {
        format!("model={}\n", self.default_model.as_deref().unwrap_or_default())
    }
}

/// Line that is a job, before it has a batch.
#[derive(Debug)]
pub struct JobLine<'a> {
    pub(super) custom_id: Cow<'a, str>,
    api: Api,
    pub(super) model: Cow<'a, str>,
    body: &'a RawValue,
    named: ModelPlace<'a>,
    pub(super) deadline: Option<Timestamp>,
    pub(super) not_before: Option<Timestamp>,
    pub(super) priority: i32,
    metadata: Option<&'a str>,
}

/// Place of the model's name in a body.
#[derive(Debug, Clone, Copy)]
enum ModelPlace<'a> {
    Named,
    /// There is `null` or an empty text.
    Empty(&'a RawValue),
    Absent,
}

/// All fields unparsed, so that each fault can be reported separately.
#[derive(Deserialize)]
struct LineFields<'a> {
    #[serde(borrow)]
    custom_id: Option<&'a RawValue>,
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    url: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
    #[serde(borrow)]
    deadline: Option<&'a RawValue>,
    #[serde(borrow)]
    not_before: Option<&'a RawValue>,
    #[serde(borrow)]
    priority: Option<&'a RawValue>,
    #[serde(borrow)]
    metadata: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct BodyFields<'a> {
    #[serde(default, borrow, deserialize_with = "json_edits::written")]
    model: Option<&'a RawValue>,
    #[serde(borrow)]
    messages: Option<&'a RawValue>,
    #[serde(borrow)]
    input: Option<&'a RawValue>,
    #[serde(borrow)]
    prompt: Option<&'a RawValue>,
    #[serde(borrow)]
    background: Option<&'a RawValue>,
}

/// Parses one line.
///
/// # Errors
/// Describes the fault and its fix.
pub fn read_line<'a>(text: &'a str, reading: &'a LineOptions) -> Result<JobLine<'a>, LineFault> {
    let fields: LineFields<'a> = serde_json::from_str(text).map_err(|e| json_fault(&e))?;
    let custom_id = custom_id(fields.custom_id)?;
    if let Some(method) = fields.method
        && method.get() != r#""POST""#
    {
        return Err(LineFault::Wrong { field: "method", expected: "\"POST\"" });
    }
    let url = fields.url.ok_or(LineFault::Missing {
        field: "url",
        hint: "say which API is asked, such as \"/v1/chat/completions\"",
    })?;
    let url: Cow<'_, str> = text_of("url", url)?;
    let api = Api::from_url(&url).ok_or_else(|| LineFault::Url(url.into_owned()))?;
    if let Some(asked) = reading.terms.api.filter(|asked| *asked != api) {
        return Err(LineFault::OtherApi { url: api.url(), endpoint: asked.url() });
    }
    let body = fields.body.ok_or(LineFault::Missing {
        field: "body",
        hint: "put the request in it, such as {\"model\":…,\"messages\":[…]}",
    })?;
    let (model, named) = read_body(api, body, reading)?;
    if let Some(known) = &reading.models
        && !known.iter().any(|name| *name == model)
    {
        return Err(LineFault::UnknownModel { model: model.into_owned(), known: known.clone() });
    }
    if reading.must_limit_output && !tokens::has_output_limit(api, body.get()) {
        return Err(LineFault::Unbounded);
    }
    if fields.metadata.is_some_and(|metadata| !metadata.get().starts_with('{')) {
        return Err(LineFault::Wrong { field: "metadata", expected: "a JSON object" });
    }
    Ok(JobLine {
        custom_id,
        api,
        model,
        body,
        named,
        deadline: earliest(
            fields.deadline.map(|raw| time_of("deadline", raw)).transpose()?,
            reading.terms.deadline,
        ),
        not_before: fields.not_before.map(|raw| time_of("not_before", raw)).transpose()?,
        priority: fields.priority.map_or(Ok(0), priority_of)?,
        metadata: fields.metadata.map(RawValue::get).or(reading.terms.metadata.as_deref()),
    })
}

/// Returns the custom_id of a line that is no job, if it can be read.
pub(super) fn custom_id_of(text: &str) -> Option<String> {
    let fields: LineFields<'_> = serde_json::from_str(text).ok()?;
    custom_id(fields.custom_id).ok().map(Cow::into_owned)
}

impl JobLine<'_> {
    /// Counts the tokens that it asks for. The model's name costs none, so it does not matter
    /// whether the body has it.
    pub(super) fn estimate(&self) -> TokenEstimate {
        tokens::estimate(self.api, &self.model, self.body.get().as_bytes())
    }

    /// Makes the job, its tokens counted.
    pub fn into_job(self, batch_id: &BatchId, position: u64) -> Job {
        let estimate = self.estimate();
        let body = with_model(self.body, self.named, &self.model);
        Job {
            id: JobId::new(batch_id, &self.custom_id),
            batch_id: batch_id.clone(),
            custom_id: self.custom_id.into_owned(),
            position,
            api: self.api,
            estimate: Some(estimate),
            model: self.model.into_owned(),
            body,
            deadline: self.deadline,
            not_before: self.not_before,
            priority: self.priority,
            metadata: self.metadata.map(Into::into),
            may_have_outcome: false,
            claim_check: None,
            history: JobHistory::default(),
        }
    }
}

fn custom_id(raw: Option<&RawValue>) -> Result<Cow<'_, str>, LineFault> {
    const HINT: &str = "give each line a custom_id of its own, to find its answer by";
    let raw = raw.ok_or(LineFault::Missing { field: "custom_id", hint: HINT })?;
    let id = text_of("custom_id", raw)?;
    if id.is_empty() {
        return Err(LineFault::Wrong { field: "custom_id", expected: "a text that is not empty" });
    }
    Ok(id)
}

fn read_body<'a>(
    api: Api,
    raw: &'a RawValue,
    reading: &'a LineOptions,
) -> Result<(Cow<'a, str>, ModelPlace<'a>), LineFault> {
    if !raw.get().starts_with('{') {
        return Err(LineFault::Wrong { field: "body", expected: "a JSON object" });
    }
    let body: BodyFields<'a> = serde_json::from_str(raw.get()).map_err(|e| json_fault(&e))?;
    // Only the Responses API knows it; others refuse it themselves.
    if api == Api::Responses && body.background.is_some_and(|said| said.get() == "true") {
        return Err(LineFault::Background);
    }
    match api {
        Api::ChatCompletions => {
            let messages = body.messages.ok_or(LineFault::Missing {
                field: "body.messages",
                hint: "a chat request needs its messages",
            })?;
            if !messages.get().starts_with('[') {
                return Err(LineFault::Wrong { field: "body.messages", expected: "a list" });
            }
        }
        // A Responses request may name a stored prompt instead.
        Api::Responses if body.prompt.is_some() => {}
        Api::Responses | Api::Embeddings => {
            body.input.ok_or(LineFault::Missing {
                field: "body.input",
                hint: "the request needs its input",
            })?;
        }
    }
    let place = match body.model {
        None => ModelPlace::Absent,
        Some(raw) if matches!(raw.get(), "null" | "\"\"") => ModelPlace::Empty(raw),
        Some(raw) => return Ok((text_of("body.model", raw)?, ModelPlace::Named)),
    };
    let default = reading.default_model.as_deref().ok_or(LineFault::NoModel)?;
    Ok((default.into(), place))
}

/// Returns the body with the model's name in it.
fn with_model(body: &RawValue, place: ModelPlace<'_>, model: &str) -> Bytes {
    let bytes = body.get().as_bytes();
    let name = || serde_json::to_string(model).unwrap_or_default();
    match place {
        ModelPlace::Named => Bytes::copy_from_slice(bytes),
        ModelPlace::Empty(raw) => {
            let mut edits = JsonEdits::default();
            edits.replace(bytes, raw, name());
            edits.apply(&Bytes::copy_from_slice(bytes))
        }
        ModelPlace::Absent => {
            let rest = body.get()[1..].trim_start();
            let comma = if rest.starts_with('}') { "" } else { "," };
            Bytes::from(format!("{{\"model\":{}{comma}{rest}", name()))
        }
    }
}

fn text_of<'a>(field: &'static str, raw: &'a RawValue) -> Result<Cow<'a, str>, LineFault> {
    #[derive(Deserialize)]
    struct JsonText<'a>(#[serde(borrow)] Cow<'a, str>);
    let text: JsonText<'a> = serde_json::from_str(raw.get())
        .map_err(|_| LineFault::Wrong { field, expected: "a text" })?;
    Ok(text.0)
}

fn earliest(one: Option<Timestamp>, other: Option<Timestamp>) -> Option<Timestamp> {
    one.into_iter().chain(other).min()
}

fn time_of(field: &'static str, raw: &RawValue) -> Result<Timestamp, LineFault> {
    serde_json::from_str(raw.get()).map_err(|_| LineFault::Wrong {
        field,
        expected: "a time with its zone, such as \"2026-11-24T06:00:00+09:00\"",
    })
}

fn priority_of(raw: &RawValue) -> Result<i32, LineFault> {
    serde_json::from_str(raw.get())
        .map_err(|_| LineFault::Wrong { field: "priority", expected: "a whole number" })
}

/// Returns the parser's message, without its line number, which is always 1.
fn json_fault(error: &serde_json::Error) -> LineFault {
    let text = error.to_string();
    let what = text.split(" at line ").next().unwrap_or(&text);
    LineFault::Json(format!("{what} at column {}", error.column()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{"model":"m","messages":[]}}"#;

    fn reading() -> LineOptions {
        LineOptions {
            default_model: None,
            models: None,
            must_limit_output: false,
            max_line_bytes: 1 << 20,
            terms: BatchTerms::default(),
        }
    }

    fn fault(line: &str) -> String {
        read_line(line, &reading()).unwrap_err().to_string()
    }

    #[test]
    fn a_batch_line_is_a_job() {
        let reading = reading();
        let job = read_line(GOOD, &reading).unwrap().into_job(&"b".parse().unwrap(), 3);
        assert_eq!((job.custom_id.as_str(), job.model.as_str(), job.position), ("a", "m", 3));
        assert_eq!(job.body, r#"{"model":"m","messages":[]}"#);
    }

    #[test]
    fn every_fault_says_its_mend() {
        let cases = [
            ("{", "invalid JSON (EOF while parsing an object at column 1)"),
            ("[1]", "invalid JSON"),
            (r#"{"url":"/v1/responses"}"#, "'custom_id' is missing; give each line"),
            (r#"{"custom_id":7}"#, "'custom_id' must be a text"),
            (r#"{"custom_id":""}"#, "'custom_id' must be a text that is not empty"),
            (r#"{"custom_id":"a","method":"GET"}"#, "'method' must be \"POST\""),
            (r#"{"custom_id":"a"}"#, "'url' is missing"),
            (r#"{"custom_id":"a","url":"/v1/images"}"#, "the url '/v1/images' is not served; use"),
            (r#"{"custom_id":"a","url":"/v1/responses"}"#, "'body' is missing"),
            (
                r#"{"custom_id":"a","url":"/v1/responses","body":[]}"#,
                "'body' must be a JSON object",
            ),
            (
                r#"{"custom_id":"a","url":"/v1/responses","body":{"model":"m"}}"#,
                "'body.input' is missing",
            ),
            (
                r#"{"custom_id":"a","url":"/v1/chat/completions","body":{"model":"m"}}"#,
                "'body.messages' is missing",
            ),
            (
                r#"{"custom_id":"a","url":"/v1/responses","body":{"input":"x"}}"#,
                "the body names no model; add",
            ),
            (
                r#"{"custom_id":"a","url":"/v1/responses","body":{"model":"m","input":"x"},"deadline":"tomorrow"}"#,
                "'deadline' must be a time with its zone",
            ),
            (
                r#"{"custom_id":"a","url":"/v1/responses","body":{"model":"m","input":"x"},"metadata":1}"#,
                "'metadata' must be a JSON object",
            ),
            (
                r#"{"custom_id":"a","url":"/v1/responses","body":{"model":"m","input":"x","background":true}}"#,
                "would be lost; remove it",
            ),
        ];
        for (line, expected) in cases {
            let said = fault(line);
            assert!(said.contains(expected), "{line}\n said: {said}\n want: {expected}");
        }
    }

    #[test]
    fn the_default_model_is_written_into_bodies_without_one() {
        let reading = LineOptions { default_model: Some("gpt \"x\"".into()), ..reading() };
        let line = r#"{"custom_id":"a","url":"/v1/responses","body":{ "input":"x"}}"#;
        let job = read_line(line, &reading).unwrap().into_job(&"b".parse().unwrap(), 0);
        assert_eq!(job.body, r#"{"model":"gpt \"x\"","input":"x"}"#);
        for empty in ["null", "\"\""] {
            let line = GOOD.replace("\"m\"", empty);
            let job = read_line(&line, &reading).unwrap().into_job(&"b".parse().unwrap(), 0);
            let body = String::from_utf8(job.body.to_vec()).unwrap();
            assert_eq!(body.matches("\"model\"").count(), 1, "{body}");
            assert!(body.contains(r#""model":"gpt \"x\"""#), "{body}");
        }
        let line = GOOD.replace("\"m\"", "\"other\"");
        assert_eq!(read_line(&line, &reading).unwrap().model, "other");
    }

    #[test]
    fn with_a_budget_every_prompt_says_how_long_its_answer_may_be() {
        let reading = LineOptions { must_limit_output: true, ..reading() };
        let said = read_line(GOOD, &reading).unwrap_err().to_string();
        assert!(said.contains("max_completion_tokens"), "{said}");
        for name in ["max_tokens", "max_completion_tokens", "max_output_tokens"] {
            let line = GOOD.replace("[]", &format!("[],\"{name}\":5"));
            assert!(read_line(&line, &reading).is_ok(), "{line}");
        }
        let line = r#"{"custom_id":"a","url":"/v1/embeddings","body":{"model":"m","input":"x"}}"#;
        assert!(read_line(line, &reading).is_ok(), "an embedding has no length");
    }

    #[test]
    fn a_batch_has_terms_for_all_its_lines() {
        let at = |time: &str| Some(time.parse::<Timestamp>().unwrap());
        let terms = BatchTerms {
            api: Some(Api::ChatCompletions),
            deadline: at("2026-11-24T00:00:00Z"),
            metadata: Some(r#"{"team":"a"}"#.into()),
        };
        let reading = LineOptions { terms, ..reading() };
        let job =
            |line: &str| read_line(line, &reading).unwrap().into_job(&"b".parse().unwrap(), 0);
        let plain = job(GOOD);
        assert_eq!(plain.deadline, at("2026-11-24T00:00:00Z"));
        assert_eq!(plain.metadata.as_deref(), Some(r#"{"team":"a"}"#));
        let own = r#"{"deadline":"2026-11-23T00:00:00Z","metadata":{"team":"b"},"#;
        let own = job(&GOOD.replacen('{', own, 1));
        assert_eq!(own.deadline, at("2026-11-23T00:00:00Z"));
        assert_eq!(own.metadata.as_deref(), Some(r#"{"team":"b"}"#));
        let other = r#"{"custom_id":"a","url":"/v1/embeddings","body":{"model":"m","input":"x"}}"#;
        let said = read_line(other, &reading).unwrap_err().to_string();
        assert!(said.contains("is for /v1/chat/completions"), "{said}");
    }

    #[test]
    fn a_model_that_nothing_serves_is_named_with_those_that_are() {
        let reading = LineOptions { models: Some(vec!["x".into(), "y".into()]), ..reading() };
        let said = read_line(GOOD, &reading).unwrap_err().to_string();
        assert_eq!(said, "no deployment serves the model 'm'; use one of: x, y");
    }
}
