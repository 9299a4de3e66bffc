//! Forecast of a batch's end and cost, from its throughput in the last minutes.
//!
//! Pure. Work is measured in tokens, the unit of quotas; in jobs where no tokens are known. A sum
//! over `k` future minutes, predicted from `n` past minutes with coefficient of variation `cv`
//! (standard deviation / mean), has the relative error `cv · √(1/n + 1/k)`: the error of the mean,
//! and the variation of the future itself. With Student's quantile that gives the 80 % prediction
//! interval, drawn on a logarithmic scale, since neither time nor cost can be negative.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use store::MinuteTotals;

/// Window of the rate that people are shown.
pub const RATE_WINDOW_S: i64 = 5 * 60;

/// Window of the forecast: quotas and other users of them change.
pub const LOOK_BACK_S: i64 = 30 * 60;

/// Shortest time to forecast from; anything less is chance.
const MIN_INTERVAL_S: f64 = 1.0;

/// 90 % quantiles of Student's t by degrees of freedom from 1; beyond, the normal one.
const T90: [f64; 10] = [3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372];
const Z90: f64 = 1.282;

/// Largest ratio between the two counts of remaining prompt tokens, ours and the service's.
const MAX_COUNT_RATIO: f64 = 4.0;

/// Jobs that ended within some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ThroughputInterval {
    pub seconds: f64,
    pub jobs: u64,
    /// Prompt and completion, as the service reported them.
    pub tokens: u64,
}

/// Finished part of a batch, with its tokens and cost.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct BatchProgress {
    pub jobs: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// In the currency of the price table; `None` where a price is unknown.
    pub prompt_cost: Option<f64>,
    pub completion_cost: Option<f64>,
}

/// Whole batch, as it was enqueued.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EnqueuedTotals {
    pub jobs: u64,
    /// By our own count; 0 if unknown.
    pub prompt_tokens: u64,
}

/// Throughput of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct BatchRate {
    pub jobs_per_second: f64,
    pub tokens_per_minute: f64,
    /// Length of the window, in seconds.
    pub over_seconds: f64,
}

/// A value and its 80 % prediction interval; no interval if there is too little data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ForecastRange {
    pub low: Option<f64>,
    pub likely: f64,
    pub high: Option<f64>,
}

/// Basis of a time to completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EtaBasis {
    /// Recent throughput.
    Rate,
    /// Nothing ended lately: the time that the quota needs at least.
    Quota,
}

/// Time to completion, in seconds from now.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Eta {
    pub basis: EtaBasis,
    #[serde(flatten)]
    pub seconds: ForecastRange,
}

/// Expected end and cost of a batch; each is `None` if it can't be computed.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct BatchForecast {
    pub eta: Option<Eta>,
    /// Cost of the whole batch, including what is spent.
    pub cost: Option<ForecastRange>,
}

/// Returns the rate of the last minutes; `None` if nothing ended in them.
pub fn rate(minutes: &BTreeMap<i64, MinuteTotals>, now: Timestamp) -> Option<BatchRate> {
    let (mut jobs, mut tokens, mut seconds) = (0, 0, 0.0);
    for stretch in intervals(minutes, now, RATE_WINDOW_S) {
        jobs += stretch.jobs;
        tokens += stretch.tokens;
        seconds += stretch.seconds;
    }
    let seconds = f64::max(seconds, 1.0);
    (jobs > 0).then(|| BatchRate {
        jobs_per_second: jobs as f64 / seconds,
        tokens_per_minute: tokens as f64 / seconds * 60.0,
        over_seconds: seconds,
    })
}

/// Returns the minutes of the last `look_back` seconds in a row, including those in which nothing
/// ended, from the end of the first job on. The first and the present one may be partial.
pub fn intervals(
    minutes: &BTreeMap<i64, MinuteTotals>,
    now: Timestamp,
    look_back: i64,
) -> Vec<ThroughputInterval> {
    let now_s = now.as_millisecond() as f64 / 1e3;
    let present = now.as_second().div_euclid(60);
    let from = present - look_back.div_euclid(60);
    let known = |minute: &i64| (from..=present).contains(minute);
    // If the batch began before the window, the window's first minute is a whole one.
    let began_before = minutes.range(..from).next().is_some();
    let Some(first) = minutes.keys().copied().find(known) else { return Vec::new() };
    let first = if began_before { from } else { first };
    let stretch = |minute: i64| {
        let MinuteTotals { jobs, tokens, from_second } =
            minutes.get(&minute).copied().unwrap_or_default();
        let is_begin = minute == first && !began_before;
        let begin = minute * 60 + if is_begin { i64::from(from_second) } else { 0 };
        let end = f64::min((minute * 60 + 60) as f64, now_s);
        ThroughputInterval { seconds: (end - begin as f64).max(0.0), jobs, tokens }
    };
    (first..=present).map(stretch).collect()
}

/// Forecasts a running batch. `quota_tpm` is what the workers may use of all its deployments
/// together, in tokens a minute: the batch can't end sooner than that allows.
pub fn forecast(
    done: &BatchProgress,
    whole: &EnqueuedTotals,
    intervals: &[ThroughputInterval],
    quota_tpm: Option<f64>,
) -> BatchForecast {
    let left = RemainingWork::new(done, whole);
    BatchForecast {
        eta: eta(&left, intervals, quota_tpm),
        cost: cost(
            done,
            &left,
            &IntervalVariation::measure(intervals, |s| ratio(s.tokens as f64, s.jobs as f64)),
        ),
    }
}

/// Remaining part of a batch.
struct RemainingWork {
    jobs: f64,
    prompt_tokens: f64,
    tokens: f64,
}

impl RemainingWork {
    fn new(done: &BatchProgress, whole: &EnqueuedTotals) -> Self {
        let jobs = whole.jobs.saturating_sub(done.jobs) as f64;
        let mean_prompt = ratio(done.prompt_tokens as f64, done.jobs as f64);
        let difference = whole.prompt_tokens as f64 - done.prompt_tokens as f64;
        let prompt_tokens = match mean_prompt {
            _ if whole.prompt_tokens == 0 => mean_prompt.unwrap_or(0.0) * jobs,
            Some(mean) if mean > 0.0 => {
                let usual = mean * jobs;
                difference.clamp(usual / MAX_COUNT_RATIO, usual * MAX_COUNT_RATIO)
            }
            _ => whole.prompt_tokens as f64 * ratio(jobs, whole.jobs as f64).unwrap_or(0.0),
        };
        let answers = ratio(done.completion_tokens as f64, done.jobs as f64).unwrap_or(0.0) * jobs;
        Self { jobs, prompt_tokens, tokens: prompt_tokens + answers }
    }
}

fn eta(
    left: &RemainingWork,
    intervals: &[ThroughputInterval],
    quota_tpm: Option<f64>,
) -> Option<Eta> {
    if left.jobs <= 0.0 {
        let now = ForecastRange { low: Some(0.0), likely: 0.0, high: Some(0.0) };
        return Some(Eta { basis: EtaBasis::Rate, seconds: now });
    }
    let soonest = quota_tpm.and_then(|tpm| ratio(left.tokens, tpm)).map(|minutes| minutes * 60.0);
    let by_quota = soonest.filter(|seconds| *seconds > 0.0).map(|seconds| Eta {
        basis: EtaBasis::Quota,
        seconds: ForecastRange { low: Some(seconds), likely: seconds, high: None },
    });
    let lasted: f64 = intervals.iter().map(|s| s.seconds).sum();
    let jobs: u64 = intervals.iter().map(|s| s.jobs).sum();
    let tokens: u64 = intervals.iter().map(|s| s.tokens).sum();
    if jobs == 0 || lasted < MIN_INTERVAL_S {
        return by_quota;
    }
    let by_tokens = tokens > 0 && left.tokens > 0.0;
    let (work, done) = if by_tokens { (left.tokens, tokens) } else { (left.jobs, jobs) };
    let floor = soonest.unwrap_or(0.0);
    let likely = f64::max(work / done as f64 * lasted, floor);
    let speed =
        |s: &ThroughputInterval| ratio(if by_tokens { s.tokens } else { s.jobs } as f64, s.seconds);
    let spread = IntervalVariation::measure(intervals, speed);
    let mut seconds = spread.range_around(likely, likely / 60.0);
    seconds.low = seconds.low.map(|low| f64::max(low, floor).min(likely));
    Some(Eta { basis: EtaBasis::Rate, seconds })
}

fn cost(
    done: &BatchProgress,
    left: &RemainingWork,
    spread: &IntervalVariation,
) -> Option<ForecastRange> {
    let (prompts, answers) = (done.prompt_cost?, done.completion_cost?);
    let spent = prompts + answers;
    if left.jobs <= 0.0 {
        return Some(ForecastRange { low: Some(spent), likely: spent, high: Some(spent) });
    }
    let of_prompts = ratio(prompts, done.prompt_tokens as f64)? * left.prompt_tokens;
    let of_answers = ratio(answers, done.jobs as f64)? * left.jobs;
    let stretches_left = ratio(left.jobs, done.jobs as f64)? * spread.n as f64;
    let to_come = spread.range_around(of_prompts + of_answers, stretches_left);
    let total = |amount: f64| spent + amount;
    Some(ForecastRange {
        low: to_come.low.map(total),
        likely: total(to_come.likely),
        high: to_come.high.map(total),
    })
}

/// Variation of a value from one interval to the next.
struct IntervalVariation {
    n: usize,
    /// Coefficient of variation; `None` for fewer than two intervals.
    cv: Option<f64>,
}

impl IntervalVariation {
    /// Measures the intervals that have the value and lasted long enough (30 s); the present one
    /// rarely did.
    fn measure(
        intervals: &[ThroughputInterval],
        value: impl Fn(&ThroughputInterval) -> Option<f64>,
    ) -> Self {
        let long = intervals.iter().filter(|s| s.seconds >= 30.0);
        let values: Vec<f64> = long.filter_map(value).collect();
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n.max(1) as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let cv = (n > 1).then(|| ratio((squares / (n - 1) as f64).sqrt(), mean)).flatten();
        Self { n, cv }
    }

    /// Returns the range of a sum over `k` future intervals whose most likely value is `likely`.
    fn range_around(&self, likely: f64, k: f64) -> ForecastRange {
        let Some(cv) = self.cv else { return ForecastRange { low: None, likely, high: None } };
        let t = T90.get(self.n.saturating_sub(2)).copied().unwrap_or(Z90);
        let factor = (t * cv * (1.0 / self.n as f64 + 1.0 / k.max(1.0)).sqrt()).exp();
        ForecastRange { low: Some(likely / factor), likely, high: Some(likely * factor) }
    }
}

/// Divides; `None` if the divisor is not positive.
fn ratio(amount: f64, of: f64) -> Option<f64> {
    (of > 0.0).then(|| amount / of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: u64 = 100;
    const ANSWER: u64 = 50;

    fn done(jobs: u64) -> BatchProgress {
        BatchProgress {
            jobs,
            prompt_tokens: jobs * PROMPT,
            completion_tokens: jobs * ANSWER,
            prompt_cost: Some(jobs as f64),
            completion_cost: Some(2.0 * jobs as f64),
        }
    }

    fn whole(jobs: u64) -> EnqueuedTotals {
        EnqueuedTotals { jobs, prompt_tokens: jobs * PROMPT }
    }

    fn minutes_of(jobs: &[u64]) -> Vec<ThroughputInterval> {
        let stretch = |jobs: &u64| ThroughputInterval {
            seconds: 60.0,
            jobs: *jobs,
            tokens: jobs * (PROMPT + ANSWER),
        };
        jobs.iter().map(stretch).collect()
    }

    #[test]
    fn an_even_pace_is_told_without_doubt() {
        let told = forecast(&done(300), &whole(900), &minutes_of(&[100, 100, 100]), None);
        let eta = told.eta.unwrap();
        assert_eq!(eta.basis, EtaBasis::Rate);
        assert!((eta.seconds.likely - 360.0).abs() < 1e-6, "{eta:?}");
        assert_eq!(eta.seconds.low, eta.seconds.high);
        let cost = told.cost.unwrap();
        assert!((cost.likely - 2_700.0).abs() < 1e-6, "{cost:?}");
    }

    #[test]
    fn what_varied_is_told_with_a_range_that_narrows_with_time() {
        let width = |minutes: &[u64]| {
            let told = forecast(&done(1_000), &whole(100_000), &minutes_of(minutes), None);
            let ForecastRange { low, likely, high } = told.eta.unwrap().seconds;
            let (low, high) = (low.unwrap(), high.unwrap());
            assert!(low < likely && likely < high);
            high / low
        };
        let (short, long) = (width(&[80, 120]), width(&[80, 120].repeat(10)));
        assert!(long < short / 1.5, "{short} {long}");
    }

    #[test]
    fn a_single_stretch_has_no_range() {
        let told = forecast(&done(100), &whole(200), &minutes_of(&[100]), None);
        let seconds = told.eta.unwrap().seconds;
        assert_eq!((seconds.low, seconds.high), (None, None));
        assert!((seconds.likely - 60.0).abs() < 1e-6);
    }

    #[test]
    fn nothing_is_done_sooner_than_the_quota_allows() {
        // 600 jobs of 150 tokens at 5,000 tokens a minute: 18 minutes.
        let quick = minutes_of(&[300, 200, 400]);
        let told = forecast(&done(900), &whole(1_500), &quick, Some(5_000.0));
        let seconds = told.eta.unwrap().seconds;
        assert!((seconds.likely - 1_080.0).abs() < 1e-6, "{seconds:?}");
        assert_eq!(seconds.low, Some(seconds.likely));
    }

    #[test]
    fn before_anything_ended_the_quota_says_how_soon() {
        let told = forecast(&BatchProgress::default(), &whole(60), &[], Some(1_000.0));
        let eta = told.eta.unwrap();
        assert_eq!((eta.basis, eta.seconds.high), (EtaBasis::Quota, None));
        assert!((eta.seconds.likely - 360.0).abs() < 1e-6, "6,000 prompt tokens: {eta:?}");
        assert_eq!(
            forecast(&BatchProgress::default(), &whole(60), &[], None),
            BatchForecast::default()
        );
    }

    #[test]
    fn larger_prompts_that_are_left_take_longer_than_jobs_tell() {
        let large = EnqueuedTotals { jobs: 200, prompt_tokens: 100 * PROMPT + 100 * 3 * PROMPT };
        let told = forecast(&done(100), &large, &minutes_of(&[50, 50]), None);
        let eta = told.eta.unwrap().seconds.likely;
        assert!((eta - 100.0 * 350.0 / 7_500.0 * 60.0).abs() < 1e-6, "{eta}");
    }

    #[test]
    fn an_unknown_price_is_no_cost() {
        let unknown = BatchProgress { completion_cost: None, ..done(100) };
        assert_eq!(forecast(&unknown, &whole(200), &minutes_of(&[50, 50]), None).cost, None);
    }

    #[test]
    fn a_batch_that_is_done_costs_what_it_cost() {
        let told = forecast(&done(100), &whole(100), &[], None);
        assert_eq!(told.cost.unwrap().likely, 300.0);
        assert_eq!(told.eta.unwrap().seconds.likely, 0.0);
    }

    #[test]
    fn minutes_become_stretches_as_long_as_they_lasted() {
        let minute = |jobs, from_second| MinuteTotals { jobs, tokens: 10 * jobs, from_second };
        let minutes = BTreeMap::from([(100, minute(5, 40)), (102, minute(7, 0))]);
        let now: Timestamp = Timestamp::from_second(102 * 60 + 30).unwrap();
        let lasted = |look_back| {
            let all = intervals(&minutes, now, look_back);
            all.iter().map(|s| (s.seconds, s.jobs)).collect::<Vec<_>>()
        };
        assert_eq!(lasted(600), [(20.0, 5), (60.0, 0), (30.0, 7)]);
        assert_eq!(lasted(60), [(60.0, 0), (30.0, 7)], "it began before the window");
        let rate = rate(&minutes, now).unwrap();
        assert!((rate.jobs_per_second - 12.0 / 110.0).abs() < 1e-9, "{rate:?}");
        assert!((rate.tokens_per_minute - 120.0 / 110.0 * 60.0).abs() < 1e-9);
        assert_eq!(super::rate(&minutes, now + jiff::SignedDuration::from_hours(1)), None);
    }
}
