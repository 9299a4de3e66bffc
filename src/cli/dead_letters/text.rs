//! Dead letters as text and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::app::dead_letters::DeadLetterCause;
use crate::cli::exit::CommandError;
use crate::cli::output::{print, say};
use queue::DeadLetter;

/// Prints the causes with their counts, and an example of each.
pub(super) fn print_causes(
    causes: &BTreeMap<String, DeadLetterCause>,
    as_json: bool,
) -> Result<(), CommandError> {
    if as_json {
        let causes: Vec<_> = causes
            .iter()
            .map(|(cause, of)| json!({ "cause": cause, "count": of.count, "example": example_of(&of.example) }))
            .collect();
        return print(&json!({ "causes": causes }).to_string());
    }
    for (cause, DeadLetterCause { count, example }) in causes {
        let example = example_of(example);
        print(&format!("{count} {cause}, such as {example}"))?;
    }
    if causes.is_empty() {
        say("there are no dead letters");
    }
    Ok(())
}

fn example_of(letter: &DeadLetter) -> String {
    let who = match letter.job() {
        Some(job) => format!("{} of batch {}", job.custom_id, job.batch_id),
        None => "a message that is not a job".to_owned(),
    };
    format!("{who}: {}", letter.reason.description)
}

pub(super) fn as_json(letter: &DeadLetter) -> Value {
    let message = serde_json::from_slice::<Value>(&letter.message);
    let message = message.unwrap_or_else(|_| String::from_utf8_lossy(&letter.message).into());
    json!({
        "cause": letter.reason.reason,
        "description": letter.reason.description,
        "delivery_count": letter.delivery_count,
        "at": letter.at.to_string(),
        "message": message,
    })
}
