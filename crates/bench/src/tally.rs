//! Sums up the samples of one phase, in memory that does not grow with their number.
//!
//! Latencies belong to requests that were *meant to start* in the measured span; rates to those
//! that *ended* in it. So a slow end of the phase shows in the latencies, and a rate is that of a
//! steady state: late answers from the warm-up make up for those still outstanding at the end.

use std::collections::VecDeque;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::call::{RequestSample, SampleStatus};
use super::counts::{BenchStopReason, PhaseCounts, SecondCounts, Slo};

/// Three significant digits: a value is known to 0.1 %.
const SIGNIFICANT_DIGITS: u8 = 3;

/// Longest recorded time in microseconds; no request is waited for as long.
const MAX_LATENCY_MICROS: u64 = 4 * 3_600 * 1_000_000;

/// Seconds over which the error rate is taken.
const ERROR_WINDOW_SECONDS: usize = 10;

/// Least number of requests for an error rate.
const ERROR_MIN_REQUESTS: u64 = 20;

/// Measured part of a phase, from the phase's start.
#[derive(Debug, Clone, Copy)]
pub(super) struct MeasuredSpan {
    pub(super) start: Duration,
    /// `None` where a count ends the phase.
    pub(super) end: Option<Duration>,
}

impl MeasuredSpan {
    fn contains(&self, at: Duration) -> bool {
        at >= self.start && self.end.is_none_or(|end| at < end)
    }
}

/// Figures of one second, shown while a phase runs.
#[derive(Debug, Clone, Default)]
pub struct LiveStats {
    /// Since the phase's start.
    pub elapsed: Duration,
    pub warming_up: bool,
    pub in_flight: usize,
    /// Counts of this second.
    pub succeeded: u64,
    pub throttled: u64,
    pub failed: u64,
    /// Percentiles of this second's successes.
    pub ttft_p50: Option<Duration>,
    pub e2e_p50: Option<Duration>,
    pub e2e_p95: Option<Duration>,
    /// Tokens of the last minute, or of its seconds so far, scaled to a minute.
    pub input_tpm: f64,
    pub output_tpm: f64,
    pub utilization: Option<f64>,
}

#[derive(Debug)]
pub(super) struct PhaseTally {
    span: MeasuredSpan,
    slo: Slo,
    pub(super) ttft: Histogram<u64>,
    pub(super) tbt: Histogram<u64>,
    pub(super) e2e: Histogram<u64>,
    pub(super) throttled: Histogram<u64>,
    pub(super) failed: Histogram<u64>,
    pub(super) lag: Histogram<u64>,
    pub(super) counts: PhaseCounts,
    /// Whole seconds of the measured span.
    pub(super) seconds: Vec<SecondCounts>,
    /// Requests that were meant to start, and did start, in the measured span.
    pub(super) intended: u64,
    pub(super) started: u64,
    /// Length of the measured span and the processor time in it; set by `close`.
    pub(super) length: Duration,
    pub(super) processor: Duration,
    last_end: Duration,
    now: RunningMinute,
}

/// Result of a phase.
#[derive(Debug)]
pub(super) struct PhaseMeasurement {
    pub(super) tally: PhaseTally,
    pub(super) ended: BenchStopReason,
}

/// Current second and last minute, warm-up included.
#[derive(Debug, Default)]
struct RunningMinute {
    ttft: Vec<Duration>,
    e2e: Vec<Duration>,
    second: SecondCounts,
    minute: VecDeque<SecondCounts>,
}

impl PhaseTally {
    pub(super) fn new(span: MeasuredSpan, slo: Slo) -> Self {
        let histogram = || {
            Histogram::new_with_bounds(1, MAX_LATENCY_MICROS, SIGNIFICANT_DIGITS)
                .expect("the bounds are in order")
        };
        Self {
            span,
            slo,
            ttft: histogram(),
            tbt: histogram(),
            e2e: histogram(),
            throttled: histogram(),
            failed: histogram(),
            lag: histogram(),
            counts: PhaseCounts::default(),
            seconds: Vec::new(),
            intended: 0,
            started: 0,
            length: Duration::ZERO,
            processor: Duration::ZERO,
            last_end: Duration::ZERO,
            now: RunningMinute::default(),
        }
    }

    /// Adds one request; returns the reason to stop the run, if there is one.
    pub(super) fn add(
        &mut self,
        sample: &RequestSample,
        stop_at_error_rate: f64,
    ) -> Option<BenchStopReason> {
        let good = sample.status == SampleStatus::Succeeded && self.slo.is_met(sample);
        self.now.add(sample, good);
        if self.span.contains(sample.started) {
            self.started += 1;
        }
        if self.span.contains(sample.intended) {
            self.intended += 1;
            self.measure(sample);
        }
        if self.span.contains(sample.ended) {
            let index = (sample.ended - self.span.start).as_secs() as usize;
            if self.seconds.len() <= index {
                self.seconds.resize(index + 1, SecondCounts::default());
            }
            self.seconds[index].add(sample, good);
            self.last_end = self.last_end.max(sample.ended);
        }
        match &sample.status {
            SampleStatus::Succeeded | SampleStatus::Throttled => None,
            SampleStatus::Misconfigured { why } => {
                Some(BenchStopReason::Misconfigured { why: why.clone() })
            }
            SampleStatus::Failed { code } => {
                let rate = self.now.error_rate()?;
                (rate > stop_at_error_rate)
                    .then(|| BenchStopReason::ErrorRate { rate, last: code.clone() })
            }
        }
    }

    fn measure(&mut self, sample: &RequestSample) {
        record(&mut self.lag, sample.started.saturating_sub(sample.intended));
        self.counts.add(sample);
        match &sample.status {
            SampleStatus::Succeeded => {
                record(&mut self.e2e, sample.latency());
                sample.ttft.into_iter().for_each(|span| record(&mut self.ttft, span));
                sample.tbt.into_iter().for_each(|span| record(&mut self.tbt, span));
            }
            SampleStatus::Throttled => record(&mut self.throttled, sample.latency()),
            SampleStatus::Failed { .. } | SampleStatus::Misconfigured { .. } => {
                record(&mut self.failed, sample.latency());
            }
        }
    }

    /// Closes the current second and returns its figures.
    pub(super) fn close_second(&mut self, elapsed: Duration, in_flight: usize) -> LiveStats {
        let RunningMinute { ttft, e2e, second, minute } = &mut self.now;
        minute.push_back(*second);
        if minute.len() > 60 {
            minute.pop_front();
        }
        ttft.sort_unstable();
        e2e.sort_unstable();
        let at = |sorted: &[Duration], p: f64| {
            sorted.get(((sorted.len() as f64 * p) as usize).min(sorted.len().max(1) - 1)).copied()
        };
        let per_minute = |tokens: fn(&SecondCounts) -> u64| {
            minute.iter().map(tokens).sum::<u64>() as f64 * 60.0 / minute.len() as f64
        };
        let live = LiveStats {
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
        *second = SecondCounts::default();
        ttft.clear();
        e2e.clear();
        live
    }

    /// Ends the phase: fixes the measured span's length, and fills the seconds in which nothing
    /// ended.
    pub(super) fn close(&mut self, elapsed: Duration, processor: Duration) {
        let end = match self.span.end {
            Some(end) => end.min(elapsed),
            None => self.last_end,
        };
        self.length = end.saturating_sub(self.span.start);
        self.seconds.resize(self.length.as_secs_f64().ceil() as usize, SecondCounts::default());
        self.processor = processor;
    }
}

impl RunningMinute {
    fn add(&mut self, sample: &RequestSample, good: bool) {
        self.second.add(sample, good);
        if sample.status == SampleStatus::Succeeded {
            self.ttft.extend(sample.ttft);
            self.e2e.push(sample.latency());
        }
    }

    /// Returns `None` while too few requests have ended.
    fn error_rate(&self) -> Option<f64> {
        let seconds = self.minute.iter().rev().take(ERROR_WINDOW_SECONDS - 1).chain([&self.second]);
        let (failed, all) = seconds.fold((0, 0), |(failed, all), second| {
            let SecondCounts { succeeded, throttled, failed: f, .. } = second;
            (failed + f, all + succeeded + throttled + f)
        });
        (all >= ERROR_MIN_REQUESTS).then(|| failed as f64 / all as f64)
    }
}

fn record(histogram: &mut Histogram<u64>, span: Duration) {
    histogram.saturating_record(u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn sample(intended: u64, started: u64, ended: u64, ending: SampleStatus) -> RequestSample {
        let succeeded = ending == SampleStatus::Succeeded;
        RequestSample {
            intended: ms(intended),
            started: ms(started),
            ended: ms(ended),
            status: ending,
            ttft: succeeded.then(|| ms(ended - intended) / 2),
            tbt: None,
            prompt_tokens: u64::from(succeeded) * 10,
            cached_tokens: 0,
            output_tokens: u64::from(succeeded) * 5,
            charge: 30,
            utilization: Some(ended as f64 / 100.0),
            calls: 1,
            throttled_calls: 0,
        }
    }

    fn tally() -> PhaseTally {
        let slo = Slo { e2e_ms: Some(500.0), ..Slo::default() };
        PhaseTally::new(MeasuredSpan { start: ms(1_000), end: Some(ms(4_000)) }, slo)
    }

    #[test]
    fn a_late_start_is_in_the_latency_and_told_as_lag() {
        let mut tally = tally();
        tally.add(&sample(1_000, 1_900, 2_000, SampleStatus::Succeeded), 1.0);
        assert_eq!(tally.e2e.max() / 1_000, 1_000);
        assert_eq!(tally.lag.max() / 1_000, 900);
    }

    #[test]
    fn what_ends_differently_is_kept_apart() {
        let mut tally = tally();
        let failed = SampleStatus::Failed { code: "http_500".into() };
        for ending in [SampleStatus::Succeeded, SampleStatus::Throttled, failed] {
            tally.add(&sample(1_500, 1_500, 1_700, ending), 1.0);
        }
        tally.close(ms(5_000), Duration::ZERO);
        let PhaseCounts { succeeded, throttled, failed, .. } = tally.counts;
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
        tally.add(&sample(500, 500, 1_100, SampleStatus::Succeeded), 1.0);
        tally.add(&sample(3_900, 3_900, 4_800, SampleStatus::Succeeded), 1.0);
        tally.add(&sample(4_000, 4_000, 4_100, SampleStatus::Succeeded), 1.0);
        tally.close(ms(5_000), Duration::ZERO);
        assert_eq!(tally.e2e.len(), 1, "only the second was meant to start in the span");
        let rates: Vec<_> = tally.seconds.iter().map(|second| second.succeeded).collect();
        assert_eq!(rates, [1, 0, 0], "only the first ended in it");
        assert_eq!(tally.length, ms(3_000));
    }

    #[test]
    fn errors_stop_it_and_throttling_does_not() {
        let mut tally = tally();
        let failed = || SampleStatus::Failed { code: "c".into() };
        let mut add = |ending| tally.add(&sample(1_000, 1_000, 1_001, ending), 0.5);
        assert!((0..30).all(|_| add(SampleStatus::Throttled).is_none()));
        assert!((0..30).all(|_| add(failed()).is_none()), "half of them is not more than half");
        assert!(matches!(add(failed()), Some(BenchStopReason::ErrorRate { .. })));
        let why = String::from("401");
        let stop = add(SampleStatus::Misconfigured { why: why.clone() });
        assert_eq!(stop, Some(BenchStopReason::Misconfigured { why }));
    }

    #[test]
    fn a_second_tells_its_own_and_forgets_it() {
        let mut tally = tally();
        for end in [1_010, 1_020, 1_100] {
            tally.add(&sample(1_000, 1_000, end, SampleStatus::Succeeded), 1.0);
        }
        let live = tally.close_second(ms(1_100), 7);
        assert_eq!((live.succeeded, live.in_flight, live.warming_up), (3, 7, false));
        assert_eq!((live.e2e_p50, live.e2e_p95), (Some(ms(20)), Some(ms(100))));
        assert_eq!((live.input_tpm, live.output_tpm), (1_800.0, 900.0));
        assert_eq!(tally.close_second(ms(2_000), 0).e2e_p50, None);
    }
}
