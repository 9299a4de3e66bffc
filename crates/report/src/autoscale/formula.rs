//! Formula for the useful number of workers, from the backlog and the quotas.
//!
//! Pure. A worker that can make `k` calls a minute to a deployment adds `k` until the deployment's
//! quota `q` is exhausted, so `n` workers together make `r(n) = Σ min(n·k, q)`. Useful is the
//! smallest number that finishes the backlog in the set time or, if no number does, the number that
//! exhausts the last quota: each further worker would only make the others wait. `docs/scaling.md`
//! explains it.

use serde::{Deserialize, Serialize};

/// Smallest part of a worker's capacity for which one more worker is started.
const MIN_WORK_SHARE: f64 = 0.1;

/// Factor above the need up to which running workers stay: a slightly different measured rate does
/// not change their number.
const SCALE_DOWN_TOLERANCE: f64 = 1.2;

/// `[scaling]`: bounds, and the time to finish the backlog.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScalingSettings {
    /// Lower bound, even with nothing to do.
    pub min_replicas: u64,
    /// Upper bound, whatever the backlog.
    pub max_replicas: u64,
    /// Minutes within which the backlog is to be finished, if the quotas allow it.
    pub backlog_minutes: f64,
}

impl Default for ScalingSettings {
    fn default() -> Self {
        Self {
            min_replicas: 0,
            // KEDA's default.
            max_replicas: 100,
            // A container is up after one minute; ten make that worthwhile.
            backlog_minutes: 10.0,
        }
    }
}

/// One quota, over all workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuotaCapacity {
    /// Calls a minute of one worker at its full concurrency; `None` before any call was answered.
    pub worker_calls: Option<f64>,
    /// Calls a minute that the quota allows. `None` if there is none: then the workers share one
    /// worker's calls in flight.
    pub quota_calls: Option<f64>,
    /// All workers already wait for it, so one more gets nothing, whatever the formula says.
    pub is_exhausted: bool,
}

/// Inputs of the formula.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ScalingInputs {
    /// Jobs that could run now, including those in flight.
    pub jobs: u64,
    /// Workers alive.
    pub workers: u64,
    pub quotas: Vec<QuotaCapacity>,
}

/// Reason for the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScalingReason {
    /// No job could run now.
    NothingToDo,
    /// This many finish the backlog in the set time.
    Backlog,
    /// The quotas can't keep more busy.
    Quota,
    /// No call was answered yet: the workers already alive, or one to find out.
    NotMeasured,
    /// `min_replicas` or `max_replicas`.
    Bounds,
}

/// Useful number of workers now.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReplicaCount {
    pub replicas: u64,
    pub why: ScalingReason,
}

/// Returns the useful number of workers.
pub fn useful_replicas(facts: &ScalingInputs, settings: &ScalingSettings) -> ReplicaCount {
    let (wanted, why) = wanted_replicas(facts, settings.backlog_minutes);
    let replicas = wanted.max(settings.min_replicas).min(settings.max_replicas);
    ReplicaCount { replicas, why: if replicas == wanted { why } else { ScalingReason::Bounds } }
}

fn wanted_replicas(facts: &ScalingInputs, minutes: f64) -> (u64, ScalingReason) {
    if facts.jobs == 0 {
        return (0, ScalingReason::NothingToDo);
    }
    let curves: Vec<ThroughputCurve> =
        facts.quotas.iter().filter_map(|f| ThroughputCurve::of(f, facts.workers)).collect();
    let Some(last) = curves.iter().map(ThroughputCurve::replicas_at_max).max_by(f64::total_cmp)
    else {
        // Running workers will measure soon; pending jobs need at least one worker.
        return (facts.workers.clamp(1, facts.jobs.max(1)), ScalingReason::NotMeasured);
    };
    let (need, why) = match replicas_for(&curves, facts.jobs as f64 / minutes) {
        Some(need) => (need, ScalingReason::Backlog),
        None => (last, ScalingReason::Quota),
    };
    let fewest = (need - MIN_WORK_SHARE).ceil() as u64;
    let most = (need * SCALE_DOWN_TOLERANCE).ceil() as u64;
    let steady = facts.workers.max(fewest).min(most.max(fewest));
    (steady.clamp(1, facts.jobs), why)
}

/// Calls a minute by number of workers: a slope, and the maximum.
struct ThroughputCurve {
    slope: f64,
    max_calls: f64,
}

impl ThroughputCurve {
    fn of(feed: &QuotaCapacity, workers: u64) -> Option<Self> {
        let slope = feed.worker_calls.filter(|calls| *calls > 0.0)?;
        let full = feed.quota_calls.unwrap_or(slope);
        let at_work = slope * workers.max(1) as f64;
        Some(Self { slope, max_calls: if feed.is_exhausted { full.min(at_work) } else { full } })
    }

    /// Returns the number of workers that exhaust the quota.
    fn replicas_at_max(&self) -> f64 {
        self.max_calls / self.slope
    }
}

/// Returns the number of workers that make `calls` a minute together; `None` if no number does.
fn replicas_for(curves: &[ThroughputCurve], calls: f64) -> Option<f64> {
    let mut ends: Vec<&ThroughputCurve> = curves.iter().collect();
    ends.sort_by(|a, b| a.replicas_at_max().total_cmp(&b.replicas_at_max()));
    let mut full = 0.0;
    for (n, end) in ends.iter().enumerate() {
        let slope: f64 = ends[n..].iter().map(|curve| curve.slope).sum();
        let needed = (calls - full) / slope;
        if needed <= end.replicas_at_max() {
            return Some(needed);
        }
        full += end.max_calls;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A worker that makes so many calls a minute, and a quota.
    fn feed(worker: f64, quota: f64) -> QuotaCapacity {
        QuotaCapacity { worker_calls: Some(worker), quota_calls: Some(quota), is_exhausted: false }
    }

    fn facts(jobs: u64, workers: u64, feeds: &[QuotaCapacity]) -> ScalingInputs {
        ScalingInputs { jobs, workers, quotas: feeds.to_vec() }
    }

    fn number(jobs: u64, workers: u64, feeds: &[QuotaCapacity]) -> (u64, ScalingReason) {
        let ReplicaCount { replicas, why } =
            useful_replicas(&facts(jobs, workers, feeds), &ScalingSettings::default());
        (replicas, why)
    }

    #[test]
    fn the_backlog_asks_for_workers_until_the_quota_feeds_no_more() {
        // A worker makes 100 calls a minute, so 1,000 in the ten minutes.
        let one = [feed(100.0, 450.0)];
        for (jobs, workers, expected) in [
            (0, 3, (0, ScalingReason::NothingToDo)),
            (1, 0, (1, ScalingReason::Backlog)),
            (900, 1, (1, ScalingReason::Backlog)),
            (2_500, 1, (3, ScalingReason::Backlog)),
            (4_500, 1, (5, ScalingReason::Backlog)),
            (1_000_000, 1, (5, ScalingReason::Quota)),
            // One more than needed may stay, two more go.
            (1_000_000, 6, (6, ScalingReason::Quota)),
            (1_000_000, 7, (6, ScalingReason::Quota)),
        ] {
            assert_eq!(number(jobs, workers, &one), expected, "{jobs} jobs, {workers} workers");
        }
    }

    #[test]
    fn a_quota_that_one_worker_uses_up_never_calls_for_a_second() {
        assert_eq!(number(1_000_000, 1, &[feed(5_000.0, 400.0)]), (1, ScalingReason::Quota));
        // Eight share it at an eighth each, yet each could do it alone: seven are told to go.
        assert_eq!(number(1_000_000, 8, &[feed(5_000.0, 400.0)]), (1, ScalingReason::Quota));
    }

    #[test]
    fn quotas_of_several_deployments_are_used_side_by_side() {
        let two = [feed(100.0, 100.0), feed(50.0, 500.0)];
        // The first is full with one worker; the second, with ten.
        assert_eq!(number(1_000_000, 1, &two), (10, ScalingReason::Quota));
        // 300 calls a minute: 100 of the first, 200 of the second.
        assert_eq!(number(3_000, 1, &two), (4, ScalingReason::Backlog));
    }

    #[test]
    fn without_a_quota_the_calls_in_flight_of_one_are_all_there_are() {
        let open = QuotaCapacity { quota_calls: None, ..feed(100.0, 0.0) };
        assert_eq!(number(1_000_000, 4, &[open]), (2, ScalingReason::Quota));
        assert_eq!(number(1_000_000, 1, &[open]), (1, ScalingReason::Quota));
    }

    #[test]
    fn where_all_wait_for_the_quota_nobody_is_called_to_wait_with_them() {
        // Others use most of this quota: the workers make 200 calls a minute of what should be 2,000.
        let used_up = QuotaCapacity { is_exhausted: true, ..feed(100.0, 2_000.0) };
        assert_eq!(number(1_000_000, 2, &[used_up]), (2, ScalingReason::Quota));
        assert_eq!(number(1_000_000, 2, &[feed(100.0, 2_000.0)]), (20, ScalingReason::Quota));
    }

    #[test]
    fn from_nothing_one_finds_out_and_those_who_run_stay_until_they_know() {
        let unknown = QuotaCapacity { worker_calls: None, ..feed(0.0, 500.0) };
        assert_eq!(number(1_000_000, 0, &[]), (1, ScalingReason::NotMeasured));
        assert_eq!(number(1_000_000, 3, &[unknown]), (3, ScalingReason::NotMeasured));
        assert_eq!(
            number(2, 3, &[unknown]),
            (2, ScalingReason::NotMeasured),
            "a job each, at the most"
        );
    }

    #[test]
    fn the_bounds_hold_whatever_waits() {
        let settings =
            ScalingSettings { min_replicas: 2, max_replicas: 3, ..ScalingSettings::default() };
        let number = |jobs| useful_replicas(&facts(jobs, 0, &[feed(100.0, 1e6)]), &settings);
        assert_eq!(number(0), ReplicaCount { replicas: 2, why: ScalingReason::Bounds });
        assert_eq!(number(2_500), ReplicaCount { replicas: 3, why: ScalingReason::Backlog });
        assert_eq!(number(1_000_000), ReplicaCount { replicas: 3, why: ScalingReason::Bounds });
    }

    fn any_feed() -> impl Strategy<Value = QuotaCapacity> {
        let rate = prop::option::of(0.0..1e5_f64);
        let calls = prop_oneof![Just(None), (0.0..1e6_f64).prop_map(Some)];
        (rate, calls, any::<bool>()).prop_map(|(worker_calls, quota_calls, is_used_up)| {
            QuotaCapacity { worker_calls, quota_calls, is_exhausted: is_used_up }
        })
    }

    fn any_facts() -> impl Strategy<Value = ScalingInputs> {
        let feeds = prop::collection::vec(any_feed(), 0..5);
        (0..10_000_000_u64, 0..200_u64, feeds).prop_map(|(jobs, workers, feeds)| ScalingInputs {
            jobs,
            workers,
            quotas: feeds,
        })
    }

    proptest! {
        #[test]
        fn somebody_works_where_there_is_work_and_nobody_where_there_is_none(facts in any_facts()) {
            let ReplicaCount { replicas, .. } = useful_replicas(&facts, &ScalingSettings::default());
            prop_assert_eq!(replicas == 0, facts.jobs == 0);
            prop_assert!(replicas <= facts.jobs.min(100));
        }

        #[test]
        fn who_follows_the_number_is_told_the_same_number_again(facts in any_facts()) {
            let used_up = |feed: &QuotaCapacity| QuotaCapacity { is_exhausted: false, ..*feed };
            let facts = ScalingInputs { quotas: facts.quotas.iter().map(used_up).collect(), ..facts };
            let first = useful_replicas(&facts, &ScalingSettings::default()).replicas;
            let followed = ScalingInputs { workers: first, ..facts };
            prop_assert_eq!(useful_replicas(&followed, &ScalingSettings::default()).replicas, first);
        }

        #[test]
        fn more_work_never_calls_for_fewer(facts in any_facts(), more in 0..1_000_000_u64) {
            let settings = ScalingSettings::default();
            let busier = ScalingInputs { jobs: facts.jobs + more, ..facts.clone() };
            prop_assert!(useful_replicas(&busier, &settings).replicas >= useful_replicas(&facts, &settings).replicas);
        }

        #[test]
        fn no_more_are_called_than_the_largest_quota_feeds(facts in any_facts()) {
            let measured = facts.quotas.iter().filter_map(|f| Some((f, f.worker_calls?)));
            let measured = measured.filter(|(_, calls)| *calls > 0.0);
            let fed = measured.map(|(f, calls)| f.quota_calls.unwrap_or(calls) / calls);
            if let Some(most) = fed.max_by(f64::total_cmp) {
                let most = ((most * SCALE_DOWN_TOLERANCE).ceil() as u64).max(1);
                prop_assert!(useful_replicas(&facts, &ScalingSettings::default()).replicas <= most);
            }
        }
    }
}
