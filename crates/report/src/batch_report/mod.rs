//! Full report on one batch: jobs in and out, tokens, cost, throughput, failures and their causes.
//!
//! Counted from the outcomes themselves, streamed: memory grows with the number of deployments,
//! causes and time points, all of them bounded, never with the number of outcomes. [`page`] renders
//! it as HTML; its JSON has the same figures.
//!
//! Not reported, since no store keeps it: how much of a quota the service had booked at any moment
//! (tokens count when their job ended), and 429s of deliveries that were lost with their worker.

mod balance;
mod causes;
mod distribution;
pub mod page;
mod page_texts;
mod series;

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::Serialize;

pub use balance::{BalanceFault, BatchBalance};
pub use causes::FailureCause;
pub use distribution::{DistributionBar, ValueDistribution};
pub use page_texts::ReportLanguage;
pub use series::{SeriesPoint, TimeSeries};

use domain::job::BatchId;
use domain::outcome::{OutcomeStatus, TokenUsage};
use domain::prices::Prices;
use queue::QueueDepth;
use store::{Batch, BatchState, BatchTotals, FinishCounts, OutcomeSummary, Store, StoreError};

use super::usage::Cost;
use causes::CauseTally;
use control::batches::is_finished;
use distribution::DistributionBuilder;
use series::SeriesBuilder;

/// All figures of one batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BatchReport {
    pub batch: BatchId,
    pub state: BatchState,
    pub created_at: Timestamp,
    /// Time of the count.
    pub counted_at: Timestamp,
    /// Times at which the first and the last outcome ended; `None` if none has.
    pub first_ended_at: Option<Timestamp>,
    pub last_ended_at: Option<Timestamp>,
    pub promptmill: &'static str,
    pub balance: BatchBalance,
    #[serde(flatten)]
    pub usage: TokenUsage,
    pub calls: CallTotals,
    pub money: BatchCost,
    /// By deployment, model and service tier.
    pub lines: Vec<DeploymentUsage>,
    pub over_time: TimeSeries,
    /// Latency of the calls that ended a job, in milliseconds.
    pub latency_ms: Option<ValueDistribution>,
    /// Tokens of the jobs that were answered.
    pub prompt_tokens: Option<ValueDistribution>,
    pub completion_tokens: Option<ValueDistribution>,
    /// Jobs by number of calls.
    pub jobs_by_calls: BTreeMap<u32, u64>,
    /// Most frequent first.
    pub failures: Vec<FailureCause>,
    pub deadlines: DeadlineStats,
}

/// HTTP calls: attempts, retries and throttling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct CallTotals {
    /// Calls that counted as attempts.
    #[serde(rename = "tries")]
    pub attempts: u64,
    /// Attempts beyond the first of each job's life.
    pub retries: u64,
    pub jobs_retried: u64,
    /// Throttled calls (429); they count as no attempt.
    pub throttled: u64,
    pub jobs_throttled: u64,
    /// Dead outcomes of jobs that were resubmitted; their usage is in all sums.
    pub withdrawn: u64,
}

/// Cost, as far as prices are known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BatchCost {
    pub currency: String,
    /// Date of the price table.
    pub prices_of: String,
    /// Null if a part of it is unknown.
    pub cost: Cost,
    /// Tokens of models that are not in the price table.
    pub unpriced_tokens: u64,
}

/// Usage of one deployment, model and service tier.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeploymentUsage {
    /// Empty for jobs that ended without an answer.
    pub deployment: String,
    pub model: String,
    pub service_tier: Option<Box<str>>,
    pub jobs: u64,
    #[serde(rename = "tries")]
    pub attempts: u64,
    #[serde(flatten)]
    pub usage: TokenUsage,
    pub cost: Cost,
    pub latency_ms: Option<ValueDistribution>,
    /// Tokens a minute at the time of the count; unknown if neither reported nor configured.
    pub tpm: Option<u64>,
}

/// Ended jobs that had a deadline. Pending ones are not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct DeadlineStats {
    pub met: u64,
    /// Ended after the deadline, or expired before a call.
    pub missed: u64,
    /// Largest delay past a deadline, in seconds.
    pub latest_by_seconds: u64,
}

/// Inputs of a report besides the outcomes.
pub struct ReportInputs<'a> {
    pub prices: &'a Prices,
    /// Queue depth *before* the outcomes were read: a job without an outcome then was in the queue.
    pub queued: Option<QueueDepth>,
    /// Tokens a minute by deployment.
    pub tpm: &'a BTreeMap<String, u64>,
}

/// Counts a batch; `None` if it does not exist.
///
/// # Errors
/// If the store fails.
pub async fn build(
    store: &dyn Store,
    id: &BatchId,
    beside: &ReportInputs<'_>,
) -> Result<Option<BatchReport>, StoreError> {
    let Some(batch) = store.batch(id).await? else { return Ok(None) };
    // Read before the outcomes: it can't count any that are missing there.
    let running = store.running_totals(id, Timestamp::MAX).await?.totals();
    let mut counting = ReportBuilder::default();
    let mut briefs = store.outcome_summaries(id).await?;
    while let Some(brief) = briefs.try_next().await? {
        counting.add(id, brief, beside.prices);
    }
    Ok(Some(counting.finish(&batch, &running, beside)))
}

/// Deployment, model, service tier.
type DeploymentUsageKey = (String, String, Option<Box<str>>);

#[derive(Default)]
struct DeploymentTally {
    jobs: u64,
    attempts: u64,
    usage: TokenUsage,
    cost: Cost,
    latency: DistributionBuilder,
}

/// Builder of a [`BatchReport`], fed one outcome at a time.
#[derive(Default)]
struct ReportBuilder {
    totals: BatchTotals,
    calls: CallTotals,
    cost: Cost,
    lines: BTreeMap<DeploymentUsageKey, DeploymentTally>,
    series: SeriesBuilder,
    latency: DistributionBuilder,
    prompts: DistributionBuilder,
    completions: DistributionBuilder,
    jobs_by_calls: BTreeMap<u32, u64>,
    causes: CauseTally,
    deadlines: DeadlineStats,
    ended: Option<(Timestamp, Timestamp)>,
}

impl ReportBuilder {
    fn add(&mut self, batch: &BatchId, brief: OutcomeSummary, prices: &Prices) {
        self.series.add(&brief);
        self.calls.add(&brief);
        self.totals.attempts += u64::from(brief.attempts);
        self.totals.usage += brief.usage;
        self.totals.finishes += FinishCounts::of(brief.ending, brief.finish);
        let (first, last) = self.ended.unwrap_or((brief.finished_at, brief.finished_at));
        self.ended = Some((first.min(brief.finished_at), last.max(brief.finished_at)));
        if let Some(ending) = brief.ending {
            *self.totals.endings.entry(ending).or_default() += 1;
            *self.jobs_by_calls.entry(brief.attempts).or_default() += 1;
            self.deadlines.add(&brief, ending);
            if ending != OutcomeStatus::Succeeded {
                self.causes.add(ending, brief.failure.as_ref());
            }
            if ending == OutcomeStatus::Succeeded {
                self.prompts.add(brief.usage.prompt);
                self.completions.add(brief.usage.completion);
            }
        }
        let was_called = !brief.deployment.is_empty() && brief.ending.is_some();
        let is_flex = brief.service_tier.as_deref() == Some("flex");
        let cost = prices.cost_in(batch, &brief.model, brief.usage, is_flex);
        self.cost.add(cost, brief.usage.total());
        let line =
            self.lines.entry((brief.deployment, brief.model, brief.service_tier)).or_default();
        line.jobs += u64::from(brief.ending.is_some());
        line.attempts += u64::from(brief.attempts);
        line.usage += brief.usage;
        line.cost.add(cost, brief.usage.total());
        if was_called {
            self.latency.add(brief.latency_ms);
            line.latency.add(brief.latency_ms);
        }
    }

    fn finish(
        self,
        batch: &Batch,
        running: &BatchTotals,
        beside: &ReportInputs<'_>,
    ) -> BatchReport {
        let line =
            |((deployment, model, service_tier), line): (DeploymentUsageKey, DeploymentTally)| {
                DeploymentUsage {
                    tpm: beside.tpm.get(&deployment).copied(),
                    deployment,
                    model,
                    service_tier,
                    jobs: line.jobs,
                    attempts: line.attempts,
                    usage: line.usage,
                    cost: line.cost,
                    latency_ms: line.latency.distribution(),
                }
            };
        let is_done = is_finished(batch, &self.totals);
        let balance = BatchBalance::new(batch, &self.totals, running, beside.queued);
        BatchReport {
            batch: batch.id.clone(),
            state: if is_done { BatchState::Done } else { batch.state },
            created_at: batch.created_at,
            counted_at: Timestamp::now(),
            first_ended_at: self.ended.map(|(first, _)| first),
            last_ended_at: self.ended.map(|(_, last)| last),
            promptmill: env!("CARGO_PKG_VERSION"),
            balance,
            usage: self.totals.usage,
            calls: self.calls,
            money: BatchCost {
                currency: beside.prices.currency.clone(),
                prices_of: beside.prices.date.clone(),
                cost: self.cost,
                unpriced_tokens: self.cost.unpriced_tokens,
            },
            lines: self.lines.into_iter().map(line).collect(),
            over_time: self.series.finish(),
            latency_ms: self.latency.distribution(),
            prompt_tokens: self.prompts.distribution(),
            completion_tokens: self.completions.distribution(),
            jobs_by_calls: self.jobs_by_calls,
            failures: self.causes.finish(),
            deadlines: self.deadlines,
        }
    }
}

impl CallTotals {
    fn add(&mut self, brief: &OutcomeSummary) {
        let retries = u64::from(brief.attempts.saturating_sub(1));
        self.attempts += u64::from(brief.attempts);
        self.retries += retries;
        self.jobs_retried += u64::from(retries > 0);
        self.throttled += u64::from(brief.throttled);
        self.jobs_throttled += u64::from(brief.throttled > 0);
        self.withdrawn += u64::from(brief.ending.is_none());
    }
}

impl DeadlineStats {
    fn add(&mut self, brief: &OutcomeSummary, ending: OutcomeStatus) {
        let Some(deadline) = brief.deadline else { return };
        let late_by = brief.finished_at.duration_since(deadline);
        if ending != OutcomeStatus::Expired && !late_by.is_positive() {
            self.met += 1;
            return;
        }
        self.missed += 1;
        let seconds = u64::try_from(late_by.as_secs()).unwrap_or(0);
        self.latest_by_seconds = self.latest_by_seconds.max(seconds);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use domain::outcome::JobFailure;
    use store::BatchSenders;

    pub(super) fn brief(n: u64) -> OutcomeSummary {
        OutcomeSummary {
            ending: Some(OutcomeStatus::Succeeded),
            failure: None,
            usage: TokenUsage {
                prompt: 100,
                cached: 10,
                completion: n % 50,
                ..TokenUsage::default()
            },
            finish: None,
            service_tier: None,
            attempts: 1,
            throttled: 0,
            deployment: format!("d{}", n % 2),
            model: "gpt-4.1-mini".into(),
            latency_ms: 500 + n,
            finished_at: Timestamp::from_second(1_764_000_000 + n as i64).unwrap(),
            deadline: None,
            metadata: None,
        }
    }

    pub fn account(briefs: Vec<OutcomeSummary>, jobs: u64, queued: u64) -> BatchReport {
        let prices = Prices::load(None).unwrap();
        let mut counting = ReportBuilder::default();
        let id: BatchId = "night".parse().unwrap();
        briefs.into_iter().for_each(|brief| counting.add(&id, brief, &prices));
        let batch = Batch {
            id,
            state: BatchState::Running,
            reason: None,
            jobs,
            prompt_tokens: 0,
            inputs: Vec::new(),
            senders: BatchSenders::One,
            created_at: Timestamp::from_second(1_764_000_000).unwrap(),
        };
        let tpm = BTreeMap::from([("d0".to_owned(), 10_000), ("d1".to_owned(), 5_000)]);
        let queued = Some(QueueDepth { active: queued, ..QueueDepth::default() });
        let running = counting.totals.clone();
        counting.finish(&batch, &running, &ReportInputs { prices: &prices, queued, tpm: &tpm })
    }

    #[test]
    fn every_figure_is_of_the_outcomes() {
        let mut briefs: Vec<_> = (0..100).map(brief).collect();
        let failure =
            |message: &str| JobFailure { code: "content_filter".into(), message: message.into() };
        briefs[3] = OutcomeSummary {
            ending: Some(OutcomeStatus::Failed),
            failure: Some(failure("no")),
            ..brief(3)
        };
        briefs[4] = OutcomeSummary { attempts: 3, throttled: 2, ..brief(4) };
        let deadline = Some(brief(5).finished_at);
        briefs[5].deadline = deadline;
        briefs[9].deadline = deadline;
        briefs.push(OutcomeSummary { ending: None, attempts: 5, ..brief(100) });
        let account = account(briefs, 100, 0);
        assert_eq!(account.state, BatchState::Done);
        assert_eq!((account.balance.ended, account.balance.pending), (100, 0));
        assert_eq!(account.balance.faults, []);
        let calls = CallTotals {
            attempts: 107,
            retries: 6,
            jobs_retried: 2,
            throttled: 2,
            jobs_throttled: 1,
            withdrawn: 1,
        };
        assert_eq!(account.calls, calls);
        assert_eq!(account.usage.prompt, 10_100, "the life that was withdrawn was paid as well");
        let deadlines = DeadlineStats { met: 1, missed: 1, latest_by_seconds: 4 };
        assert_eq!(account.deadlines, deadlines);
        assert_eq!(account.jobs_by_calls, [(1, 99), (3, 1)].into());
        assert_eq!(account.failures.len(), 1);
        assert_eq!(account.lines.iter().map(|line| line.jobs).sum::<u64>(), 100);
        assert_eq!(account.latency_ms.as_ref().unwrap().count, 100);
        let in_points: u64 = account.over_time.points.iter().map(|point| point.ended).sum();
        assert_eq!(in_points, 100);
    }

    #[test]
    fn an_empty_batch_has_an_account_too() {
        let account = account(Vec::new(), 10, 10);
        assert_eq!((account.balance.pending, account.latency_ms), (10, None));
        assert_eq!(account.balance.faults, []);
    }
}
