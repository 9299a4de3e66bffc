//! How many workers are of use now: what a scaler asks, so that it stops where more workers would only
//! wait for each other.
//!
//! [`useful`] is the formula; here is where its figures come from: the queue's depth, what is pending in
//! the batches that may go, and what the workers' words tell of their calls and quotas. Nothing is kept
//! between two looks, so any server, and `status`, tell the same number.

pub mod useful;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use admission::snapshot::Standing;
use control::batches::is_finished;
use domain::share::Word;
use queue::Depth;
use store::{Batch, BatchState, Store, StoreError};
use useful::{Facts, Feed, Settings, Useful};

/// Queues over AMQP are counted no further: beyond, the batches say how much there is.
const COUNTED_AT_MOST: u64 = 1_000;

/// Who has a demand of this part of the quota waits for it.
const ALL_OF_IT: f64 = 0.999;

/// Jobs that have no outcome yet, by what may become of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Of batches that may go.
    pub runnable: u64,
    /// Of batches that are paused, by people or for want of budget.
    pub held: u64,
    /// Of cancelled batches: they end without a call, but a worker has to come to them.
    pub cancelled: u64,
}

/// The number, and what it came from.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Replicas {
    /// How many workers are of use now.
    pub useful_replicas: u64,
    pub why: useful::Why,
    /// Workers alive.
    pub workers: u64,
    /// Jobs that could go now, those in work included.
    pub jobs: u64,
    /// Calls a minute that one worker can make, as far as it was measured.
    pub worker_calls: Option<f64>,
    /// Calls a minute that the quotas give together; unknown if one of them is.
    pub quota_calls: Option<f64>,
}

/// Looks at the batches that are not done. Their sums may be short of what a killed worker recorded
/// last; that is a few jobs, which are counted as waiting.
///
/// # Errors
/// What the store said.
pub async fn backlog(store: &dyn Store, batches: &[Batch]) -> Result<Backlog, StoreError> {
    let now = Timestamp::now();
    let mut backlog = Backlog::default();
    for batch in batches.iter().filter(|batch| batch.state != BatchState::Done) {
        let totals = store.running(&batch.id, now).await?.totals();
        if is_finished(batch, &totals) {
            continue;
        }
        let pending = batch.jobs.saturating_sub(totals.ended());
        match batch.state {
            BatchState::Enqueuing | BatchState::Running => backlog.runnable += pending,
            BatchState::Paused => backlog.held += pending,
            BatchState::Cancelled => backlog.cancelled += pending,
            BatchState::Done => {}
        }
    }
    Ok(backlog)
}

/// The number of now.
pub fn now(depth: Depth, backlog: Backlog, words: &[Word], settings: &Settings) -> Replicas {
    let feeds = feeds(words);
    let workers = words.iter().filter(|word| word.is_worker()).count() as u64;
    let facts = Facts { jobs: jobs(depth, backlog), workers, feeds };
    let Useful { replicas, why } = useful::useful(&facts, settings);
    let measured: Vec<f64> = facts.feeds.iter().filter_map(|feed| feed.worker_calls).collect();
    let quotas: Option<f64> = facts.feeds.iter().map(|feed| feed.quota_calls).sum();
    Replicas {
        useful_replicas: replicas,
        why,
        workers,
        jobs: facts.jobs,
        worker_calls: (!measured.is_empty()).then(|| measured.iter().sum()),
        quota_calls: quotas.filter(|_| !facts.feeds.is_empty()),
    }
}

/// Jobs in the queue that could go now.
fn jobs(depth: Depth, backlog: Backlog) -> u64 {
    let ready = depth.active + depth.locked;
    let all = ready + depth.scheduled;
    // Jobs of held batches lie in the queue too; a worker that met them has put them off.
    let free = all.saturating_sub(backlog.held + backlog.cancelled).min(ready);
    let jobs = if all >= COUNTED_AT_MOST { free.max(backlog.runnable) } else { free };
    // Counts of the queue and of the store are not of the same moment: one worker settles doubts.
    let doubtful = ready > 0 && backlog.runnable + backlog.cancelled > 0;
    jobs.max(u64::from(doubtful))
}

/// What a worker's word has of one deployment.
#[derive(Deserialize)]
struct Told {
    quota: String,
    standing: Standing,
}

/// One quota, added up over the workers that use it.
#[derive(Default)]
struct Sum {
    workers: f64,
    measured: f64,
    worker_calls: f64,
    call_tokens: f64,
    tpm: Option<u64>,
    rpm: Option<u64>,
    reserve: f64,
    has_room: bool,
}

/// The quotas by the workers' words. Words of other versions, which tell otherwise, are left out.
fn feeds(words: &[Word]) -> Vec<Feed> {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    for word in words {
        let told = serde_json::from_value::<Vec<Told>>(word.about["deployments"].clone());
        for Told { quota, standing } in told.unwrap_or_default() {
            // What is out of the pool calls for nobody.
            if standing.state.retired.is_none() {
                sums.entry(quota).or_default().add(&standing);
            }
        }
    }
    sums.into_values().map(|sum| sum.feed()).collect()
}

impl Sum {
    fn add(&mut self, Standing { demand, state }: &Standing) {
        self.workers += 1.0;
        self.has_room |= *demand < ALL_OF_IT;
        self.tpm = state.tpm_learnt.or(state.tpm_configured).or(self.tpm);
        self.rpm = state.rpm.or(self.rpm);
        self.reserve = state.reserve;
        if let (Some(seconds), Some(tokens)) = (state.call_seconds, state.call_tokens) {
            self.measured += 1.0;
            // A clock has no time for shorter ones.
            self.worker_calls += state.concurrency as f64 * 60.0 / seconds.max(1e-3);
            self.call_tokens += tokens;
        }
    }

    fn feed(&self) -> Feed {
        let mean = |sum: f64| (self.measured > 0.0).then(|| sum / self.measured);
        let of_quota = |limit: Option<u64>| limit.map(|limit| limit as f64 * (1.0 - self.reserve));
        let by_tokens = of_quota(self.tpm).zip(mean(self.call_tokens));
        let by_tokens = by_tokens.map(|(tokens, a_call)| tokens / a_call.max(1.0));
        let quota_calls = match (by_tokens, of_quota(self.rpm)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let is_used_up = self.workers > 0.0 && !self.has_room;
        Feed { worker_calls: mean(self.worker_calls), quota_calls, is_used_up }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::useful::Why;
    use super::*;

    fn word(changes: &Value) -> Word {
        let mut standing = json!({
            "demand": 0.2, "name": "sim", "tier": 0, "service": "standard",
            "tpm_configured": 60_000, "tpm_learnt": null, "rpm": null, "charge_factor": 1.0,
            "reserve": 0.0, "share": 0.5, "used_last_minute": 0, "waiting": 100,
            "in_flight": 2, "calls_allowed": 8, "concurrency": 8, "call_seconds": 2.0,
            "call_tokens": 100.0, "utilisation": null, "paused_ms": null,
            "breaker": "closed", "breaker_why": null, "retired": null,
        });
        for (key, value) in changes.as_object().unwrap() {
            standing[key] = value.clone();
        }
        let deployments = json!([{ "name": "sim", "quota": "h/sim", "standing": standing }]);
        let part = domain::share::Part { demand: 1.0, claim: 0.5 };
        let parts = [("h/sim".to_owned(), part)].into();
        Word { instance: Uuid::nil(), beat: 1, parts, about: json!({ "deployments": deployments }) }
    }

    #[test]
    fn a_workers_rate_is_its_calls_in_flight_over_their_time_and_the_quota_is_in_calls_too() {
        let told = feeds(&[word(&json!({})), word(&json!({ "call_seconds": 4.0 }))]);
        // 240 and 120 calls a minute; 60,000 tokens are 600 calls of 100.
        let expected =
            Feed { worker_calls: Some(180.0), quota_calls: Some(600.0), is_used_up: false };
        assert_eq!(told, [expected]);
        let by_requests = feeds(&[word(&json!({ "rpm": 300, "reserve": 0.5 }))]);
        assert_eq!(
            by_requests[0].quota_calls,
            Some(150.0),
            "the lesser of both, what is left to us"
        );
        let gone = feeds(&[word(&json!({ "retired": "401" }))]);
        assert_eq!(gone, []);
    }

    #[test]
    fn a_word_of_an_older_version_says_nothing_of_rates() {
        let mut old = word(&json!({}));
        let standing = old.about["deployments"][0]["standing"].as_object_mut().unwrap();
        for key in ["concurrency", "call_seconds", "call_tokens"] {
            standing.remove(key);
        }
        assert_eq!(feeds(&[old])[0].worker_calls, None);
    }

    #[test]
    fn jobs_that_may_not_go_call_for_nobody() {
        let depth = |active, scheduled| Depth { active, scheduled, ..Depth::default() };
        let backlog = |runnable, held, cancelled| Backlog { runnable, held, cancelled };
        for (what, depth, backlog, expected) in [
            ("an empty queue", depth(0, 0), backlog(0, 0, 0), 0),
            ("jobs of no batch that is known", depth(5, 0), backlog(0, 0, 0), 5),
            ("paused, and no worker met them", depth(50, 0), backlog(0, 50, 0), 0),
            ("paused, and put off by workers", depth(0, 50), backlog(0, 50, 0), 0),
            ("some may go, others were put off", depth(10, 50), backlog(10, 50, 0), 10),
            ("cancelled ones want one to end them", depth(50, 0), backlog(0, 0, 50), 1),
            ("in doubt, one looks", depth(3, 0), backlog(1, 5, 0), 1),
            ("to be tried again later", depth(0, 7), backlog(7, 0, 0), 0),
            ("more than is counted", depth(1_000, 0), backlog(80_000, 0, 0), 80_000),
            ("more paused ones than are counted", depth(1_000, 0), backlog(0, 80_000, 0), 0),
        ] {
            assert_eq!(jobs(depth, backlog), expected, "{what}");
        }
    }

    #[test]
    fn a_queue_that_nobody_works_on_calls_for_one_and_a_measured_one_for_as_many_as_are_fed() {
        let depth = Depth { active: 900, ..Depth::default() };
        let backlog = Backlog { runnable: 900, ..Backlog::default() };
        let settings = Settings { backlog_minutes: 1.0, ..Settings::default() };
        let seen = now(depth, backlog, &[], &settings);
        assert_eq!((seen.useful_replicas, seen.why), (1, Why::NotMeasured));
        assert_eq!((seen.worker_calls, seen.quota_calls), (None, None));
        // 240 calls a minute each, of 600 that the quota gives: the third has half its work.
        let seen = now(depth, backlog, &[word(&json!({}))], &settings);
        assert_eq!((seen.useful_replicas, seen.why), (3, Why::Quota));
        assert_eq!((seen.worker_calls, seen.quota_calls), (Some(240.0), Some(600.0)));
    }
}
