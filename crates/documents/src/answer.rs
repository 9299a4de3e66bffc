//! The text of an outcome's answer, or the reason why there is none.

use domain::outcome::Outcome;
use report::results::answer_text;

/// Returns the answer's text; `None` also for a refusal or a tool call.
pub fn text(outcome: &Outcome) -> Option<String> {
    outcome.body.as_deref().and_then(answer_text).filter(|text| !text.trim().is_empty())
}

/// Returns in one line why an outcome has no answer.
pub fn failure(outcome: &Outcome) -> Box<str> {
    match &outcome.failure {
        Some(failure) => format!("{}: {}", failure.code, failure.message).into(),
        None => outcome.ending.as_str().into(),
    }
}
