//! History of a job, carried from one queue message to the next.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::amendment::Amendment;
use super::trace::{self, TraceParent};

/// Characters kept of an error: enough to recognise it, small enough for every message.
const LONGEST_ERROR: usize = 300;

/// History of a job before its present message.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct JobHistory {
    /// Calls that counted as attempts, in earlier deliveries.
    #[serde(rename = "tries", skip_serializing_if = "is_zero")]
    pub attempts: u32,
    /// Calls that were throttled (429), since it was last enqueued anew and as far as no delivery
    /// was lost with its worker.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled: u32,
    /// Times that it was deferred to the queue, since it was last enqueued anew.
    #[serde(rename = "postponed", skip_serializing_if = "is_zero")]
    pub deferred: u32,
    /// Times that it was resubmitted from the dead letters.
    #[serde(skip_serializing_if = "is_zero")]
    pub resubmitted: u32,
    /// Time at which the job's first message was enqueued. Every delivery carries it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_enqueued: Option<Timestamp>,
    /// Error of the last attempt, in short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Trace that it belongs to, and the step in it that sent or handed out this message.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "trace::read_leniently")]
    pub traceparent: Option<TraceParent>,
    /// Amendment from when it was resubmitted from the dead letters.
    #[serde(skip_serializing_if = "Amendment::is_empty")]
    pub amendment: Amendment,
}

impl JobHistory {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Records that the job goes back to the queue after so many attempts, the last of which ended
    /// with this error.
    pub fn defer(&mut self, attempts: u32, last_error: Option<&str>) {
        self.attempts = attempts;
        self.deferred += 1;
        self.last_error = last_error.map(|text| text.chars().take(LONGEST_ERROR).collect());
    }

    /// Resets the job for new attempts; its origin stays known.
    pub fn resubmit(&mut self) {
        self.resubmitted += 1;
        (self.attempts, self.throttled, self.deferred, self.last_error) = (0, 0, 0, None);
    }
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_job_adds_nothing_to_its_message() {
        assert_eq!(serde_json::to_string(&JobHistory::default()).unwrap(), "{}");
    }

    #[test]
    fn a_trace_that_can_not_be_read_is_none_and_no_fault() {
        for text in [r#"{"traceparent":"x"}"#, r#"{"traceparent":7}"#, r#"{"traceparent":null}"#] {
            assert_eq!(serde_json::from_str::<JobHistory>(text).unwrap(), JobHistory::default());
        }
    }

    #[test]
    fn a_resubmitted_job_has_all_its_tries_again_and_keeps_its_lineage() {
        let enqueued: Timestamp = "2026-11-23T16:00:00Z".parse().unwrap();
        let mut history = JobHistory { first_enqueued: Some(enqueued), ..JobHistory::default() };
        history.throttled = 2;
        history.defer(3, Some(&"長".repeat(1_000)));
        assert_eq!(history.last_error.as_ref().map(|text| text.chars().count()), Some(300));
        history.resubmit();
        let expected =
            JobHistory { resubmitted: 1, first_enqueued: Some(enqueued), ..JobHistory::default() };
        assert_eq!(history, expected);
    }
}
