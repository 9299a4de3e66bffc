//! Useful number of workers now, for an autoscaler: beyond it, more workers would only wait for
//! each other.
//!
//! [`formula`] computes it; this module gathers its inputs: the queue's depth, the pending jobs of
//! runnable batches, and the calls and quotas in the workers' heartbeats. No state is kept between
//! two requests, so every server, and `status`, return the same number.

pub mod formula;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use control::batches::is_finished;
use domain::deployment::DemandSnapshot;
use domain::heartbeat::Heartbeat;
use formula::{QuotaCapacity, ReplicaCount, ScalingInputs, ScalingSettings};
use queue::QueueDepth;
use store::{Batch, BatchState, Store, StoreError};

/// Message count at which queues over AMQP stop counting; beyond it the batches' counts are used.
const QUEUE_COUNT_CAP: u64 = 1_000;

/// Demand, as a part of the quota, from which on a worker waits for quota.
const FULL_DEMAND: f64 = 0.999;

/// Jobs without an outcome, by the state of their batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backlog {
    /// Jobs of batches that may run.
    pub runnable: u64,
    /// Jobs of batches paused by people or for lack of budget.
    pub paused: u64,
    /// Jobs of cancelled batches: they end without a call, but a worker has to pull them.
    pub cancelled: u64,
}

/// Useful number of workers, with its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ScalingAdvice {
    /// Useful number of workers now.
    pub useful_replicas: u64,
    pub why: formula::ScalingReason,
    /// Workers alive.
    pub workers: u64,
    /// Jobs that could run now, including those in flight.
    pub jobs: u64,
    /// Calls a minute that one worker can make; `None` if not measured.
    pub worker_calls: Option<f64>,
    /// Calls a minute that the quotas allow together; `None` if one of them is unknown.
    pub quota_calls: Option<f64>,
}

/// Counts the pending jobs of batches that are not done. Running totals may lack what a killed
/// worker recorded last: a few jobs, which count as pending.
///
/// # Errors
/// If the store fails.
pub async fn backlog(store: &dyn Store, batches: &[Batch]) -> Result<Backlog, StoreError> {
    let now = Timestamp::now();
    let mut backlog = Backlog::default();
    for batch in batches.iter().filter(|batch| batch.state != BatchState::Done) {
        let totals = store.running_totals(&batch.id, now).await?.totals();
        if is_finished(batch, &totals) {
            continue;
        }
        let pending = batch.jobs.saturating_sub(totals.ended());
        match batch.state {
            BatchState::Enqueuing | BatchState::Running => backlog.runnable += pending,
            BatchState::Paused => backlog.paused += pending,
            BatchState::Cancelled => backlog.cancelled += pending,
            BatchState::Done => {}
        }
    }
    Ok(backlog)
}

/// Returns the useful number of workers now.
pub fn advise(
    depth: QueueDepth,
    backlog: Backlog,
    heartbeats: &[Heartbeat],
    settings: &ScalingSettings,
) -> ScalingAdvice {
    let feeds = quota_capacities(heartbeats);
    let workers = heartbeats.iter().filter(|heartbeat| heartbeat.is_worker()).count() as u64;
    let facts = ScalingInputs { jobs: runnable_jobs(depth, backlog), workers, quotas: feeds };
    let ReplicaCount { replicas, why } = formula::useful_replicas(&facts, settings);
    let measured: Vec<f64> = facts.quotas.iter().filter_map(|feed| feed.worker_calls).collect();
    let quotas: Option<f64> = facts.quotas.iter().map(|feed| feed.quota_calls).sum();
    ScalingAdvice {
        useful_replicas: replicas,
        why,
        workers,
        jobs: facts.jobs,
        worker_calls: (!measured.is_empty()).then(|| measured.iter().sum()),
        quota_calls: quotas.filter(|_| !facts.quotas.is_empty()),
    }
}

/// Returns the jobs in the queue that could run now.
fn runnable_jobs(depth: QueueDepth, backlog: Backlog) -> u64 {
    let ready = depth.active + depth.locked;
    let all = ready + depth.scheduled;
    // Jobs of paused batches are in the queue too; a worker that pulled them has deferred them.
    let free = all.saturating_sub(backlog.paused + backlog.cancelled).min(ready);
    let jobs = if all >= QUEUE_COUNT_CAP { free.max(backlog.runnable) } else { free };
    // Queue and store were not counted at the same moment: in doubt, one worker finds out.
    let doubtful = ready > 0 && backlog.runnable + backlog.cancelled > 0;
    jobs.max(u64::from(doubtful))
}

/// One quota, summed over the workers that use it.
#[derive(Default)]
struct QuotaSum {
    workers: f64,
    measured: f64,
    worker_calls: f64,
    call_tokens: f64,
    tpm: Option<u64>,
    rpm: Option<u64>,
    reserve: f64,
    has_room: bool,
}

/// Returns the quotas in the workers' heartbeats.
fn quota_capacities(heartbeats: &[Heartbeat]) -> Vec<QuotaCapacity> {
    let mut sums: BTreeMap<&str, QuotaSum> = BTreeMap::new();
    for report in heartbeats.iter().flat_map(|heartbeat| &heartbeat.status.deployments) {
        // A deployment retired from the pool needs no workers.
        if report.snapshot.state.retired.is_none() {
            sums.entry(&report.quota).or_default().add(&report.snapshot);
        }
    }
    sums.into_values().map(|sum| sum.capacity()).collect()
}

impl QuotaSum {
    fn add(&mut self, DemandSnapshot { demand, state }: &DemandSnapshot) {
        self.workers += 1.0;
        self.has_room |= *demand < FULL_DEMAND;
        self.tpm = state.tpm_learnt.or(state.tpm_configured).or(self.tpm);
        self.rpm = state.rpm.or(self.rpm);
        self.reserve = state.reserve;
        if let (Some(seconds), Some(tokens)) = (state.call_seconds, state.call_tokens) {
            self.measured += 1.0;
            // Guards the division: a clock may measure 0.
            self.worker_calls += state.concurrency as f64 * 60.0 / seconds.max(1e-3);
            self.call_tokens += tokens;
        }
    }

    fn capacity(&self) -> QuotaCapacity {
        let mean = |sum: f64| (self.measured > 0.0).then(|| sum / self.measured);
        let of_quota = |limit: Option<u64>| limit.map(|limit| limit as f64 * (1.0 - self.reserve));
        let by_tokens = of_quota(self.tpm).zip(mean(self.call_tokens));
        let by_tokens = by_tokens.map(|(tokens, a_call)| tokens / a_call.max(1.0));
        let quota_calls = match (by_tokens, of_quota(self.rpm)) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let is_used_up = self.workers > 0.0 && !self.has_room;
        QuotaCapacity {
            worker_calls: mean(self.worker_calls),
            quota_calls,
            is_exhausted: is_used_up,
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::deployment::DeploymentSnapshot;
    use domain::heartbeat::{DeploymentReport, QuotaClaim, WorkerStatus};

    use super::formula::ScalingReason;
    use super::*;

    /// Changes one value of a snapshot.
    type Change = fn(&mut DeploymentSnapshot);

    fn heartbeat(change: Change) -> Heartbeat {
        let mut state = DeploymentSnapshot {
            tpm_configured: Some(60_000),
            concurrency: 8,
            call_seconds: Some(2.0),
            call_tokens: Some(100.0),
            ..DeploymentSnapshot::default()
        };
        change(&mut state);
        let snapshot = DemandSnapshot { demand: 0.2, state };
        let sim = DeploymentReport { name: "sim".into(), quota: "h/sim".into(), snapshot };
        let claim = QuotaClaim { demand: 1.0, claim: 0.5 };
        Heartbeat {
            quota_claims: [(sim.quota.clone(), claim)].into(),
            status: WorkerStatus { deployments: vec![sim], ..WorkerStatus::default() },
            ..Heartbeat::default()
        }
    }

    #[test]
    fn a_workers_rate_is_its_calls_in_flight_over_their_time_and_the_quota_is_in_calls_too() {
        let told =
            quota_capacities(&[heartbeat(|_| ()), heartbeat(|s| s.call_seconds = Some(4.0))]);
        // 240 and 120 calls a minute; 60,000 tokens are 600 calls of 100.
        let expected = QuotaCapacity {
            worker_calls: Some(180.0),
            quota_calls: Some(600.0),
            is_exhausted: false,
        };
        assert_eq!(told, [expected]);
        let by_requests = quota_capacities(&[heartbeat(|s| (s.rpm, s.reserve) = (Some(300), 0.5))]);
        assert_eq!(
            by_requests[0].quota_calls,
            Some(150.0),
            "the lesser of both, what is left to us"
        );
        let gone = quota_capacities(&[heartbeat(|s| s.retired = Some("401".to_owned()))]);
        assert_eq!(gone, []);
    }

    #[test]
    fn a_heartbeat_of_an_older_version_says_nothing_of_rates() {
        let old: Change = |s| (s.concurrency, s.call_seconds, s.call_tokens) = (0, None, None);
        assert_eq!(quota_capacities(&[heartbeat(old)])[0].worker_calls, None);
    }

    #[test]
    fn jobs_that_may_not_go_call_for_nobody() {
        let depth = |active, scheduled| QueueDepth { active, scheduled, ..QueueDepth::default() };
        let backlog = |runnable, held, cancelled| Backlog { runnable, paused: held, cancelled };
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
            assert_eq!(runnable_jobs(depth, backlog), expected, "{what}");
        }
    }

    #[test]
    fn a_queue_that_nobody_works_on_calls_for_one_and_a_measured_one_for_as_many_as_are_fed() {
        let depth = QueueDepth { active: 900, ..QueueDepth::default() };
        let backlog = Backlog { runnable: 900, ..Backlog::default() };
        let settings = ScalingSettings { backlog_minutes: 1.0, ..ScalingSettings::default() };
        let seen = advise(depth, backlog, &[], &settings);
        assert_eq!((seen.useful_replicas, seen.why), (1, ScalingReason::NotMeasured));
        assert_eq!((seen.worker_calls, seen.quota_calls), (None, None));
        // 240 calls a minute each, of 600 that the quota gives: the third has half its work.
        let seen = advise(depth, backlog, &[heartbeat(|_| ())], &settings);
        assert_eq!((seen.useful_replicas, seen.why), (3, ScalingReason::Quota));
        assert_eq!((seen.worker_calls, seen.quota_calls), (Some(240.0), Some(600.0)));
    }
}
