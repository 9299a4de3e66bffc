//! A batch's account for the morning after: what went in and what became of it, what it took and
//! cost, how fast it went, what failed and why.
//!
//! Counted from the outcomes themselves, streamed: memory grows with the number of deployments,
//! causes and points of time, all of them bounded, never with the number of outcomes. [`page`] shows
//! it as HTML; its JSON is the same figures.
//!
//! What no store keeps is not told: how much of a quota the service had booked at any moment (tokens
//! are told when their job ended), and 429s of deliveries that were lost with their worker.

mod balance;
mod causes;
pub mod page;
mod series;
mod spread;
mod words;

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use jiff::Timestamp;
use serde::Serialize;

pub use balance::{Balance, Fault};
pub use causes::Cause;
pub use series::{Point, Series};
pub use spread::{Bar, Spread};
pub use words::Language;

use domain::job::BatchId;
use domain::outcome::{Ending, Usage};
use domain::prices::Prices;
use queue::Depth;
use store::{Batch, BatchState, Brief, Store, StoreError, Totals};

use super::usage::Cost;
use causes::Causes;
use control::batches::is_finished;
use series::SeriesBuilder;
use spread::Values;

/// Everything that is told of a batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Account {
    pub batch: BatchId,
    pub state: BatchState,
    pub created_at: Timestamp,
    /// When this was counted.
    pub counted_at: Timestamp,
    /// When its first and its last outcome ended; none if nothing has.
    pub first_ended_at: Option<Timestamp>,
    pub last_ended_at: Option<Timestamp>,
    pub promptmill: &'static str,
    pub balance: Balance,
    #[serde(flatten)]
    pub usage: Usage,
    pub calls: Calls,
    pub money: Bill,
    /// By deployment, model and service tier.
    pub lines: Vec<Line>,
    pub over_time: Series,
    /// Of the calls that ended a job, in milliseconds.
    pub latency_ms: Option<Spread>,
    /// Of the jobs that were answered.
    pub prompt_tokens: Option<Spread>,
    pub completion_tokens: Option<Spread>,
    /// Jobs by how many calls they took.
    pub jobs_by_calls: BTreeMap<u32, u64>,
    /// The most frequent first.
    pub failures: Vec<Cause>,
    pub deadlines: Deadlines,
}

/// HTTP calls and their troubles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Calls {
    /// That counted as tries.
    pub tries: u64,
    /// Tries beyond the first of each job's life.
    pub retries: u64,
    pub jobs_retried: u64,
    /// Refused for want of quota (429); no tries.
    pub throttled: u64,
    pub jobs_throttled: u64,
    /// Lives of dead jobs that were worked again; what they took is in all sums.
    pub withdrawn: u64,
}

/// What was paid, as far as prices are known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bill {
    pub currency: String,
    /// The date of the price table.
    pub prices_of: String,
    /// Absent if a part of it is unknown.
    pub cost: Cost,
    /// Tokens of models that the price table does not have.
    pub unpriced_tokens: u64,
}

/// One deployment's part.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Line {
    /// Empty of jobs that ended without the answer of one.
    pub deployment: String,
    pub model: String,
    pub service_tier: Option<Box<str>>,
    pub jobs: u64,
    pub tries: u64,
    #[serde(flatten)]
    pub usage: Usage,
    pub cost: Cost,
    pub latency_ms: Option<Spread>,
    /// Its tokens a minute when this was counted; unknown if no worker says so and none is configured.
    pub tpm: Option<u64>,
}

/// Jobs that were wanted by a time. Those that have not ended are not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Deadlines {
    pub met: u64,
    /// Ended later, or expired before they could be called for.
    pub missed: u64,
    /// How much later the latest of them ended, in seconds.
    pub latest_by_seconds: u64,
}

/// What is to be known besides the outcomes.
pub struct Beside<'a> {
    pub prices: &'a Prices,
    /// What the queue held *before* the outcomes were read: a job that has none later was in it.
    pub queued: Option<Depth>,
    /// Tokens a minute by deployment.
    pub tpm: &'a BTreeMap<String, u64>,
}

/// Counts a batch; `None` if it does not exist.
///
/// # Errors
/// What the store said.
pub async fn count(
    store: &dyn Store,
    id: &BatchId,
    beside: &Beside<'_>,
) -> Result<Option<Account>, StoreError> {
    let Some(batch) = store.batch(id).await? else { return Ok(None) };
    // Before the outcomes: it can't know of any that these lack.
    let running = store.running(id, Timestamp::MAX).await?.totals();
    let mut counting = Counting::default();
    let mut briefs = store.briefs(id).await?;
    while let Some(brief) = briefs.try_next().await? {
        counting.add(brief, beside.prices);
    }
    Ok(Some(counting.account(&batch, &running, beside)))
}

/// Deployment, model, service tier.
type LineKey = (String, String, Option<Box<str>>);

#[derive(Default)]
struct LineCount {
    jobs: u64,
    tries: u64,
    usage: Usage,
    cost: Cost,
    latency: Values,
}

/// An account that is being counted.
#[derive(Default)]
struct Counting {
    totals: Totals,
    calls: Calls,
    cost: Cost,
    lines: BTreeMap<LineKey, LineCount>,
    series: SeriesBuilder,
    latency: Values,
    prompts: Values,
    completions: Values,
    jobs_by_calls: BTreeMap<u32, u64>,
    causes: Causes,
    deadlines: Deadlines,
    ended: Option<(Timestamp, Timestamp)>,
}

impl Counting {
    fn add(&mut self, brief: Brief, prices: &Prices) {
        self.series.add(&brief);
        self.calls.add(&brief);
        self.totals.attempts += u64::from(brief.attempts);
        self.totals.usage += brief.usage;
        let (first, last) = self.ended.unwrap_or((brief.finished_at, brief.finished_at));
        self.ended = Some((first.min(brief.finished_at), last.max(brief.finished_at)));
        if let Some(ending) = brief.ending {
            *self.totals.endings.entry(ending).or_default() += 1;
            *self.jobs_by_calls.entry(brief.attempts).or_default() += 1;
            self.deadlines.add(&brief, ending);
            if ending != Ending::Succeeded {
                self.causes.add(ending, brief.failure.as_ref());
            }
            if ending == Ending::Succeeded {
                self.prompts.add(brief.usage.prompt);
                self.completions.add(brief.usage.completion);
            }
        }
        let was_called = !brief.deployment.is_empty() && brief.ending.is_some();
        let is_flex = brief.service_tier.as_deref() == Some("flex");
        let cost = prices.cost(&brief.model, brief.usage, is_flex);
        self.cost.add(cost, brief.usage.total());
        let line =
            self.lines.entry((brief.deployment, brief.model, brief.service_tier)).or_default();
        line.jobs += u64::from(brief.ending.is_some());
        line.tries += u64::from(brief.attempts);
        line.usage += brief.usage;
        line.cost.add(cost, brief.usage.total());
        if was_called {
            self.latency.add(brief.latency_ms);
            line.latency.add(brief.latency_ms);
        }
    }

    fn account(self, batch: &Batch, running: &Totals, beside: &Beside<'_>) -> Account {
        let line = |((deployment, model, service_tier), line): (LineKey, LineCount)| Line {
            tpm: beside.tpm.get(&deployment).copied(),
            deployment,
            model,
            service_tier,
            jobs: line.jobs,
            tries: line.tries,
            usage: line.usage,
            cost: line.cost,
            latency_ms: line.latency.spread(),
        };
        let is_done = is_finished(batch, &self.totals);
        let balance = Balance::new(batch, &self.totals, running, beside.queued);
        Account {
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
            money: Bill {
                currency: beside.prices.currency.clone(),
                prices_of: beside.prices.date.clone(),
                cost: self.cost,
                unpriced_tokens: self.cost.unpriced_tokens,
            },
            lines: self.lines.into_iter().map(line).collect(),
            over_time: self.series.finish(),
            latency_ms: self.latency.spread(),
            prompt_tokens: self.prompts.spread(),
            completion_tokens: self.completions.spread(),
            jobs_by_calls: self.jobs_by_calls,
            failures: self.causes.finish(),
            deadlines: self.deadlines,
        }
    }
}

impl Calls {
    fn add(&mut self, brief: &Brief) {
        let retries = u64::from(brief.attempts.saturating_sub(1));
        self.tries += u64::from(brief.attempts);
        self.retries += retries;
        self.jobs_retried += u64::from(retries > 0);
        self.throttled += u64::from(brief.throttled);
        self.jobs_throttled += u64::from(brief.throttled > 0);
        self.withdrawn += u64::from(brief.ending.is_none());
    }
}

impl Deadlines {
    fn add(&mut self, brief: &Brief, ending: Ending) {
        let Some(deadline) = brief.deadline else { return };
        let late_by = brief.finished_at.duration_since(deadline);
        if ending != Ending::Expired && !late_by.is_positive() {
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
    use domain::outcome::Failure;

    pub(super) fn brief(n: u64) -> Brief {
        Brief {
            ending: Some(Ending::Succeeded),
            failure: None,
            usage: Usage { prompt: 100, cached: 10, completion: n % 50, reasoning: 0 },
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

    pub fn account(briefs: Vec<Brief>, jobs: u64, queued: u64) -> Account {
        let prices = Prices::load(None).unwrap();
        let mut counting = Counting::default();
        briefs.into_iter().for_each(|brief| counting.add(brief, &prices));
        let batch = Batch {
            id: "night".parse().unwrap(),
            state: BatchState::Running,
            reason: None,
            jobs,
            prompt_tokens: 0,
            inputs: Vec::new(),
            created_at: Timestamp::from_second(1_764_000_000).unwrap(),
        };
        let tpm = BTreeMap::from([("d0".to_owned(), 10_000), ("d1".to_owned(), 5_000)]);
        let queued = Some(Depth { active: queued, ..Depth::default() });
        let running = counting.totals.clone();
        counting.account(&batch, &running, &Beside { prices: &prices, queued, tpm: &tpm })
    }

    #[test]
    fn every_figure_is_of_the_outcomes() {
        let mut briefs: Vec<_> = (0..100).map(brief).collect();
        let failure =
            |message: &str| Failure { code: "content_filter".into(), message: message.into() };
        briefs[3] =
            Brief { ending: Some(Ending::Failed), failure: Some(failure("no")), ..brief(3) };
        briefs[4] = Brief { attempts: 3, throttled: 2, ..brief(4) };
        let deadline = Some(brief(5).finished_at);
        briefs[5].deadline = deadline;
        briefs[9].deadline = deadline;
        briefs.push(Brief { ending: None, attempts: 5, ..brief(100) });
        let account = account(briefs, 100, 0);
        assert_eq!(account.state, BatchState::Done);
        assert_eq!((account.balance.ended, account.balance.pending), (100, 0));
        assert_eq!(account.balance.faults, []);
        let calls = Calls {
            tries: 107,
            retries: 6,
            jobs_retried: 2,
            throttled: 2,
            jobs_throttled: 1,
            withdrawn: 1,
        };
        assert_eq!(account.calls, calls);
        assert_eq!(account.usage.prompt, 10_100, "the life that was withdrawn was paid as well");
        let deadlines = Deadlines { met: 1, missed: 1, latest_by_seconds: 4 };
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
