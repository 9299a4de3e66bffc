//! Why jobs have no answer: a line a cause, with examples of what was said.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use domain::outcome::{Ending, Failure};

/// Causes that are told apart; what comes later counts among the rest.
const MAX_CAUSES: usize = 100;

/// Messages that are kept of each.
const EXAMPLES: usize = 3;

/// Characters of a message.
const LONGEST_EXAMPLE: usize = 300;

/// What many causes are counted under.
const REST: &str = "(other causes)";

/// Jobs that ended alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cause {
    pub ending: Ending,
    /// The service's error code, or ours; empty if there is none.
    pub code: String,
    pub jobs: u64,
    /// Messages of the service or ours, each once.
    pub examples: BTreeSet<String>,
}

#[derive(Default)]
pub(super) struct Causes(BTreeMap<(Ending, String), (u64, BTreeSet<String>)>);

impl Causes {
    pub(super) fn add(&mut self, ending: Ending, failure: Option<&Failure>) {
        let code = failure.map(|failure| failure.code.clone()).unwrap_or_default();
        let mut key = (ending, code);
        if self.0.len() >= MAX_CAUSES && !self.0.contains_key(&key) {
            key.1 = REST.to_owned();
        }
        let (jobs, examples) = self.0.entry(key).or_default();
        *jobs += 1;
        if let Some(failure) = failure
            && examples.len() < EXAMPLES
            && !failure.message.is_empty()
        {
            examples.insert(failure.message.chars().take(LONGEST_EXAMPLE).collect());
        }
    }

    /// The most frequent first.
    pub(super) fn finish(self) -> Vec<Cause> {
        let cause = |((ending, code), (jobs, examples))| Cause { ending, code, jobs, examples };
        let mut causes: Vec<Cause> = self.0.into_iter().map(cause).collect();
        causes.sort_by_key(|cause| std::cmp::Reverse(cause.jobs));
        causes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_counted_in_bounded_room() {
        let mut causes = Causes::default();
        for n in 0..1_000 {
            let failure = Failure { code: format!("code-{n}"), message: "長".repeat(1_000) };
            causes.add(Ending::Failed, Some(&failure));
            let filtered = Failure { code: "content_filter".into(), message: format!("no {n}") };
            causes.add(Ending::Failed, Some(&filtered));
        }
        causes.add(Ending::Cancelled, None);
        let causes = causes.finish();
        assert_eq!((causes[0].code.as_str(), causes[0].jobs), ("content_filter", 1_000));
        assert_eq!((causes[1].code.as_str(), causes[0].examples.len()), (REST, EXAMPLES));
        assert!(causes.len() <= MAX_CAUSES + 2);
        assert_eq!(causes.iter().map(|cause| cause.jobs).sum::<u64>(), 2_001);
    }
}
