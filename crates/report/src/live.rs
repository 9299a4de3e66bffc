//! Live status of batches: rate, cost so far, forecast.
//!
//! [`snapshot`] counts the outcomes themselves. A [`LiveWatcher`] reads the running totals kept
//! beside them: a few rows a batch, however many outcomes it has. A store that keeps them
//! separately may lack what a killed worker recorded last, but never has more; so if they fall
//! short for a batch that is done, or in which nothing ends any more, its outcomes are counted,
//! once.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::deployments::DeploymentStatus;
use super::forecast::{self, BatchForecast, BatchProgress, BatchRate, EnqueuedTotals, LOOK_BACK_S};
use super::usage::Cost;
use control::batches::BatchStatus;
use domain::job::BatchId;
use domain::outcome::TokenUsage;
use domain::prices::Prices;
use store::{Batch, BatchState, BatchTotals, RunningTotals, Store, StoreError};

/// Status of one batch at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LiveStatus {
    #[serde(flatten)]
    pub status: BatchStatus,
    /// Absent if nothing ended in the last minutes.
    pub rate: Option<BatchRate>,
    /// So far, in the currency of the price table.
    pub cost: Cost,
    /// Only for a running batch.
    pub forecast: Option<BatchForecast>,
}

/// Batches to report.
#[derive(Debug, Clone, Copy)]
pub enum BatchFilter<'a> {
    All,
    /// At most this many.
    Newest(usize),
    /// This one; none if it does not exist.
    One(&'a BatchId),
}

/// Inputs of the figures besides the store.
#[derive(Debug, Clone, Copy)]
pub struct LiveInputs<'a> {
    /// As reported by the live workers.
    pub deployments: &'a [DeploymentStatus],
    pub prices: &'a Prices,
}

/// Returns the status of batches, newest first.
///
/// # Errors
/// If the store fails.
pub async fn snapshot(
    store: &dyn Store,
    which: BatchFilter<'_>,
    by: LiveInputs<'_>,
) -> Result<Vec<LiveStatus>, StoreError> {
    let mut all = Vec::new();
    for batch in batches(store, which).await? {
        let running = running(store, &batch).await?;
        let totals = store.totals(&batch.id).await?;
        let budget = store.budget(&batch.id).await?;
        let status = BatchStatus::new(&batch, budget, totals);
        all.push(LiveStatus::new(&batch, status, &running, by, Timestamp::now()));
    }
    Ok(all)
}

/// Counted totals of a batch, with the batch and its running totals at that time.
#[derive(Debug, PartialEq)]
struct CountedBatch {
    batch: Batch,
    running: BatchTotals,
    totals: BatchTotals,
}

/// Poller of batch status, at low cost to the store.
#[derive(Debug, Default)]
pub struct LiveWatcher {
    counted: HashMap<BatchId, CountedBatch>,
}

impl LiveWatcher {
    /// Does the same as [`snapshot`], from the running totals.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn snapshot(
        &mut self,
        store: &dyn Store,
        which: BatchFilter<'_>,
        by: LiveInputs<'_>,
    ) -> Result<Vec<LiveStatus>, StoreError> {
        let mut all = Vec::new();
        for batch in batches(store, which).await? {
            let running = running(store, &batch).await?;
            let mut totals = running.totals();
            let is_over = batch.state == BatchState::Done || is_quiet(&running);
            if is_over && totals.ended() < batch.jobs {
                totals = self.count(store, &batch, totals).await?;
            }
            let budget = store.budget(&batch.id).await?;
            let status = BatchStatus::new(&batch, budget, totals);
            all.push(LiveStatus::new(&batch, status, &running, by, Timestamp::now()));
        }
        Ok(all)
    }

    async fn count(
        &mut self,
        store: &dyn Store,
        batch: &Batch,
        running: BatchTotals,
    ) -> Result<BatchTotals, StoreError> {
        if let Some(known) = self.counted.get(&batch.id)
            && (&known.batch, &known.running) == (batch, &running)
        {
            return Ok(known.totals.clone());
        }
        let totals = store.totals(&batch.id).await?;
        let counted = CountedBatch { batch: batch.clone(), running, totals: totals.clone() };
        self.counted.insert(batch.id.clone(), counted);
        Ok(totals)
    }
}

/// Returns whether nothing ended in this minute and the one before.
fn is_quiet(running: &RunningTotals) -> bool {
    let before = Timestamp::now().as_second().div_euclid(60) - 1;
    running.minutes.range(before..).next().is_none()
}

async fn batches(store: &dyn Store, which: BatchFilter<'_>) -> Result<Vec<Batch>, StoreError> {
    let mut batches = match which {
        BatchFilter::One(id) => store.batch(id).await?.into_iter().collect(),
        BatchFilter::All | BatchFilter::Newest(_) => store.batches().await?,
    };
    if let BatchFilter::Newest(most) = which {
        batches.truncate(most);
    }
    Ok(batches)
}

async fn running(store: &dyn Store, batch: &Batch) -> Result<RunningTotals, StoreError> {
    // One minute more, to see whether the batch began before the window.
    let since = Timestamp::now() - SignedDuration::from_secs(LOOK_BACK_S + 60);
    store.running_totals(&batch.id, since).await
}

impl LiveStatus {
    fn new(
        batch: &Batch,
        status: BatchStatus,
        running: &RunningTotals,
        LiveInputs { deployments, prices }: LiveInputs<'_>,
        now: Timestamp,
    ) -> Self {
        let (mut cost, done) = spent(running, &status.totals, prices);
        if batch.id.is_simulated() {
            cost = Cost::default();
        }
        let whole = EnqueuedTotals { jobs: batch.jobs, prompt_tokens: batch.prompt_tokens };
        let is_known = status.state == BatchState::Running && batch.is_counted();
        let forecast = is_known.then(|| {
            let intervals = forecast::intervals(&running.minutes, now, LOOK_BACK_S);
            forecast::forecast(&done, &whole, &intervals, usable_tpm(deployments))
        });
        let rate = forecast::rate(&running.minutes, now);
        Self { status, rate, cost, forecast }
    }
}

/// Sums what the workers may use of all deployments, in tokens a minute; `None` if one quota is
/// unknown or no worker is alive.
fn usable_tpm(deployments: &[DeploymentStatus]) -> Option<f64> {
    let of_one = |d: &DeploymentStatus| d.tpm.map(|tpm| tpm as f64 * d.share.min(1.0));
    let sum: Option<f64> = deployments.iter().map(of_one).sum();
    sum.filter(|tpm| *tpm > 0.0)
}

/// Returns the cost by the running totals. Tokens missing there have no model, hence no price.
fn spent(running: &RunningTotals, totals: &BatchTotals, prices: &Prices) -> (Cost, BatchProgress) {
    let mut cost = Cost::default();
    let (mut prompt_cost, mut completion_cost) = (Some(0.0), Some(0.0));
    for sum in &running.sums {
        let usage = sum.totals.usage;
        let price =
            |usage| prices.cost(&sum.model, usage, sum.service_tier.as_deref() == Some("flex"));
        if usage.total() == 0 {
            continue;
        }
        cost.add(price(usage), usage.total());
        let answers = TokenUsage { prompt: 0, cached: 0, ..usage };
        let prompts = TokenUsage { completion: 0, reasoning: 0, ..usage };
        let add = |sum: Option<f64>, usage| Some(sum? + price(usage)?.amount());
        (prompt_cost, completion_cost) = (add(prompt_cost, prompts), add(completion_cost, answers));
    }
    cost.unpriced_tokens += totals.usage.total().saturating_sub(running.totals().usage.total());
    let done = BatchProgress {
        jobs: totals.ended(),
        prompt_tokens: totals.usage.prompt,
        completion_tokens: totals.usage.completion,
        prompt_cost,
        completion_cost,
    };
    (cost, done)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use domain::outcome::OutcomeStatus;
    use store::BatchSenders;
    use store::{DeploymentTotals, MinuteTotals};

    fn totals(jobs: u64) -> BatchTotals {
        let usage =
            TokenUsage { prompt: 1_000 * jobs, completion: 500 * jobs, ..TokenUsage::default() };
        BatchTotals {
            endings: [(OutcomeStatus::Succeeded, jobs)].into(),
            usage,
            attempts: jobs,
            ..BatchTotals::default()
        }
    }

    fn running(model: &str) -> RunningTotals {
        let sum = |deployment: &str, tier: Option<&str>| DeploymentTotals {
            deployment: deployment.into(),
            model: model.into(),
            service_tier: tier.map(Into::into),
            totals: totals(500),
        };
        let minute = MinuteTotals { jobs: 100, tokens: 150_000, from_second: 0 };
        RunningTotals {
            sums: vec![sum("a", None), sum("b", Some("flex"))],
            minutes: (0..10).map(|minute_of| (minute_of, minute)).collect::<BTreeMap<_, _>>(),
        }
    }

    fn live(model: &str, state: BatchState) -> LiveStatus {
        let prices = Prices::load(None).unwrap();
        let batch = Batch {
            id: "night".parse().unwrap(),
            state,
            reason: None,
            jobs: 2_000,
            prompt_tokens: 2_000_000,
            inputs: Vec::new(),
            senders: BatchSenders::One,
            created_at: Timestamp::UNIX_EPOCH,
        };
        let now = Timestamp::from_second(600).unwrap();
        let deployments =
            [DeploymentStatus { tpm: Some(200_000), share: 1.0, ..DeploymentStatus::default() }];
        let standing = BatchStatus::new(&batch, None, totals(1_000));
        LiveStatus::new(
            &batch,
            standing,
            &running(model),
            LiveInputs { deployments: &deployments, prices: &prices },
            now,
        )
    }

    #[test]
    fn a_batch_that_is_worked_on_tells_its_pace_its_cost_and_its_end() {
        let live = live("gpt-4.1-mini", BatchState::Running);
        let rate = live.rate.unwrap();
        assert!((rate.tokens_per_minute - 150_000.0).abs() < 1.0, "{rate:?}");
        // 500 jobs cost 0.2 + 0.4, and half of it on the flex tier.
        assert_eq!(live.cost.known.to_string(), "0.9000");
        let BatchForecast { eta, cost } = live.forecast.unwrap();
        let (eta, cost) = (eta.unwrap().seconds.likely, cost.unwrap().likely);
        assert!((eta - 600.0).abs() < 1.0 && (cost - 1.8).abs() < 1e-9, "{eta} {cost}");
    }

    #[test]
    fn an_unknown_price_is_told_as_unknown() {
        let live = live("my-own-model", BatchState::Running);
        assert_eq!(live.cost.unpriced_tokens, 1_500_000);
        let told = serde_json::to_value(&live).unwrap();
        assert!(told["cost"].is_null() && told["forecast"]["cost"].is_null(), "{told}");
    }

    #[test]
    fn a_paused_batch_has_no_end_to_tell() {
        assert_eq!(live("gpt-4.1-mini", BatchState::Paused).forecast, None);
    }

    #[test]
    fn what_the_running_sums_lack_has_no_price() {
        let prices = Prices::load(None).unwrap();
        let (cost, _) = spent(&running("gpt-4.1-mini"), &totals(1_001), &prices);
        assert_eq!(cost.unpriced_tokens, 1_500);
    }
}
