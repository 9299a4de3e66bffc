//! The formula: how many workers are of use, by what waits and what the quotas feed.
//!
//! Pure. A worker that has `k` calls a minute to make of a deployment adds `k` until the deployment's
//! quota `q` is used up, so `n` workers together make `r(n) = Σ min(n·k, q)`. Of use are the fewest
//! with which all that waits is done in the set time, or, where no number does that, those with which
//! the last quota is used up: each further one would only make the others wait. `docs/scaling.md` has
//! it in words.

use serde::{Deserialize, Serialize};

/// A worker more is worth its start from this part of its work on.
const WORTH_A_START: f64 = 0.1;

/// So much more than needed may stay, so that a rate measured a little differently moves nobody.
const MAY_STAY: f64 = 1.2;

/// `[scaling]`: between what bounds, and how patiently.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Never fewer, even with nothing to do.
    pub min_replicas: u64,
    /// Never more, whatever waits.
    pub max_replicas: u64,
    /// What waits is to be done within so many minutes, where the quotas allow it.
    pub backlog_minutes: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_replicas: 0,
            // What KEDA takes where it is told nothing.
            max_replicas: 100,
            // A container is up after one of them; ten make that worth it.
            backlog_minutes: 10.0,
        }
    }
}

/// One quota, as all workers see it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Feed {
    /// Calls a minute of one worker with all the calls in flight that it may have; `None` before any
    /// was answered.
    pub worker_calls: Option<f64>,
    /// Calls a minute that the quota gives. `None` if it has none: then the workers share one
    /// worker's calls in flight.
    pub quota_calls: Option<f64>,
    /// All workers wait for it already, so that one more gets nothing, whatever is computed.
    pub is_used_up: bool,
}

/// All that the number hangs on.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Facts {
    /// Jobs that could go now, those in work included.
    pub jobs: u64,
    /// Workers alive.
    pub workers: u64,
    pub feeds: Vec<Feed>,
}

/// What the number came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// No job could go now.
    NothingToDo,
    /// With so many, what waits is done in the set time.
    Backlog,
    /// More than these the quotas do not feed.
    Quota,
    /// No call was answered yet: those that there are, or one to find out.
    NotMeasured,
    /// `min_replicas` or `max_replicas`.
    Bounds,
}

/// How many workers are of use now.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Useful {
    pub replicas: u64,
    pub why: Why,
}

/// How many workers are of use.
pub fn useful(facts: &Facts, settings: &Settings) -> Useful {
    let (wanted, why) = wanted(facts, settings.backlog_minutes);
    let replicas = wanted.max(settings.min_replicas).min(settings.max_replicas);
    Useful { replicas, why: if replicas == wanted { why } else { Why::Bounds } }
}

fn wanted(facts: &Facts, minutes: f64) -> (u64, Why) {
    if facts.jobs == 0 {
        return (0, Why::NothingToDo);
    }
    let curves: Vec<Curve> =
        facts.feeds.iter().filter_map(|f| Curve::of(f, facts.workers)).collect();
    let Some(last) = curves.iter().map(Curve::full_at).max_by(f64::total_cmp) else {
        // Those that run will tell soon; whoever has more jobs than workers needs at least one.
        return (facts.workers.clamp(1, facts.jobs.max(1)), Why::NotMeasured);
    };
    let (need, why) = match reaches(&curves, facts.jobs as f64 / minutes) {
        Some(need) => (need, Why::Backlog),
        None => (last, Why::Quota),
    };
    let fewest = (need - WORTH_A_START).ceil() as u64;
    let most = (need * MAY_STAY).ceil() as u64;
    let steady = facts.workers.max(fewest).min(most.max(fewest));
    (steady.clamp(1, facts.jobs), why)
}

/// Calls a minute over the number of workers: a slope, and where it ends.
struct Curve {
    slope: f64,
    full: f64,
}

impl Curve {
    fn of(feed: &Feed, workers: u64) -> Option<Self> {
        let slope = feed.worker_calls.filter(|calls| *calls > 0.0)?;
        let full = feed.quota_calls.unwrap_or(slope);
        let at_work = slope * workers.max(1) as f64;
        Some(Self { slope, full: if feed.is_used_up { full.min(at_work) } else { full } })
    }

    /// The number of workers that use it up.
    fn full_at(&self) -> f64 {
        self.full / self.slope
    }
}

/// The number of workers that make so many calls a minute together; `None` if no number does.
fn reaches(curves: &[Curve], calls: f64) -> Option<f64> {
    let mut ends: Vec<&Curve> = curves.iter().collect();
    ends.sort_by(|a, b| a.full_at().total_cmp(&b.full_at()));
    let mut full = 0.0;
    for (n, end) in ends.iter().enumerate() {
        let slope: f64 = ends[n..].iter().map(|curve| curve.slope).sum();
        let needed = (calls - full) / slope;
        if needed <= end.full_at() {
            return Some(needed);
        }
        full += end.full;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A worker that makes so many calls a minute, and a quota.
    fn feed(worker: f64, quota: f64) -> Feed {
        Feed { worker_calls: Some(worker), quota_calls: Some(quota), is_used_up: false }
    }

    fn facts(jobs: u64, workers: u64, feeds: &[Feed]) -> Facts {
        Facts { jobs, workers, feeds: feeds.to_vec() }
    }

    fn number(jobs: u64, workers: u64, feeds: &[Feed]) -> (u64, Why) {
        let Useful { replicas, why } = useful(&facts(jobs, workers, feeds), &Settings::default());
        (replicas, why)
    }

    #[test]
    fn the_backlog_asks_for_workers_until_the_quota_feeds_no_more() {
        // A worker makes 100 calls a minute, so 1,000 in the ten minutes.
        let one = [feed(100.0, 450.0)];
        for (jobs, workers, expected) in [
            (0, 3, (0, Why::NothingToDo)),
            (1, 0, (1, Why::Backlog)),
            (900, 1, (1, Why::Backlog)),
            (2_500, 1, (3, Why::Backlog)),
            (4_500, 1, (5, Why::Backlog)),
            (1_000_000, 1, (5, Why::Quota)),
            // One more than needed may stay, two more go.
            (1_000_000, 6, (6, Why::Quota)),
            (1_000_000, 7, (6, Why::Quota)),
        ] {
            assert_eq!(number(jobs, workers, &one), expected, "{jobs} jobs, {workers} workers");
        }
    }

    #[test]
    fn a_quota_that_one_worker_uses_up_never_calls_for_a_second() {
        assert_eq!(number(1_000_000, 1, &[feed(5_000.0, 400.0)]), (1, Why::Quota));
        // Eight share it at an eighth each, yet each could do it alone: seven are told to go.
        assert_eq!(number(1_000_000, 8, &[feed(5_000.0, 400.0)]), (1, Why::Quota));
    }

    #[test]
    fn quotas_of_several_deployments_are_used_side_by_side() {
        let two = [feed(100.0, 100.0), feed(50.0, 500.0)];
        // The first is full with one worker; the second, with ten.
        assert_eq!(number(1_000_000, 1, &two), (10, Why::Quota));
        // 300 calls a minute: 100 of the first, 200 of the second.
        assert_eq!(number(3_000, 1, &two), (4, Why::Backlog));
    }

    #[test]
    fn without_a_quota_the_calls_in_flight_of_one_are_all_there_are() {
        let open = Feed { quota_calls: None, ..feed(100.0, 0.0) };
        assert_eq!(number(1_000_000, 4, &[open]), (2, Why::Quota));
        assert_eq!(number(1_000_000, 1, &[open]), (1, Why::Quota));
    }

    #[test]
    fn where_all_wait_for_the_quota_nobody_is_called_to_wait_with_them() {
        // Others use most of this quota: the workers make 200 calls a minute of what should be 2,000.
        let used_up = Feed { is_used_up: true, ..feed(100.0, 2_000.0) };
        assert_eq!(number(1_000_000, 2, &[used_up]), (2, Why::Quota));
        assert_eq!(number(1_000_000, 2, &[feed(100.0, 2_000.0)]), (20, Why::Quota));
    }

    #[test]
    fn from_nothing_one_finds_out_and_those_who_run_stay_until_they_know() {
        let unknown = Feed { worker_calls: None, ..feed(0.0, 500.0) };
        assert_eq!(number(1_000_000, 0, &[]), (1, Why::NotMeasured));
        assert_eq!(number(1_000_000, 3, &[unknown]), (3, Why::NotMeasured));
        assert_eq!(number(2, 3, &[unknown]), (2, Why::NotMeasured), "a job each, at the most");
    }

    #[test]
    fn the_bounds_hold_whatever_waits() {
        let settings = Settings { min_replicas: 2, max_replicas: 3, ..Settings::default() };
        let number = |jobs| useful(&facts(jobs, 0, &[feed(100.0, 1e6)]), &settings);
        assert_eq!(number(0), Useful { replicas: 2, why: Why::Bounds });
        assert_eq!(number(2_500), Useful { replicas: 3, why: Why::Backlog });
        assert_eq!(number(1_000_000), Useful { replicas: 3, why: Why::Bounds });
    }

    fn any_feed() -> impl Strategy<Value = Feed> {
        let rate = prop::option::of(0.0..1e5_f64);
        let calls = prop_oneof![Just(None), (0.0..1e6_f64).prop_map(Some)];
        (rate, calls, any::<bool>()).prop_map(|(worker_calls, quota_calls, is_used_up)| Feed {
            worker_calls,
            quota_calls,
            is_used_up,
        })
    }

    fn any_facts() -> impl Strategy<Value = Facts> {
        let feeds = prop::collection::vec(any_feed(), 0..5);
        (0..10_000_000_u64, 0..200_u64, feeds).prop_map(|(jobs, workers, feeds)| Facts {
            jobs,
            workers,
            feeds,
        })
    }

    proptest! {
        #[test]
        fn somebody_works_where_there_is_work_and_nobody_where_there_is_none(facts in any_facts()) {
            let Useful { replicas, .. } = useful(&facts, &Settings::default());
            prop_assert_eq!(replicas == 0, facts.jobs == 0);
            prop_assert!(replicas <= facts.jobs.min(100));
        }

        #[test]
        fn who_follows_the_number_is_told_the_same_number_again(facts in any_facts()) {
            let used_up = |feed: &Feed| Feed { is_used_up: false, ..*feed };
            let facts = Facts { feeds: facts.feeds.iter().map(used_up).collect(), ..facts };
            let first = useful(&facts, &Settings::default()).replicas;
            let followed = Facts { workers: first, ..facts };
            prop_assert_eq!(useful(&followed, &Settings::default()).replicas, first);
        }

        #[test]
        fn more_work_never_calls_for_fewer(facts in any_facts(), more in 0..1_000_000_u64) {
            let settings = Settings::default();
            let busier = Facts { jobs: facts.jobs + more, ..facts.clone() };
            prop_assert!(useful(&busier, &settings).replicas >= useful(&facts, &settings).replicas);
        }

        #[test]
        fn no_more_are_called_than_the_largest_quota_feeds(facts in any_facts()) {
            let measured = facts.feeds.iter().filter_map(|f| Some((f, f.worker_calls?)));
            let measured = measured.filter(|(_, calls)| *calls > 0.0);
            let fed = measured.map(|(f, calls)| f.quota_calls.unwrap_or(calls) / calls);
            if let Some(most) = fed.max_by(f64::total_cmp) {
                let most = ((most * MAY_STAY).ceil() as u64).max(1);
                prop_assert!(useful(&facts, &Settings::default()).replicas <= most);
            }
        }
    }
}
