//! Dead letters: those that a person means, and their causes.

use std::collections::BTreeMap;

use domain::job::BatchId;
use intake::dead_letters::{self, DeadLetterError};
use queue::{DeadLetter, Queue};

/// Filter of dead letters; all given conditions must match.
#[derive(Debug, Clone, Default)]
pub struct DeadLetterFilter {
    /// Only these custom_ids; empty: all.
    pub ids: Vec<String>,
    pub batch: Option<BatchId>,
    pub cause: Option<String>,
}

/// Count of the dead letters of one cause, and the first of them.
pub struct DeadLetterCause {
    pub count: u64,
    pub example: DeadLetter,
}

impl DeadLetterFilter {
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.batch.is_none() && self.cause.is_none()
    }

    /// Returns whether the dead letter matches. One that is no job has neither id nor batch.
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        if self.cause.as_ref().is_some_and(|cause| *cause != letter.reason.reason) {
            return false;
        }
        if self.ids.is_empty() && self.batch.is_none() {
            return true;
        }
        let Some(job) = letter.job() else { return false };
        (self.ids.is_empty() || self.ids.contains(&job.custom_id))
            && self.batch.as_ref().is_none_or(|batch| *batch == job.batch_id)
    }
}

/// Counts the matching dead letters by their cause.
///
/// # Errors
/// If the queue fails.
pub async fn count_causes(
    queue: &dyn Queue,
    filter: &DeadLetterFilter,
) -> Result<BTreeMap<String, DeadLetterCause>, DeadLetterError> {
    let mut causes: BTreeMap<String, DeadLetterCause> = BTreeMap::new();
    let count = |letter: &DeadLetter| {
        if filter.matches(letter) {
            let first = || DeadLetterCause { count: 0, example: letter.clone() };
            causes.entry(letter.reason.reason.clone()).or_insert_with(first).count += 1;
        }
    };
    dead_letters::for_each_dead_letter(queue, count).await?;
    Ok(causes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use queue::DeadLetterReason;

    #[test]
    fn a_message_that_is_no_job_is_chosen_by_its_cause_alone() {
        let letter = DeadLetter {
            number: 1,
            job_id: None,
            message: "not a job".into(),
            reason: DeadLetterReason { reason: "Invalid".into(), description: String::new() },
            delivery_count: 1,
            at: Timestamp::UNIX_EPOCH,
        };
        let by = |filter: DeadLetterFilter| filter.matches(&letter);
        assert!(by(DeadLetterFilter::default()));
        let cause =
            |cause: &str| DeadLetterFilter { cause: Some(cause.into()), ..Default::default() };
        assert!(by(cause("Invalid")) && !by(cause("RetriesExhausted")));
        assert!(!by(DeadLetterFilter { ids: vec!["a".into()], ..cause("Invalid") }));
    }
}
