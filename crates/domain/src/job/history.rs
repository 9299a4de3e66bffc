//! What a job has been through: carried with it from one queue message to the next.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Amendment;
use super::trace::{self, TraceParent};

/// Characters kept of an error: enough to know it by, small enough for every message.
const LONGEST_ERROR: usize = 300;

/// A job's life before its present message.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// Calls that counted as tries, in earlier deliveries.
    #[serde(skip_serializing_if = "is_zero")]
    pub tries: u32,
    /// Calls that were refused for want of quota, since it was last enqueued anew and as far as no
    /// delivery was lost with its worker.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled: u32,
    /// How often it went back to the queue to wait there, since it was last enqueued anew.
    #[serde(skip_serializing_if = "is_zero")]
    pub postponed: u32,
    /// How often it came back from the dead letters.
    #[serde(skip_serializing_if = "is_zero")]
    pub resubmitted: u32,
    /// When the job's first message was enqueued. Every delivery knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_enqueued: Option<Timestamp>,
    /// How the last try ended, in short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The trace that it belongs to, and the step in it that sent or handed out this message.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "trace::read_leniently")]
    pub traceparent: Option<TraceParent>,
    /// What was amended when it came back from the dead letters.
    #[serde(skip_serializing_if = "Amendment::is_empty")]
    pub amendment: Amendment,
}

impl History {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// After `tries` calls, of which the last one ended with this error, the job waits in the queue.
    pub fn postpone(&mut self, tries: u32, last_error: Option<&str>) {
        self.tries = tries;
        self.postponed += 1;
        self.last_error = last_error.map(|text| text.chars().take(LONGEST_ERROR).collect());
    }

    /// The job begins anew; what it was stays known.
    pub fn resubmit(&mut self) {
        self.resubmitted += 1;
        (self.tries, self.throttled, self.postponed, self.last_error) = (0, 0, 0, None);
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
        assert_eq!(serde_json::to_string(&History::default()).unwrap(), "{}");
    }

    #[test]
    fn a_trace_that_can_not_be_read_is_none_and_no_fault() {
        for text in [r#"{"traceparent":"x"}"#, r#"{"traceparent":7}"#, r#"{"traceparent":null}"#] {
            assert_eq!(serde_json::from_str::<History>(text).unwrap(), History::default());
        }
    }

    #[test]
    fn a_resubmitted_job_has_all_its_tries_again_and_keeps_its_lineage() {
        let enqueued: Timestamp = "2026-11-23T16:00:00Z".parse().unwrap();
        let mut history = History { first_enqueued: Some(enqueued), ..History::default() };
        history.throttled = 2;
        history.postpone(3, Some(&"長".repeat(1_000)));
        assert_eq!(history.last_error.as_ref().map(|text| text.chars().count()), Some(300));
        history.resubmit();
        let expected =
            History { resubmitted: 1, first_enqueued: Some(enqueued), ..History::default() };
        assert_eq!(history, expected);
    }
}
