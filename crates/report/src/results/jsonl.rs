//! Writes outcomes as the output and error files of the OpenAI/Azure Batch format.
//!
//! A line: `{"id","custom_id","response":{"status_code","request_id","body"},"error"}`. Answers go
//! to the output file, all other endings to the error file. If the service itself refused, its
//! answer is in `response` and `error` is null, as in the Batch API; if we gave up, `error` says
//! why.

use std::borrow::Cow;
use std::io::{self, Write};

use futures_util::future::ready;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::value::RawValue;

use super::atomic_file::AtomicFile;
use super::{OutcomeSelection, ResultCounts, ResultPaths, ResultsError};
use domain::outcome::{AnswerFlaw, Outcome, OutcomeStatus};
use store::Store;

/// Streams a batch's outcomes into the two files. A file appears under its name only when complete.
/// `first_errors` may write lines before the outcomes' errors: those of the input.
///
/// # Errors
/// If the store or a file fails; earlier files stay as they were.
pub async fn write(
    store: &dyn Store,
    selection: &OutcomeSelection,
    paths: &ResultPaths,
    first_errors: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<ResultCounts, ResultsError> {
    let mut out = AtomicFile::create(&paths.out)?;
    let mut errors = AtomicFile::create(&paths.errors)?;
    first_errors(&mut errors.file).map_err(|source| errors.failed(source))?;
    let mut written = ResultCounts::default();
    let mut outcomes = selection.stream(store).await?;
    while let Some(outcome) = outcomes.try_next().await? {
        let (target, count) = if outcome.ending == OutcomeStatus::Succeeded {
            (&mut out, &mut written.results)
        } else {
            (&mut errors, &mut written.errors)
        };
        let line = line_of(&outcome).map_err(|source| ResultsError::Body {
            custom_id: outcome.custom_id.clone(),
            source,
        })?;
        target.file.write_all(&line).map_err(|source| target.failed(source))?;
        *count += 1;
    }
    out.finish()?;
    errors.finish()?;
    Ok(written)
}

/// Streams a batch's outcomes as lines of either file, in bounded memory.
///
/// # Errors
/// If the store fails; also later, in the stream.
pub async fn lines(
    store: &dyn Store,
    selection: &OutcomeSelection,
) -> Result<BoxStream<'static, Result<Vec<u8>, ResultsError>>, ResultsError> {
    let outcomes = selection.stream(store).await?.map_err(ResultsError::from);
    let line = |outcome: Outcome| {
        let line = line_of(&outcome);
        ready(line.map_err(|source| ResultsError::Body { custom_id: outcome.custom_id, source }))
    };
    Ok(outcomes.and_then(line).boxed())
}

/// Formats one outcome as one line.
fn line_of(outcome: &Outcome) -> Result<Vec<u8>, serde_json::Error> {
    let body = outcome.body.as_deref().map(BodyValue::of);
    let response = outcome.status_code.map(|status_code| OutputResponse {
        status_code,
        request_id: outcome.request_id.as_deref(),
        body,
    });
    // An error that came with a 200 is told as ours: by its status alone it would pass for an answer.
    let said_by_service = outcome.status_code.is_some_and(|status| status >= 400)
        && outcome.body.is_some()
        && outcome.ending == OutcomeStatus::Failed;
    let error = outcome.failure.as_ref().filter(|_| !said_by_service).map(|failure| OutputError {
        code: &failure.code,
        message: &failure.message,
        ending: outcome.ending,
        attempts: outcome.attempts,
    });
    let line = OutputLine {
        id: format!("batch_req_{}", outcome.job_id),
        custom_id: &outcome.custom_id,
        response,
        error,
        simulated: outcome.batch_id.is_simulated(),
        flaw: outcome.flaw.map(AnswerFlaw::as_str),
    };
    let mut bytes = Vec::with_capacity(256 + outcome.body.as_ref().map_or(0, |body| body.len()));
    serde_json::to_writer(&mut bytes, &line)?;
    // A body may have been sent over several lines; a line of the file must be one.
    if bytes.contains(&b'\n') {
        bytes.iter_mut().filter(|byte| **byte == b'\n' || **byte == b'\r').for_each(|b| *b = b' ');
    }
    bytes.push(b'\n');
    Ok(bytes)
}

#[derive(Serialize)]
struct OutputLine<'a> {
    id: String,
    custom_id: &'a str,
    response: Option<OutputResponse<'a>>,
    error: Option<OutputError<'a>>,
    /// True if the simulator answered.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    simulated: bool,
    /// Change that the answer took to be kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    flaw: Option<&'static str>,
}

#[derive(Serialize)]
struct OutputResponse<'a> {
    status_code: u16,
    request_id: Option<&'a str>,
    body: Option<BodyValue<'a>>,
}

/// A body as it is written: JSON unchanged, anything else as a text, so that no stored body keeps a
/// batch's results from being written.
#[derive(Serialize)]
#[serde(untagged)]
enum BodyValue<'a> {
    Json(&'a RawValue),
    Text(Cow<'a, str>),
}

impl<'a> BodyValue<'a> {
    fn of(body: &'a [u8]) -> Self {
        serde_json::from_slice(body)
            .map_or_else(|_| Self::Text(String::from_utf8_lossy(body)), Self::Json)
    }
}

#[derive(Serialize)]
struct OutputError<'a> {
    code: &'a str,
    message: &'a str,
    ending: OutcomeStatus,
    attempts: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::job::{BatchId, JobId};
    use domain::outcome::{JobFailure, TokenUsage};
    use serde_json::{Value, json};

    fn line(status_code: u16, body: &[u8]) -> Value {
        let batch_id: BatchId = "b".parse().unwrap();
        let failure = JobFailure { code: "answer_not_storable".into(), message: "why".into() };
        let outcome = Outcome {
            job_id: JobId::new(&batch_id, "1"),
            batch_id,
            custom_id: "1".into(),
            position: 0,
            digest: 7,
            ending: OutcomeStatus::Failed,
            status_code: Some(status_code),
            request_id: None,
            body: Some(body.to_vec().into()),
            failure: Some(failure),
            usage: TokenUsage::default(),
            finish: None,
            flaw: None,
            service_tier: None,
            attempts: 1,
            throttled: 0,
            deployment: "d".into(),
            model: "m".into(),
            latency_ms: 5,
            finished_at: "2026-11-23T12:00:00Z".parse().unwrap(),
            deadline: None,
            metadata: None,
        };
        let line = line_of(&outcome).unwrap();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        serde_json::from_slice(&line).unwrap()
    }

    #[test]
    fn a_body_that_is_no_json_is_written_as_a_text() {
        for (body, expected) in [
            (b"<html>\n\x83G</html>".as_slice(), json!("<html>\n\u{fffd}G</html>")),
            (b"", json!("")),
            (b"{\"a\":1}\n", json!({ "a": 1 })),
        ] {
            assert_eq!(line(502, body)["response"]["body"], expected);
        }
    }

    #[test]
    fn an_answer_that_failed_says_why_and_a_refusal_stands_for_itself() {
        assert_eq!(line(200, b"{}")["error"]["code"], "answer_not_storable");
        assert_eq!(line(400, b"{}")["error"], Value::Null);
    }
}
