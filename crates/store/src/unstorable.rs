//! Outcomes that a store can't keep as they are, and what it keeps in their place.
//!
//! No bytes of a reply may make a store refuse: the job would be answered and paid again and again,
//! and the outcomes of its group with it. So such an outcome is recorded as failed, with the reason
//! and as much of the answer as can be kept. The model's client mends what it can before; this is
//! the last line, and the same for every backend.

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::IgnoredAny;

use domain::outcome::{JobFailure, Outcome, OutcomeStatus, TokenUsage};

/// Error code of an outcome that could not be kept as it came.
pub const UNSTORABLE_CODE: &str = "answer_not_storable";

/// Largest count that is kept. No call takes so many tokens, and the sum over ten million jobs
/// still fits a signed 64-bit column.
pub(crate) const MAX_COUNT: u64 = 1_000_000_000_000;

/// Bytes of a short text (service tier, request id, error code).
const MAX_SHORT_TEXT: usize = 4096;

/// Bytes of an error message or of metadata in an outcome that was not kept as it came.
const MAX_KEPT_TEXT: usize = 64 * 1024;

/// Reason why an outcome is not kept as it came.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnstorableReason {
    #[error("its body is not UTF-8 text from byte {at} on; each bad byte is kept as U+FFFD")]
    BodyNotText { at: usize },
    #[error("its usage counts {value} {field} tokens, more than any call takes; 0 is kept")]
    CountTooLarge { field: &'static str, value: u64 },
    #[error("its {field} is {bytes} bytes long; the beginning is kept")]
    TextTooLong { field: &'static str, bytes: usize },
    #[cfg(feature = "cosmos")]
    #[error("without its body it is {bytes} bytes long, and an item may have {limit}")]
    TooLarge { bytes: usize, limit: usize },
    #[error("the store does not take it: {0}")]
    Refused(String),
}

/// Checks what every backend limits.
pub(crate) fn check(o: &Outcome) -> Result<(), UnstorableReason> {
    if let Some(body) = &o.body
        && simdutf8::basic::from_utf8(body).is_err()
    {
        let at = std::str::from_utf8(body).map_or_else(|e| e.valid_up_to(), str::len);
        return Err(UnstorableReason::BodyNotText { at });
    }
    let usage = &o.usage;
    for (field, value) in [
        ("prompt", usage.prompt),
        ("cached", usage.cached),
        ("completion", usage.completion),
        ("reasoning", usage.reasoning),
    ] {
        if value > MAX_COUNT {
            return Err(UnstorableReason::CountTooLarge { field, value });
        }
    }
    for (field, text) in [
        ("service tier", o.service_tier.as_deref()),
        ("request id", o.request_id.as_deref()),
        ("error code", o.failure.as_ref().map(|failure| failure.code.as_str())),
    ] {
        let bytes = text.map_or(0, str::len);
        if bytes > MAX_SHORT_TEXT {
            return Err(UnstorableReason::TextTooLong { field, bytes });
        }
    }
    Ok(())
}

impl UnstorableReason {
    /// Returns the outcomes to record in place of `o`, the fullest first: if a backend refuses that
    /// as well, the next.
    pub(crate) fn replacements(&self, o: &Outcome) -> [Outcome; 2] {
        let kept = |count: u64| if count > MAX_COUNT { 0 } else { count };
        let short = |text: &str| truncated(text, MAX_SHORT_TEXT).to_owned();
        let full = Outcome {
            // What had failed already keeps its ending: a dead job's message is a dead letter.
            ending: match o.ending {
                OutcomeStatus::Succeeded => OutcomeStatus::Failed,
                other => other,
            },
            failure: Some(self.failure(o.failure.as_ref())),
            body: o.body.as_deref().map(as_json_text),
            request_id: o.request_id.as_deref().map(short),
            service_tier: o.service_tier.as_deref().map(|tier| short(tier).into()),
            usage: TokenUsage {
                prompt: kept(o.usage.prompt),
                cached: kept(o.usage.cached),
                completion: kept(o.usage.completion),
                reasoning: kept(o.usage.reasoning),
                unreported: o.usage.unreported,
            },
            metadata: o.metadata.clone().filter(|text| text.len() <= MAX_KEPT_TEXT),
            ..o.clone()
        };
        let bare = Outcome { body: None, metadata: None, ..full.clone() };
        [full, bare]
    }

    fn failure(&self, earlier: Option<&JobFailure>) -> JobFailure {
        match earlier {
            Some(earlier) => JobFailure {
                code: truncated(&earlier.code, MAX_SHORT_TEXT).to_owned(),
                message: format!(
                    "{} (not stored as it came: {self})",
                    truncated(&earlier.message, MAX_KEPT_TEXT)
                ),
            },
            None => JobFailure {
                code: UNSTORABLE_CODE.to_owned(),
                message: format!("the answer was paid and can't be stored as it came: {self}"),
            },
        }
    }
}

/// Returns the body as JSON in UTF-8: itself if it is JSON but for bad bytes, else as a JSON text.
fn as_json_text(body: &[u8]) -> Bytes {
    let text = String::from_utf8_lossy(body);
    if serde_json::from_str::<IgnoredAny>(&text).is_ok() {
        return match text {
            Cow::Borrowed(text) => Bytes::copy_from_slice(text.as_bytes()),
            Cow::Owned(text) => text.into(),
        };
    }
    // A text is always JSON.
    serde_json::to_string(&text).unwrap_or_default().into()
}

/// Returns the beginning of a text, at most so many bytes.
fn truncated(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::job::{BatchId, JobId};

    fn outcome() -> Outcome {
        let batch_id: BatchId = "b".parse().unwrap();
        Outcome {
            job_id: JobId::new(&batch_id, "1"),
            batch_id,
            custom_id: "1".into(),
            position: 0,
            digest: 7,
            ending: OutcomeStatus::Succeeded,
            status_code: Some(200),
            request_id: None,
            body: Some("{}".into()),
            failure: None,
            usage: TokenUsage { prompt: 5, completion: 3, ..TokenUsage::default() },
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
        }
    }

    #[test]
    fn a_bad_byte_in_an_answer_fails_it_and_keeps_the_rest_of_its_text() {
        let body = Bytes::from_static(b"{\"content\":\"caf\xe9\"}");
        let bad = Outcome { body: Some(body), ..outcome() };
        let reason = check(&bad).unwrap_err();
        assert_eq!(reason, UnstorableReason::BodyNotText { at: 15 });
        let [full, bare] = reason.replacements(&bad);
        assert_eq!((full.ending, bare.body.as_ref()), (OutcomeStatus::Failed, None));
        assert_eq!(full.body.as_deref(), Some("{\"content\":\"caf\u{fffd}\"}".as_bytes()));
        assert_eq!(full.usage, bad.usage, "it was paid");
        let failure = full.failure.unwrap();
        assert_eq!(failure.code, UNSTORABLE_CODE);
        assert!(failure.message.contains("byte 15"), "{failure:?}");
    }

    #[test]
    fn a_body_that_is_no_json_is_kept_as_a_json_text() {
        let page = Bytes::from_static(b"<html>\x83\x47</html>");
        let bad = Outcome {
            ending: OutcomeStatus::Dead,
            failure: Some(JobFailure { code: "502".into(), message: "bad gateway".into() }),
            body: Some(page),
            ..outcome()
        };
        let [full, _] = check(&bad).unwrap_err().replacements(&bad);
        assert_eq!(full.ending, OutcomeStatus::Dead, "its message is still a dead letter");
        let text: String = serde_json::from_slice(&full.body.unwrap()).unwrap();
        assert_eq!(text, "<html>\u{fffd}G</html>");
        let failure = full.failure.unwrap();
        assert_eq!(failure.code, "502");
        assert!(failure.message.starts_with("bad gateway (not stored"), "{failure:?}");
    }

    #[test]
    fn counts_beyond_belief_are_not_summed() {
        let usage = TokenUsage { completion: u64::MAX, ..outcome().usage };
        let bad = Outcome { usage, ..outcome() };
        let [full, _] = check(&bad).unwrap_err().replacements(&bad);
        assert_eq!((full.usage.prompt, full.usage.completion), (5, 0));
        assert!(full.failure.unwrap().message.contains("18446744073709551615 completion"));
        assert_eq!(full.body, bad.body);
    }

    #[test]
    fn a_replacement_is_always_storable() {
        let long = "東".repeat(100_000);
        let mut bad = outcome();
        bad.usage = TokenUsage { prompt: u64::MAX, ..bad.usage };
        bad.body = Some(Bytes::from_static(b"\xff\xfe"));
        bad.request_id = Some(long.clone());
        bad.service_tier = Some(long.clone().into());
        bad.failure = Some(JobFailure { code: long.clone(), message: long });
        let reason = check(&bad).unwrap_err();
        for replacement in reason.replacements(&bad) {
            assert_eq!(check(&replacement), Ok(()));
        }
        assert_eq!(check(&outcome()), Ok(()));
    }
}
