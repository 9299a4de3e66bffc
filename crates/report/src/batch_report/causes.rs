//! Failure causes: one entry per ending and error code, with example messages.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use domain::outcome::{JobFailure, OutcomeStatus};

/// Distinct causes counted; any further ones go under [`REST`].
const MAX_CAUSES: usize = 100;

/// Example messages kept per cause.
const EXAMPLES_PER_CAUSE: usize = 3;

/// Characters kept of a message.
const MAX_EXAMPLE_CHARS: usize = 300;

/// Code for causes beyond [`MAX_CAUSES`].
const REST: &str = "(other causes)";

/// Jobs with the same ending and error code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureCause {
    pub ending: OutcomeStatus,
    /// The service's error code, or ours; empty if there is none.
    pub code: String,
    pub jobs: u64,
    /// Messages of the service or ours, each once.
    pub examples: BTreeSet<String>,
}

#[derive(Default)]
pub(super) struct CauseTally(BTreeMap<(OutcomeStatus, String), (u64, BTreeSet<String>)>);

impl CauseTally {
    pub(super) fn add(&mut self, ending: OutcomeStatus, failure: Option<&JobFailure>) {
        let code = failure.map(|failure| failure.code.clone()).unwrap_or_default();
        let mut key = (ending, code);
        if self.0.len() >= MAX_CAUSES && !self.0.contains_key(&key) {
            key.1 = REST.to_owned();
        }
        let (jobs, examples) = self.0.entry(key).or_default();
        *jobs += 1;
        if let Some(failure) = failure
            && examples.len() < EXAMPLES_PER_CAUSE
            && !failure.message.is_empty()
        {
            examples.insert(failure.message.chars().take(MAX_EXAMPLE_CHARS).collect());
        }
    }

    /// Returns the causes, most frequent first.
    pub(super) fn finish(self) -> Vec<FailureCause> {
        let cause =
            |((ending, code), (jobs, examples))| FailureCause { ending, code, jobs, examples };
        let mut causes: Vec<FailureCause> = self.0.into_iter().map(cause).collect();
        causes.sort_by_key(|cause| std::cmp::Reverse(cause.jobs));
        causes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_counted_in_bounded_room() {
        let mut causes = CauseTally::default();
        for n in 0..1_000 {
            let failure = JobFailure { code: format!("code-{n}"), message: "長".repeat(1_000) };
            causes.add(OutcomeStatus::Failed, Some(&failure));
            let filtered = JobFailure { code: "content_filter".into(), message: format!("no {n}") };
            causes.add(OutcomeStatus::Failed, Some(&filtered));
        }
        causes.add(OutcomeStatus::Cancelled, None);
        let causes = causes.finish();
        assert_eq!((causes[0].code.as_str(), causes[0].jobs), ("content_filter", 1_000));
        assert_eq!((causes[1].code.as_str(), causes[0].examples.len()), (REST, EXAMPLES_PER_CAUSE));
        assert!(causes.len() <= MAX_CAUSES + 2);
        assert_eq!(causes.iter().map(|cause| cause.jobs).sum::<u64>(), 2_001);
    }
}
