//! Batches as they are being worked on: how fast, what it cost so far, when they will be done.
//!
//! [`look`] counts the outcomes themselves. A [`Watch`] goes by the sums that are kept beside them: a
//! few rows a batch, however many outcomes it has. In a store that keeps them apart they may be short
//! of what a killed worker had recorded last, never more; so where they lack some of a batch that is
//! done, or in which nothing ends any more, its outcomes are counted, once.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::deployments::Deployment;
use super::forecast::{self, Done, Forecast, LOOK_BACK_S, Rate, Whole};
use super::usage::Cost;
use control::batches::Standing;
use domain::job::BatchId;
use domain::outcome::Usage;
use domain::prices::Prices;
use store::{Batch, BatchState, Running, Store, StoreError, Totals};

/// One batch at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Live {
    #[serde(flatten)]
    pub standing: Standing,
    /// Absent if nothing ended in the last minutes.
    pub rate: Option<Rate>,
    /// So far, in the currency of the price table.
    pub cost: Cost,
    /// Only of a batch that is being worked on.
    pub forecast: Option<Forecast>,
}

/// Which batches are looked at.
#[derive(Debug, Clone, Copy)]
pub enum Which<'a> {
    All,
    /// So many of them.
    Newest(usize),
    /// None, if it does not exist.
    One(&'a BatchId),
}

/// What figures are told by, besides the store.
#[derive(Debug, Clone, Copy)]
pub struct By<'a> {
    /// Those of the workers alive.
    pub deployments: &'a [Deployment],
    pub prices: &'a Prices,
}

/// Looks at batches, newest first.
///
/// # Errors
/// What the store said.
pub async fn look(
    store: &dyn Store,
    which: Which<'_>,
    by: By<'_>,
) -> Result<Vec<Live>, StoreError> {
    let mut all = Vec::new();
    for batch in batches(store, which).await? {
        let running = running(store, &batch).await?;
        let totals = store.totals(&batch.id).await?;
        let budget = store.budget(&batch.id).await?;
        let standing = Standing::new(&batch, budget, totals);
        all.push(Live::new(&batch, standing, &running, by, Timestamp::now()));
    }
    Ok(all)
}

/// A batch whose outcomes were counted, as it and its running sums were then.
#[derive(Debug, PartialEq)]
struct Counted {
    batch: Batch,
    running: Totals,
    totals: Totals,
}

/// Looks again and again, at a price that allows it.
#[derive(Debug, Default)]
pub struct Watch {
    counted: HashMap<BatchId, Counted>,
}

impl Watch {
    /// As [`look`], by the running sums.
    ///
    /// # Errors
    /// What the store said.
    pub async fn look(
        &mut self,
        store: &dyn Store,
        which: Which<'_>,
        by: By<'_>,
    ) -> Result<Vec<Live>, StoreError> {
        let mut all = Vec::new();
        for batch in batches(store, which).await? {
            let running = running(store, &batch).await?;
            let mut totals = running.totals();
            let is_over = batch.state == BatchState::Done || is_quiet(&running);
            if is_over && totals.ended() < batch.jobs {
                totals = self.count(store, &batch, totals).await?;
            }
            let budget = store.budget(&batch.id).await?;
            let standing = Standing::new(&batch, budget, totals);
            all.push(Live::new(&batch, standing, &running, by, Timestamp::now()));
        }
        Ok(all)
    }

    async fn count(
        &mut self,
        store: &dyn Store,
        batch: &Batch,
        running: Totals,
    ) -> Result<Totals, StoreError> {
        if let Some(known) = self.counted.get(&batch.id)
            && (&known.batch, &known.running) == (batch, &running)
        {
            return Ok(known.totals.clone());
        }
        let totals = store.totals(&batch.id).await?;
        let counted = Counted { batch: batch.clone(), running, totals: totals.clone() };
        self.counted.insert(batch.id.clone(), counted);
        Ok(totals)
    }
}

/// Whether nothing ended in this minute and the one before.
fn is_quiet(running: &Running) -> bool {
    let before = Timestamp::now().as_second().div_euclid(60) - 1;
    running.minutes.range(before..).next().is_none()
}

async fn batches(store: &dyn Store, which: Which<'_>) -> Result<Vec<Batch>, StoreError> {
    let mut batches = match which {
        Which::One(id) => store.batch(id).await?.into_iter().collect(),
        Which::All | Which::Newest(_) => store.batches().await?,
    };
    if let Which::Newest(most) = which {
        batches.truncate(most);
    }
    Ok(batches)
}

async fn running(store: &dyn Store, batch: &Batch) -> Result<Running, StoreError> {
    // A minute more, so that it is seen whether the batch began before the window.
    let since = Timestamp::now() - SignedDuration::from_secs(LOOK_BACK_S + 60);
    store.running(&batch.id, since).await
}

impl Live {
    fn new(
        batch: &Batch,
        standing: Standing,
        running: &Running,
        By { deployments, prices }: By<'_>,
        now: Timestamp,
    ) -> Self {
        let (cost, done) = spent(running, &standing.totals, prices);
        let whole = Whole { jobs: batch.jobs, prompt_tokens: batch.prompt_tokens };
        let forecast = (standing.state == BatchState::Running).then(|| {
            let stretches = forecast::stretches(&running.minutes, now, LOOK_BACK_S);
            forecast::forecast(&done, &whole, &stretches, quota(deployments))
        });
        let rate = forecast::rate(&running.minutes, now);
        Self { standing, rate, cost, forecast }
    }
}

/// What the workers may use of all deployments together, in tokens a minute; unknown if that of one
/// is, or if nobody works.
fn quota(deployments: &[Deployment]) -> Option<f64> {
    let of_one = |d: &Deployment| d.tpm.map(|tpm| tpm as f64 * d.share.min(1.0));
    let sum: Option<f64> = deployments.iter().map(of_one).sum();
    sum.filter(|tpm| *tpm > 0.0)
}

/// The cost by the running sums. Tokens that they lack have no price, as they have no model.
fn spent(running: &Running, totals: &Totals, prices: &Prices) -> (Cost, Done) {
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
        let answers = Usage { prompt: 0, cached: 0, ..usage };
        let prompts = Usage { completion: 0, reasoning: 0, ..usage };
        let add = |sum: Option<f64>, usage| Some(sum? + price(usage)?.amount());
        (prompt_cost, completion_cost) = (add(prompt_cost, prompts), add(completion_cost, answers));
    }
    cost.unpriced_tokens += totals.usage.total().saturating_sub(running.totals().usage.total());
    let done = Done {
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
    use domain::outcome::Ending;
    use store::{Minute, RunningSum};

    fn totals(jobs: u64) -> Totals {
        let usage = Usage { prompt: 1_000 * jobs, cached: 0, completion: 500 * jobs, reasoning: 0 };
        Totals { endings: [(Ending::Succeeded, jobs)].into(), usage, attempts: jobs }
    }

    fn running(model: &str) -> Running {
        let sum = |deployment: &str, tier: Option<&str>| RunningSum {
            deployment: deployment.into(),
            model: model.into(),
            service_tier: tier.map(Into::into),
            totals: totals(500),
        };
        let minute = Minute { jobs: 100, tokens: 150_000, from_second: 0 };
        Running {
            sums: vec![sum("a", None), sum("b", Some("flex"))],
            minutes: (0..10).map(|minute_of| (minute_of, minute)).collect::<BTreeMap<_, _>>(),
        }
    }

    fn live(model: &str, state: BatchState) -> Live {
        let prices = Prices::load(None).unwrap();
        let batch = Batch {
            id: "night".parse().unwrap(),
            state,
            reason: None,
            jobs: 2_000,
            prompt_tokens: 2_000_000,
            inputs: Vec::new(),
            created_at: Timestamp::UNIX_EPOCH,
        };
        let now = Timestamp::from_second(600).unwrap();
        let deployments = [Deployment { tpm: Some(200_000), share: 1.0, ..Deployment::default() }];
        let standing = Standing::new(&batch, None, totals(1_000));
        Live::new(
            &batch,
            standing,
            &running(model),
            By { deployments: &deployments, prices: &prices },
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
        let Forecast { eta, cost } = live.forecast.unwrap();
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
