//! What the requests of one phase came to, in memory that does not grow with their number.
//!
//! Latencies belong to requests that were *meant to start* in the measured span; rates to those that
//! *ended* in it. So a slow end of the phase is seen in the latencies, and a rate is that of a steady
//! state, with as many answers from the warm-up coming in as are still out at the end.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::call::{Ending, Sample};
use super::report::{Counts, Ended};

/// Three digits: a value is known to 0.1 %.
const DIGITS: u8 = 3;

/// Longer times than any request is waited for, in microseconds.
const LONGEST: u64 = 4 * 3_600 * 1_000_000;

/// The error rate is that of this time.
const ERROR_WINDOW: usize = 10;

/// Fewer requests than this say nothing about an error rate.
const ERROR_LEAST: u64 = 20;

/// The measured part of a phase, from the phase's start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    pub(super) start: Duration,
    /// Open where a count ends the phase.
    pub(super) end: Option<Duration>,
}

impl Span {
    fn has(&self, at: Duration) -> bool {
        at >= self.start && self.end.is_none_or(|end| at < end)
    }
}

/// The service level that a good answer keeps, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Slo {
    pub ttft_ms: Option<f64>,
    pub tbt_ms: Option<f64>,
    pub e2e_ms: Option<f64>,
}

impl Slo {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn is_kept(&self, sample: &Sample) -> bool {
        let within = |bound: Option<f64>, span: Option<Duration>| match (bound, span) {
            (Some(bound), Some(span)) => span.as_secs_f64() * 1_000.0 <= bound,
            _ => true,
        };
        within(self.ttft_ms, sample.ttft)
            && within(self.tbt_ms, sample.tbt)
            && within(self.e2e_ms, Some(sample.latency()))
    }
}

/// What ended in one second of the measured part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    pub succeeded: u64,
    pub throttled: u64,
    pub failed: u64,
    /// Succeeded within the service level.
    pub good: u64,
    pub prompt_tokens: u64,
    pub output_tokens: u64,
    pub charged_tokens: u64,
    /// The largest that the service said, in percent.
    pub utilization: Option<f64>,
}

/// What is told every second.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// Since the phase's start.
    pub elapsed: Duration,
    pub warming_up: bool,
    pub in_flight: usize,
    /// In this second.
    pub succeeded: u64,
    pub throttled: u64,
    pub failed: u64,
    /// Of this second's successes.
    pub ttft_p50: Option<Duration>,
    pub e2e_p50: Option<Duration>,
    pub e2e_p95: Option<Duration>,
    /// Tokens in the last minute, or in what there was of it, brought to a minute.
    pub input_tpm: f64,
    pub output_tpm: f64,
    pub utilization: Option<f64>,
}

#[derive(Debug)]
pub(super) struct Tally {
    span: Span,
    slo: Slo,
    pub(super) ttft: Histogram<u64>,
    pub(super) tbt: Histogram<u64>,
    pub(super) e2e: Histogram<u64>,
    pub(super) throttled: Histogram<u64>,
    pub(super) failed: Histogram<u64>,
    pub(super) lag: Histogram<u64>,
    pub(super) counts: Counts,
    /// By whole seconds of the measured span.
    pub(super) seconds: Vec<Second>,
    /// Requests that were meant to start, and did start, in the measured span.
    pub(super) intended: u64,
    pub(super) started: u64,
    /// Set at the close: the length of the measured span, and the processor time in it.
    pub(super) length: Duration,
    pub(super) processor: Duration,
    last_end: Duration,
    now: Now,
}

/// The running second and the last minute, warm-up included.
#[derive(Debug, Default)]
struct Now {
    ttft: Vec<Duration>,
    e2e: Vec<Duration>,
    second: Second,
    minute: VecDeque<Second>,
}

impl Tally {
    pub(super) fn new(span: Span, slo: Slo) -> Self {
        let histogram =
            || Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("the bounds are in order");
        Self {
            span,
            slo,
            ttft: histogram(),
            tbt: histogram(),
            e2e: histogram(),
            throttled: histogram(),
            failed: histogram(),
            lag: histogram(),
            counts: Counts::default(),
            seconds: Vec::new(),
            intended: 0,
            started: 0,
            length: Duration::ZERO,
            processor: Duration::ZERO,
            last_end: Duration::ZERO,
            now: Now::default(),
        }
    }

    /// Takes in one request; says why the run must stop, if it must.
    pub(super) fn add(&mut self, sample: &Sample, stop_at_error_rate: f64) -> Option<Ended> {
        let good = sample.ending == Ending::Succeeded && self.slo.is_kept(sample);
        self.now.add(sample, good);
        if self.span.has(sample.started) {
            self.started += 1;
        }
        if self.span.has(sample.intended) {
            self.intended += 1;
            self.measure(sample);
        }
        if self.span.has(sample.ended) {
            let index = (sample.ended - self.span.start).as_secs() as usize;
            if self.seconds.len() <= index {
                self.seconds.resize(index + 1, Second::default());
            }
            self.seconds[index].add(sample, good);
            self.last_end = self.last_end.max(sample.ended);
        }
        match &sample.ending {
            Ending::Succeeded | Ending::Throttled => None,
            Ending::Misconfigured { why } => Some(Ended::Misconfigured { why: why.clone() }),
            Ending::Failed { code } => {
                let rate = self.now.error_rate()?;
                (rate > stop_at_error_rate).then(|| Ended::ErrorRate { rate, last: code.clone() })
            }
        }
    }

    fn measure(&mut self, sample: &Sample) {
        record(&mut self.lag, sample.started.saturating_sub(sample.intended));
        self.counts.add(sample);
        match &sample.ending {
            Ending::Succeeded => {
                record(&mut self.e2e, sample.latency());
                sample.ttft.into_iter().for_each(|span| record(&mut self.ttft, span));
                sample.tbt.into_iter().for_each(|span| record(&mut self.tbt, span));
            }
            Ending::Throttled => record(&mut self.throttled, sample.latency()),
            Ending::Failed { .. } | Ending::Misconfigured { .. } => {
                record(&mut self.failed, sample.latency());
            }
        }
    }

    /// The second that ends now.
    pub(super) fn second(&mut self, elapsed: Duration, in_flight: usize) -> Live {
        let Now { ttft, e2e, second, minute } = &mut self.now;
        minute.push_back(*second);
        if minute.len() > 60 {
            minute.pop_front();
        }
        ttft.sort_unstable();
        e2e.sort_unstable();
        let at = |sorted: &[Duration], p: f64| {
            sorted.get(((sorted.len() as f64 * p) as usize).min(sorted.len().max(1) - 1)).copied()
        };
        let per_minute = |tokens: fn(&Second) -> u64| {
            minute.iter().map(tokens).sum::<u64>() as f64 * 60.0 / minute.len() as f64
        };
        let live = Live {
            elapsed,
            warming_up: elapsed < self.span.start,
            in_flight,
            succeeded: second.succeeded,
            throttled: second.throttled,
            failed: second.failed,
            ttft_p50: at(ttft, 0.5),
            e2e_p50: at(e2e, 0.5),
            e2e_p95: at(e2e, 0.95),
            input_tpm: per_minute(|second| second.prompt_tokens),
            output_tpm: per_minute(|second| second.output_tokens),
            utilization: second.utilization,
        };
        *second = Second::default();
        ttft.clear();
        e2e.clear();
        live
    }

    /// The phase is over: fixes the measured span's length, and fills the seconds in which nothing
    /// ended.
    pub(super) fn close(&mut self, elapsed: Duration, processor: Duration) {
        let end = match self.span.end {
            Some(end) => end.min(elapsed),
            None => self.last_end,
        };
        self.length = end.saturating_sub(self.span.start);
        self.seconds.resize(self.length.as_secs_f64().ceil() as usize, Second::default());
        self.processor = processor;
    }
}

impl Second {
    fn add(&mut self, sample: &Sample, good: bool) {
        match sample.ending {
            Ending::Succeeded => {
                self.succeeded += 1;
                self.charged_tokens += sample.charge;
            }
            Ending::Throttled => self.throttled += 1,
            Ending::Failed { .. } | Ending::Misconfigured { .. } => self.failed += 1,
        }
        self.good += u64::from(good);
        self.prompt_tokens += sample.prompt_tokens;
        self.output_tokens += sample.output_tokens;
        self.utilization = match (self.utilization, sample.utilization) {
            (Some(one), Some(other)) => Some(one.max(other)),
            (one, other) => one.or(other),
        };
    }
}

impl Now {
    fn add(&mut self, sample: &Sample, good: bool) {
        self.second.add(sample, good);
        if sample.ending == Ending::Succeeded {
            self.ttft.extend(sample.ttft);
            self.e2e.push(sample.latency());
        }
    }

    /// `None` while too few requests have ended.
    fn error_rate(&self) -> Option<f64> {
        let seconds = self.minute.iter().rev().take(ERROR_WINDOW - 1).chain([&self.second]);
        let (failed, all) = seconds.fold((0, 0), |(failed, all), second| {
            let Second { succeeded, throttled, failed: f, .. } = second;
            (failed + f, all + succeeded + throttled + f)
        });
        (all >= ERROR_LEAST).then(|| failed as f64 / all as f64)
    }
}

impl Counts {
    fn add(&mut self, sample: &Sample) {
        match &sample.ending {
            Ending::Succeeded => self.succeeded += 1,
            Ending::Throttled => self.throttled += 1,
            Ending::Failed { code } => {
                self.failed += 1;
                *self.codes.entry(code.clone()).or_default() += 1;
            }
            Ending::Misconfigured { .. } => {
                self.failed += 1;
                *self.codes.entry("misconfigured".into()).or_default() += 1;
            }
        }
        self.calls += u64::from(sample.calls);
        self.refused_calls += u64::from(sample.refused_calls);
        self.prompt_tokens += sample.prompt_tokens;
        self.cached_tokens += sample.cached_tokens;
        self.output_tokens += sample.output_tokens;
    }
}

/// Failed requests by what the service or the connection said.
pub type Codes = BTreeMap<String, u64>;

fn record(histogram: &mut Histogram<u64>, span: Duration) {
    histogram.saturating_record(u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn sample(intended: u64, started: u64, ended: u64, ending: Ending) -> Sample {
        let succeeded = ending == Ending::Succeeded;
        Sample {
            intended: ms(intended),
            started: ms(started),
            ended: ms(ended),
            ending,
            ttft: succeeded.then(|| ms(ended - intended) / 2),
            tbt: None,
            prompt_tokens: u64::from(succeeded) * 10,
            cached_tokens: 0,
            output_tokens: u64::from(succeeded) * 5,
            charge: 30,
            utilization: Some(ended as f64 / 100.0),
            calls: 1,
            refused_calls: 0,
        }
    }

    fn tally() -> Tally {
        let slo = Slo { e2e_ms: Some(500.0), ..Slo::default() };
        Tally::new(Span { start: ms(1_000), end: Some(ms(4_000)) }, slo)
    }

    #[test]
    fn a_late_start_is_in_the_latency_and_told_as_lag() {
        let mut tally = tally();
        tally.add(&sample(1_000, 1_900, 2_000, Ending::Succeeded), 1.0);
        assert_eq!(tally.e2e.max() / 1_000, 1_000);
        assert_eq!(tally.lag.max() / 1_000, 900);
    }

    #[test]
    fn what_ends_differently_is_kept_apart() {
        let mut tally = tally();
        let failed = Ending::Failed { code: "http_500".into() };
        for ending in [Ending::Succeeded, Ending::Throttled, failed] {
            tally.add(&sample(1_500, 1_500, 1_700, ending), 1.0);
        }
        tally.close(ms(5_000), Duration::ZERO);
        let Counts { succeeded, throttled, failed, .. } = tally.counts;
        assert_eq!((succeeded, throttled, failed), (1, 1, 1));
        assert_eq!(tally.counts.codes["http_500"], 1);
        assert_eq!((tally.e2e.len(), tally.throttled.len(), tally.failed.len()), (1, 1, 1));
        assert_eq!(tally.seconds.len(), 3, "seconds in which nothing ended are there too");
        let first = tally.seconds[0];
        assert_eq!((first.succeeded, first.good, first.throttled, first.failed), (1, 1, 1, 1));
        assert_eq!((first.prompt_tokens, first.output_tokens, first.charged_tokens), (10, 5, 30));
        assert_eq!(first.utilization, Some(17.0));
    }

    #[test]
    fn warm_up_is_not_measured_and_the_end_counts_by_intention() {
        let mut tally = tally();
        tally.add(&sample(500, 500, 1_100, Ending::Succeeded), 1.0);
        tally.add(&sample(3_900, 3_900, 4_800, Ending::Succeeded), 1.0);
        tally.add(&sample(4_000, 4_000, 4_100, Ending::Succeeded), 1.0);
        tally.close(ms(5_000), Duration::ZERO);
        assert_eq!(tally.e2e.len(), 1, "only the second was meant to start in the span");
        let rates: Vec<_> = tally.seconds.iter().map(|second| second.succeeded).collect();
        assert_eq!(rates, [1, 0, 0], "only the first ended in it");
        assert_eq!(tally.length, ms(3_000));
    }

    #[test]
    fn errors_stop_it_and_throttling_does_not() {
        let mut tally = tally();
        let failed = || Ending::Failed { code: "c".into() };
        let mut add = |ending| tally.add(&sample(1_000, 1_000, 1_001, ending), 0.5);
        assert!((0..30).all(|_| add(Ending::Throttled).is_none()));
        assert!((0..30).all(|_| add(failed()).is_none()), "half of them is not more than half");
        assert!(matches!(add(failed()), Some(Ended::ErrorRate { .. })));
        let why = String::from("401");
        let stop = add(Ending::Misconfigured { why: why.clone() });
        assert_eq!(stop, Some(Ended::Misconfigured { why }));
    }

    #[test]
    fn a_second_tells_its_own_and_forgets_it() {
        let mut tally = tally();
        for end in [1_010, 1_020, 1_100] {
            tally.add(&sample(1_000, 1_000, end, Ending::Succeeded), 1.0);
        }
        let live = tally.second(ms(1_100), 7);
        assert_eq!((live.succeeded, live.in_flight, live.warming_up), (3, 7, false));
        assert_eq!((live.e2e_p50, live.e2e_p95), (Some(ms(20)), Some(ms(100))));
        assert_eq!((live.input_tpm, live.output_tpm), (1_800.0, 900.0));
        assert_eq!(tally.second(ms(2_000), 0).e2e_p50, None);
    }
}
