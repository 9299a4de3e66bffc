//! Failures of one batch as they are recorded: when most jobs fail, the rest need not be paid for.
//!
//! Pure. A wrong template or a mistyped setting fails every job alike, and a million lines would be
//! asked before anybody looks. So a batch is paused if its first jobs all failed by one cause, or if
//! too many of the last ones failed. The count begins anew when it is resumed.

use std::collections::{HashMap, VecDeque};

use domain::outcome::{Outcome, OutcomeStatus};

/// Jobs that must all have failed by one cause at the begin of a batch.
const FIRST: usize = 50;

/// Jobs of which a share may fail later.
const RECENT: usize = 200;

/// Causes of which an example is kept.
const KEPT_CAUSES: usize = 16;

/// Characters kept of an example's message.
const KEPT_WORDS: usize = 200;

/// Counts how the last jobs of a batch ended.
pub(super) struct FailureWatch {
    /// Share of failed jobs above which the batch is paused; 1.0: never.
    most: f64,
    /// Cause of each failed job, `None` of those that succeeded.
    recent: VecDeque<Option<Box<str>>>,
    failed: usize,
    /// The first job of each cause, and what was said to it.
    examples: HashMap<Box<str>, String>,
    is_early: bool,
}

impl FailureWatch {
    pub(super) fn new(most: f64) -> Self {
        Self { most, recent: VecDeque::new(), failed: 0, examples: HashMap::new(), is_early: true }
    }

    /// Forgets all ends.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.most);
    }

    /// Records how a job ended; returns why its batch should be paused, if it should. Then the count
    /// begins anew.
    pub(super) fn observe(&mut self, outcome: &Outcome) -> Option<String> {
        let cause = match outcome.ending {
            _ if self.most >= 1.0 => return None,
            OutcomeStatus::Succeeded => None,
            OutcomeStatus::Failed | OutcomeStatus::Dead => Some(self.cause_of(outcome)),
            OutcomeStatus::Cancelled | OutcomeStatus::Expired => return None,
        };
        self.failed += usize::from(cause.is_some());
        self.recent.push_back(cause);
        if self.recent.len() > RECENT {
            self.is_early = false;
            let oldest = self.recent.pop_front().flatten();
            self.failed -= usize::from(oldest.is_some());
        }
        let why = self.alarm()?;
        self.reset();
        Some(why)
    }

    fn cause_of(&mut self, outcome: &Outcome) -> Box<str> {
        let failure = outcome.failure.as_ref();
        let cause: Box<str> = failure.map_or("unknown", |failure| &failure.code).into();
        if self.examples.len() < KEPT_CAUSES && !self.examples.contains_key(&cause) {
            let words = failure.map_or("", |failure| &failure.message);
            let words: String = words.chars().take(KEPT_WORDS).collect();
            self.examples.insert(cause.clone(), format!("'{}': {words}", outcome.custom_id));
        }
        cause
    }

    fn alarm(&self) -> Option<String> {
        let ended = self.recent.len();
        let is_full = ended == RECENT && self.failed as f64 > self.most * RECENT as f64;
        let is_start = self.is_early && ended == FIRST && self.failed == FIRST;
        if !is_full && !is_start {
            return None;
        }
        let mut counts = HashMap::<&str, usize>::new();
        for cause in self.recent.iter().flatten() {
            *counts.entry(cause).or_default() += 1;
        }
        let (cause, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        if is_start && !is_full && count < FIRST {
            return None;
        }
        let which = if is_full { "last" } else { "first" };
        let example = self.examples.get(cause).map(|said| format!(", such as job {said}"));
        Some(format!(
            "{} of its {which} {ended} jobs failed, {count} of them with {cause}{}",
            self.failed,
            example.unwrap_or_default()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::job::{BatchId, JobId};
    use domain::outcome::{JobFailure, TokenUsage};

    fn ended(n: usize, cause: Option<&str>) -> Outcome {
        let batch_id: BatchId = "b".parse().unwrap();
        let custom_id = format!("job-{n}");
        let failure =
            |code: &str| JobFailure { code: code.into(), message: "no such field".into() };
        Outcome {
            job_id: JobId::new(&batch_id, &custom_id),
            batch_id,
            custom_id,
            position: n as u64,
            digest: 0,
            ending: if cause.is_some() { OutcomeStatus::Failed } else { OutcomeStatus::Succeeded },
            status_code: None,
            request_id: None,
            body: None,
            failure: cause.map(failure),
            usage: TokenUsage::default(),
            finish: None,
            flaw: None,
            service_tier: None,
            attempts: 1,
            throttled: 0,
            deployment: String::new(),
            model: "m".into(),
            latency_ms: 1,
            finished_at: "2026-12-01T00:00:00Z".parse().unwrap(),
            deadline: None,
            metadata: None,
        }
    }

    /// Records jobs until an alarm; returns their number and its words.
    fn alarm_of(
        watch: &mut FailureWatch,
        cause: impl Fn(usize) -> Option<&'static str>,
    ) -> Option<(usize, String)> {
        (0..2_000).find_map(|n| watch.observe(&ended(n, cause(n))).map(|why| (n + 1, why)))
    }

    #[test]
    fn a_batch_that_fails_from_its_first_job_on_is_seen_after_fifty() {
        let mut watch = FailureWatch::new(0.5);
        let (jobs, why) = alarm_of(&mut watch, |_| Some("invalid_request")).unwrap();
        assert_eq!(jobs, 50);
        let expected = "50 of its first 50 jobs failed, 50 of them with invalid_request, such as job \
                        'job-0': no such field";
        assert_eq!(why, expected);
        let (jobs, _) = alarm_of(&mut watch, |_| Some("invalid_request")).unwrap();
        assert_eq!(jobs, 50, "resumed, it has as many again");
    }

    #[test]
    fn later_more_than_the_share_of_the_last_two_hundred_is_too_much() {
        let mut watch = FailureWatch::new(0.5);
        let turned = |n| (n >= 1_000).then_some("gone");
        let (jobs, why) = alarm_of(&mut watch, turned).unwrap();
        assert_eq!(jobs, 1_101);
        assert!(why.starts_with("101 of its last 200 jobs failed, 101 of them with gone"), "{why}");
        assert_eq!(alarm_of(&mut watch, |n| (n % 2 == 0).then_some("half")), None);
        let mixed = |n| Some(if n % 2 == 0 { "a" } else { "b" });
        let (jobs, _) = alarm_of(&mut FailureWatch::new(0.5), mixed).unwrap();
        assert_eq!(jobs, 200, "two causes at the start may be chance");
    }

    #[test]
    fn a_share_of_one_never_pauses() {
        assert_eq!(alarm_of(&mut FailureWatch::new(1.0), |_| Some("x")), None);
    }
}
