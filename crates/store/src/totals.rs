//! Sums over a batch's outcomes: by ending, by deployment, by minute.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use domain::outcome::{Outcome, OutcomeStatus, TokenUsage};

/// Sums over a batch's outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct BatchTotals {
    /// Outcomes by ending; endings that did not occur are absent.
    pub endings: BTreeMap<OutcomeStatus, u64>,
    #[serde(flatten)]
    pub usage: TokenUsage,
    /// HTTP calls that counted as attempts.
    pub attempts: u64,
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
