//! What an outcome says: the text of its answer, or why there is none.

use domain::outcome::Outcome;
use report::results::answer_text;

/// The answer's text; `None` also where a refusal or a tool call stands in its place.
pub fn text(outcome: &Outcome) -> Option<String> {
    outcome.body.as_deref().and_then(answer_text).filter(|text| !text.trim().is_empty())
}

/// Why an outcome has no answer, in one line.
pub fn failure(outcome: &Outcome) -> Box<str> {
    match &outcome.failure {
        Some(failure) => format!("{}: {}", failure.code, failure.message).into(),
        None => outcome.ending.as_str().into(),
    }
}
