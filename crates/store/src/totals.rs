//! Sums over a batch's outcomes: by ending, by deployment, by minute.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use domain::outcome::{AnswerFinish, Outcome, OutcomeStatus, TokenUsage};

/// Sums over a batch's outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct BatchTotals {
    /// Outcomes by ending; endings that did not occur are absent.
    pub endings: BTreeMap<OutcomeStatus, u64>,
    #[serde(flatten)]
    pub usage: TokenUsage,
    /// HTTP calls that counted as attempts.
    pub attempts: u64,
    #[serde(flatten)]
    pub finishes: FinishCounts,
}

impl BatchTotals {
    pub fn of(&self, ending: OutcomeStatus) -> u64 {
        self.endings.get(&ending).copied().unwrap_or(0)
    }

    /// Jobs that have ended.
    pub fn ended(&self) -> u64 {
        self.endings.values().sum()
    }
}

impl AddAssign<&Self> for BatchTotals {
    fn add_assign(&mut self, other: &Self) {
        for (ending, jobs) in &other.endings {
            *self.endings.entry(*ending).or_default() += jobs;
        }
        self.usage += other.usage;
        self.attempts += other.attempts;
        self.finishes += other.finishes;
    }
}

/// Answers that are not whole, which count as succeeded all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FinishCounts {
    /// Cut off: more room would have made them longer.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub truncated: u64,
    /// Cut off or left out by a content filter.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub filtered: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl FinishCounts {
    /// Counts one outcome, if it stands as an answer. A withdrawn one has no ending.
    pub fn of(ending: Option<OutcomeStatus>, finish: Option<AnswerFinish>) -> Self {
        let finish = finish.filter(|_| ending == Some(OutcomeStatus::Succeeded));
        Self {
            truncated: u64::from(finish.is_some_and(AnswerFinish::is_truncated)),
            filtered: u64::from(finish == Some(AnswerFinish::ContentFilter)),
        }
    }

    /// Returns whether every answer is whole.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for FinishCounts {
    fn add_assign(&mut self, other: Self) {
        self.truncated += other.truncated;
        self.filtered += other.filtered;
    }
}

/// Totals of a batch so far, from the sums that are kept beside its outcomes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunningTotals {
    pub sums: Vec<DeploymentTotals>,
    /// Jobs by the Unix minute in which they ended. Minutes without any are absent.
    pub minutes: BTreeMap<i64, MinuteTotals>,
}

/// Totals of one deployment in a batch, with one model on one service tier.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DeploymentTotals {
    pub deployment: String,
    pub model: String,
    pub service_tier: Option<Box<str>>,
    pub totals: BatchTotals,
}

/// Jobs and tokens that ended in one minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MinuteTotals {
    pub jobs: u64,
    /// Prompt and completion.
    pub tokens: u64,
    /// Second of the minute in which the first job ended.
    pub from_second: u8,
}

impl Default for MinuteTotals {
    fn default() -> Self {
        Self { jobs: 0, tokens: 0, from_second: 59 }
    }
}

impl MinuteTotals {
    /// Returns an outcome's Unix minute and what it adds to it.
    pub fn of(outcome: &Outcome) -> (i64, Self) {
        let second = outcome.finished_at.as_second();
        let from_second = u8::try_from(second.rem_euclid(60)).unwrap_or_default();
        (second.div_euclid(60), Self { jobs: 1, tokens: outcome.usage.total(), from_second })
    }
}

impl AddAssign for MinuteTotals {
    fn add_assign(&mut self, other: Self) {
        self.jobs += other.jobs;
        self.tokens += other.tokens;
        self.from_second = self.from_second.min(other.from_second);
    }
}

impl RunningTotals {
    /// Adds up all sums.
    pub fn totals(&self) -> BatchTotals {
        self.sums.iter().fold(BatchTotals::default(), |mut all, sum| {
            all += &sum.totals;
            all
        })
    }
}
