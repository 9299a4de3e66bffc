//! When a batch will be done and what it will cost, by how it went in the last minutes.
//!
//! Pure. Work is measured in tokens, since that is what a quota is spent in; in jobs where no tokens
//! are known. A future sum over `k` minutes, foretold from `n` minutes whose values vary by `cv` (the
//! standard deviation as a part of the mean), is off by `cv · √(1/n + 1/k)` as a part of itself: what
//! the mean is wrong by, and what the future itself varies by. With Student's quantile that gives the
//! range in which it lies with 80 %, drawn on a logarithmic scale, since neither time nor cost can be
//! less than nothing.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use store::Minute;

/// The rate that people are shown is that of this long.
pub const RATE_WINDOW_S: i64 = 5 * 60;

/// The forecast looks back for this long: quotas and neighbours change.
pub const LOOK_BACK_S: i64 = 30 * 60;

/// Less than this tells of chance.
const SHORTEST_STRETCH_S: f64 = 1.0;

/// 90 % quantiles of Student's t by degrees of freedom from 1; beyond, the normal one.
const T90: [f64; 10] = [3.078, 1.886, 1.638, 1.533, 1.476, 1.440, 1.415, 1.397, 1.383, 1.372];
const Z90: f64 = 1.282;

/// How the two counts of prompt tokens, ours and the service's, may differ for what is left.
const COUNTS_DIFFER_BY: f64 = 4.0;

/// What ended within some time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stretch {
    pub seconds: f64,
    pub jobs: u64,
    /// Prompt and completion, as the service reported them.
    pub tokens: u64,
}

/// What is done of a batch, and what it took.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Done {
    pub jobs: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// In the currency of the price table; `None` where a price is unknown.
    pub prompt_cost: Option<f64>,
    pub completion_cost: Option<f64>,
}

/// A batch as a whole, as it was enqueued.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Whole {
    pub jobs: u64,
    /// By our own count; 0 where it is not known.
    pub prompt_tokens: u64,
}

/// How fast a batch went.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Rate {
    pub jobs_per_second: f64,
    pub tokens_per_minute: f64,
    /// Over how long, in seconds.
    pub over_seconds: f64,
}

/// A value, and the range in which it lies with 80 %; no range where there is too little to tell.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    pub low: Option<f64>,
    pub likely: f64,
    pub high: Option<f64>,
}

/// What a time to the end is told by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// How it went lately.
    Rate,
    /// Nothing ended lately: how soon the quota could have it done.
    Quota,
}

/// Seconds from now.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Eta {
    pub basis: Basis,
    #[serde(flatten)]
    pub seconds: Range,
}

/// What is to be expected of a batch. Both are absent where they can't be told.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Forecast {
    pub eta: Option<Eta>,
    /// Of the whole batch, what is spent included.
    pub cost: Option<Range>,
}

/// How fast it went in the last minutes; `None` if nothing ended in them.
pub fn rate(minutes: &BTreeMap<i64, Minute>, now: Timestamp) -> Option<Rate> {
    let (mut jobs, mut tokens, mut seconds) = (0, 0, 0.0);
    for stretch in stretches(minutes, now, RATE_WINDOW_S) {
        jobs += stretch.jobs;
        tokens += stretch.tokens;
        seconds += stretch.seconds;
    }
    let seconds = f64::max(seconds, 1.0);
    (jobs > 0).then(|| Rate {
        jobs_per_second: jobs as f64 / seconds,
        tokens_per_minute: tokens as f64 / seconds * 60.0,
        over_seconds: seconds,
    })
}

/// The minutes of the last `look_back` seconds in a row, those without an end among them, from when
/// the first job ended. The first and the present one are as long as they have lasted.
pub fn stretches(minutes: &BTreeMap<i64, Minute>, now: Timestamp, look_back: i64) -> Vec<Stretch> {
    let now_s = now.as_millisecond() as f64 / 1e3;
    let present = now.as_second().div_euclid(60);
    let from = present - look_back.div_euclid(60);
    let known = |minute: &i64| (from..=present).contains(minute);
    // Before the window there may have been more; then its first minute is a whole one.
    let began_before = minutes.range(..from).next().is_some();
    let Some(first) = minutes.keys().copied().find(known) else { return Vec::new() };
    let first = if began_before { from } else { first };
    let stretch = |minute: i64| {
        let Minute { jobs, tokens, from_second } =
            minutes.get(&minute).copied().unwrap_or_default();
        let is_begin = minute == first && !began_before;
        let begin = minute * 60 + if is_begin { i64::from(from_second) } else { 0 };
        let end = f64::min((minute * 60 + 60) as f64, now_s);
        Stretch { seconds: (end - begin as f64).max(0.0), jobs, tokens }
    };
    (first..=present).map(stretch).collect()
}

/// Foretells a batch that is being worked on. `quota_tpm` is what the workers may use of all its
/// deployments together, in tokens a minute: nothing is done sooner than that allows.
pub fn forecast(
    done: &Done,
    whole: &Whole,
    stretches: &[Stretch],
    quota_tpm: Option<f64>,
) -> Forecast {
    let left = Left::new(done, whole);
    Forecast {
        eta: eta(&left, stretches, quota_tpm),
        cost: cost(done, &left, &Spread::of(stretches, |s| per(s.tokens as f64, s.jobs as f64))),
    }
}

/// What is to be done yet.
struct Left {
    jobs: f64,
    prompt_tokens: f64,
    tokens: f64,
}

impl Left {
    fn new(done: &Done, whole: &Whole) -> Self {
        let jobs = whole.jobs.saturating_sub(done.jobs) as f64;
        let mean_prompt = per(done.prompt_tokens as f64, done.jobs as f64);
        let difference = whole.prompt_tokens as f64 - done.prompt_tokens as f64;
        let prompt_tokens = match mean_prompt {
            _ if whole.prompt_tokens == 0 => mean_prompt.unwrap_or(0.0) * jobs,
            Some(mean) if mean > 0.0 => {
                let usual = mean * jobs;
                difference.clamp(usual / COUNTS_DIFFER_BY, usual * COUNTS_DIFFER_BY)
            }
            _ => whole.prompt_tokens as f64 * per(jobs, whole.jobs as f64).unwrap_or(0.0),
        };
        let answers = per(done.completion_tokens as f64, done.jobs as f64).unwrap_or(0.0) * jobs;
        Self { jobs, prompt_tokens, tokens: prompt_tokens + answers }
    }
}

fn eta(left: &Left, stretches: &[Stretch], quota_tpm: Option<f64>) -> Option<Eta> {
    if left.jobs <= 0.0 {
        let now = Range { low: Some(0.0), likely: 0.0, high: Some(0.0) };
        return Some(Eta { basis: Basis::Rate, seconds: now });
    }
    let soonest = quota_tpm.and_then(|tpm| per(left.tokens, tpm)).map(|minutes| minutes * 60.0);
    let by_quota = soonest.filter(|seconds| *seconds > 0.0).map(|seconds| Eta {
        basis: Basis::Quota,
        seconds: Range { low: Some(seconds), likely: seconds, high: None },
    });
    let lasted: f64 = stretches.iter().map(|s| s.seconds).sum();
    let jobs: u64 = stretches.iter().map(|s| s.jobs).sum();
    let tokens: u64 = stretches.iter().map(|s| s.tokens).sum();
    if jobs == 0 || lasted < SHORTEST_STRETCH_S {
        return by_quota;
    }
    let by_tokens = tokens > 0 && left.tokens > 0.0;
    let (work, done) = if by_tokens { (left.tokens, tokens) } else { (left.jobs, jobs) };
    let floor = soonest.unwrap_or(0.0);
    let likely = f64::max(work / done as f64 * lasted, floor);
    let speed = |s: &Stretch| per(if by_tokens { s.tokens } else { s.jobs } as f64, s.seconds);
    let spread = Spread::of(stretches, speed);
    let mut seconds = spread.around(likely, likely / 60.0);
    seconds.low = seconds.low.map(|low| f64::max(low, floor).min(likely));
    Some(Eta { basis: Basis::Rate, seconds })
}

fn cost(done: &Done, left: &Left, spread: &Spread) -> Option<Range> {
    let (prompts, answers) = (done.prompt_cost?, done.completion_cost?);
    let spent = prompts + answers;
    if left.jobs <= 0.0 {
        return Some(Range { low: Some(spent), likely: spent, high: Some(spent) });
    }
    let of_prompts = per(prompts, done.prompt_tokens as f64)? * left.prompt_tokens;
    let of_answers = per(answers, done.jobs as f64)? * left.jobs;
    let stretches_left = per(left.jobs, done.jobs as f64)? * spread.n as f64;
    let to_come = spread.around(of_prompts + of_answers, stretches_left);
    let total = |amount: f64| spent + amount;
    Some(Range {
        low: to_come.low.map(total),
        likely: total(to_come.likely),
        high: to_come.high.map(total),
    })
}

/// How much a value varies from one stretch to the next.
struct Spread {
    n: usize,
    /// `None` of fewer than two stretches.
    cv: Option<f64>,
}

impl Spread {
    /// Of the stretches that have the value and lasted long enough; the present one rarely did.
    fn of(stretches: &[Stretch], value: impl Fn(&Stretch) -> Option<f64>) -> Self {
        let long = stretches.iter().filter(|s| s.seconds >= 30.0);
        let values: Vec<f64> = long.filter_map(value).collect();
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n.max(1) as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let cv = (n > 1).then(|| per((squares / (n - 1) as f64).sqrt(), mean)).flatten();
        Self { n, cv }
    }

    /// A sum over `k` stretches to come that is most likely `likely`.
    fn around(&self, likely: f64, k: f64) -> Range {
        let Some(cv) = self.cv else { return Range { low: None, likely, high: None } };
        let t = T90.get(self.n.saturating_sub(2)).copied().unwrap_or(Z90);
        let factor = (t * cv * (1.0 / self.n as f64 + 1.0 / k.max(1.0)).sqrt()).exp();
        Range { low: Some(likely / factor), likely, high: Some(likely * factor) }
    }
}

/// `None` where there is nothing to divide by.
fn per(amount: f64, of: f64) -> Option<f64> {
    (of > 0.0).then(|| amount / of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROMPT: u64 = 100;
    const ANSWER: u64 = 50;

    fn done(jobs: u64) -> Done {
        Done {
            jobs,
            prompt_tokens: jobs * PROMPT,
            completion_tokens: jobs * ANSWER,
            prompt_cost: Some(jobs as f64),
            completion_cost: Some(2.0 * jobs as f64),
        }
    }

    fn whole(jobs: u64) -> Whole {
        Whole { jobs, prompt_tokens: jobs * PROMPT }
    }

    fn minutes_of(jobs: &[u64]) -> Vec<Stretch> {
        let stretch =
            |jobs: &u64| Stretch { seconds: 60.0, jobs: *jobs, tokens: jobs * (PROMPT + ANSWER) };
        jobs.iter().map(stretch).collect()
    }

    #[test]
    fn an_even_pace_is_told_without_doubt() {
        let told = forecast(&done(300), &whole(900), &minutes_of(&[100, 100, 100]), None);
        let eta = told.eta.unwrap();
        assert_eq!(eta.basis, Basis::Rate);
        assert!((eta.seconds.likely - 360.0).abs() < 1e-6, "{eta:?}");
        assert_eq!(eta.seconds.low, eta.seconds.high);
        let cost = told.cost.unwrap();
        assert!((cost.likely - 2_700.0).abs() < 1e-6, "{cost:?}");
    }

    #[test]
    fn what_varied_is_told_with_a_range_that_narrows_with_time() {
        let width = |minutes: &[u64]| {
            let told = forecast(&done(1_000), &whole(100_000), &minutes_of(minutes), None);
            let Range { low, likely, high } = told.eta.unwrap().seconds;
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
        let told = forecast(&Done::default(), &whole(60), &[], Some(1_000.0));
        let eta = told.eta.unwrap();
        assert_eq!((eta.basis, eta.seconds.high), (Basis::Quota, None));
        assert!((eta.seconds.likely - 360.0).abs() < 1e-6, "6,000 prompt tokens: {eta:?}");
        assert_eq!(forecast(&Done::default(), &whole(60), &[], None), Forecast::default());
    }

    #[test]
    fn larger_prompts_that_are_left_take_longer_than_jobs_tell() {
        let large = Whole { jobs: 200, prompt_tokens: 100 * PROMPT + 100 * 3 * PROMPT };
        let told = forecast(&done(100), &large, &minutes_of(&[50, 50]), None);
        let eta = told.eta.unwrap().seconds.likely;
        assert!((eta - 100.0 * 350.0 / 7_500.0 * 60.0).abs() < 1e-6, "{eta}");
    }

    #[test]
    fn an_unknown_price_is_no_cost() {
        let unknown = Done { completion_cost: None, ..done(100) };
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
        let minute = |jobs, from_second| Minute { jobs, tokens: 10 * jobs, from_second };
        let minutes = BTreeMap::from([(100, minute(5, 40)), (102, minute(7, 0))]);
        let now: Timestamp = Timestamp::from_second(102 * 60 + 30).unwrap();
        let lasted = |look_back| {
            let all = stretches(&minutes, now, look_back);
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
