//! Result of a benchmark as a value: the JSON that other tools and `compare` read.

use std::time::Duration;

use hdrhistogram::Histogram;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use super::counts::{BenchStopReason, ErrorCodeCounts, PhaseCounts, SecondCounts, Slo};
use super::knee::Knee;
use super::load_shapes::{LoadPhase, LoadShape};
use super::stats;
use super::tally::{PhaseMeasurement, PhaseTally};

/// Reported percentiles, as shares.
pub const PERCENTILES: [f64; 6] = [0.5, 0.75, 0.9, 0.95, 0.99, 0.999];

/// Window of a rate: quotas are by the minute.
const RATE_WINDOW_SECONDS: usize = 60;

/// Report of a whole benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// The version that measured.
    pub promptmill: String,
    pub started_at: Timestamp,
    pub setup: BenchSetup,
    pub slo: Slo,
    pub ended: BenchStopReason,
    pub phases: Vec<PhaseReport>,
    /// Only of a sweep.
    pub knee: Option<Knee>,
}

/// Configuration that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchSetup {
    pub deployment: String,
    pub endpoint: String,
    pub requests: String,
    pub streaming: bool,
    pub cacheable: bool,
    pub retry: String,
    pub seed: u64,
}

/// Report of one load, applied for one period.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    pub load: String,
    pub concurrency: Option<usize>,
    pub warm_up_seconds: f64,
    /// Length of the measured part.
    pub seconds: f64,
    pub counts: PhaseCounts,
    pub rates: PhaseRates,
    pub latency: PhaseLatencies,
    /// Deployment utilization in percent, as the service reports it.
    pub utilization: Option<UtilizationSummary>,
    pub client: ClientCost,
    pub series: Vec<SecondCounts>,
}

/// Answers and tokens a minute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseRates {
    /// Successful requests.
    pub rpm: RateSummary,
    pub input_tpm: RateSummary,
    pub output_tpm: RateSummary,
    /// Prompt plus the most it may answer, over successful requests: the tokens that a quota books.
    pub charged_tpm: RateSummary,
    /// Successful requests within the service level; absent where none was given.
    pub goodput_rpm: Option<RateSummary>,
}

/// One rate, per minute.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RateSummary {
    pub mean: f64,
    /// 95 % interval of the mean.
    pub low: f64,
    pub high: f64,
    /// Median and maximum over all windows of `window_seconds` that slide by a second.
    pub sustained: f64,
    pub peak: f64,
    pub window_seconds: usize,
}

/// Latencies of requests whose intended start lies in the measured part, each kind apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PhaseLatencies {
    /// Streams only.
    pub ttft: Option<LatencyDistribution>,
    pub tbt: Option<LatencyDistribution>,
    pub e2e: Option<LatencyDistribution>,
    pub throttled: Option<LatencyDistribution>,
    pub failed: Option<LatencyDistribution>,
}

/// Distribution of a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatencyDistribution {
    pub count: u64,
    pub mean_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    pub percentiles: Vec<LatencyPercentile>,
    /// Histogram: microseconds (to 0.1 %) and their count.
    pub buckets: Vec<(u64, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencyPercentile {
    pub share: f64,
    pub ms: f64,
    /// 95 % interval; absent where there are too few values to say.
    pub low_ms: Option<f64>,
    pub high_ms: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct UtilizationSummary {
    pub mean: f64,
    pub max: f64,
}

/// Influence of the client itself on the measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientCost {
    /// From the intended to the actual start.
    pub lag: Option<LatencyDistribution>,
    /// Open loop only: deviation of the requests that started in the measured part from those that
    /// were meant to, as a share.
    pub rate_error: Option<f64>,
    /// Open loop only: mean lag as a share of the mean gap between starts.
    pub timing_error: Option<f64>,
    /// Processor time of this process, without the cost of waiting for the next start's moment.
    pub cpu_us_per_request: f64,
    /// The same as a share of one core's time.
    pub cpu_share: f64,
}

impl PhaseReport {
    pub(super) fn of(phase: &LoadPhase, measured: &PhaseMeasurement, slo: Slo, seed: u64) -> Self {
        let tally = &measured.tally;
        let rate =
            |of: fn(&SecondCounts) -> u64| RateSummary::of(&tally.seconds, tally.length, of, seed);
        Self {
            load: phase.load.to_string(),
            concurrency: match phase.load {
                LoadShape::Concurrency(calls) => Some(calls),
                _ => None,
            },
            warm_up_seconds: phase.warm_up.as_secs_f64(),
            seconds: tally.length.as_secs_f64(),
            counts: tally.counts.clone(),
            rates: PhaseRates {
                rpm: rate(|second| second.succeeded),
                input_tpm: rate(|second| second.prompt_tokens),
                output_tpm: rate(|second| second.output_tokens),
                charged_tpm: rate(|second| second.charged_tokens),
                goodput_rpm: (!slo.is_empty()).then(|| rate(|second| second.good)),
            },
            latency: PhaseLatencies {
                ttft: LatencyDistribution::of(&tally.ttft),
                tbt: LatencyDistribution::of(&tally.tbt),
                e2e: LatencyDistribution::of(&tally.e2e),
                throttled: LatencyDistribution::of(&tally.throttled),
                failed: LatencyDistribution::of(&tally.failed),
            },
            utilization: UtilizationSummary::of(&tally.seconds),
            client: ClientCost::of(phase, tally),
            series: tally.seconds.clone(),
        }
    }
}

impl RateSummary {
    fn of(
        seconds: &[SecondCounts],
        length: Duration,
        of: fn(&SecondCounts) -> u64,
        seed: u64,
    ) -> Self {
        let span = length.as_secs_f64();
        let all: Vec<f64> = seconds.iter().map(|second| of(second) as f64).collect();
        let mean = if span > 0.0 { all.iter().sum::<f64>() / span * 60.0 } else { 0.0 };
        // A partial last second would look like a drop.
        let whole = &all[..all.len().min(span as usize)];
        let window = whole.len().min(RATE_WINDOW_SECONDS);
        if window == 0 {
            return Self {
                mean,
                low: mean,
                high: mean,
                sustained: mean,
                peak: mean,
                window_seconds: 0,
            };
        }
        let (low, high) = stats::mean_interval(whole, seed);
        let mut windows: Vec<f64> =
            whole.windows(window).map(|w| w.iter().sum::<f64>() * 60.0 / window as f64).collect();
        windows.sort_by(f64::total_cmp);
        Self {
            mean,
            low: low * 60.0,
            high: high * 60.0,
            sustained: windows[windows.len() / 2],
            peak: windows[windows.len() - 1],
            window_seconds: window,
        }
    }
}

impl LatencyDistribution {
    pub(super) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let buckets: Vec<(u64, u64)> = histogram
            .iter_recorded()
            .map(|v| (histogram.median_equivalent(v.value_iterated_to()), v.count_at_value()))
            .collect();
        let (min, max) = (buckets.first()?.0, buckets.last()?.0);
        let percentiles = PERCENTILES.into_iter().filter_map(|share| {
            let (low, high) = stats::quantile_interval(&buckets, share);
            Some(LatencyPercentile {
                share,
                ms: ms(stats::quantile(&buckets, share)?),
                low_ms: low.map(ms),
                high_ms: high.map(ms),
            })
        });
        Some(Self {
            count: histogram.len(),
            mean_ms: histogram.mean() / 1_000.0,
            min_ms: ms(min),
            max_ms: ms(max),
            percentiles: percentiles.collect(),
            buckets,
        })
    }

    /// Returns the percentile of one of [`PERCENTILES`].
    pub fn percentile(&self, share: f64) -> Option<&LatencyPercentile> {
        self.percentiles.iter().find(|percentile| percentile.share == share)
    }
}

impl UtilizationSummary {
    fn of(seconds: &[SecondCounts]) -> Option<Self> {
        let values: Vec<f64> = seconds.iter().filter_map(|second| second.utilization).collect();
        let max = values.iter().copied().max_by(f64::total_cmp)?;
        Some(Self { mean: values.iter().sum::<f64>() / values.len() as f64, max })
    }
}

impl ClientCost {
    fn of(phase: &LoadPhase, tally: &PhaseTally) -> Self {
        let open = !matches!(phase.load, LoadShape::Concurrency(_)) && tally.intended > 0;
        let (intended, started) = (tally.intended as f64, tally.started as f64);
        let lag = LatencyDistribution::of(&tally.lag);
        let span = tally.length.as_secs_f64();
        let ended: u64 = tally.seconds.iter().map(|s| s.succeeded + s.throttled + s.failed).sum();
        let processor = tally.processor.as_secs_f64();
        let share = |of: f64, by: f64| if by > 0.0 { of / by } else { 0.0 };
        Self {
            rate_error: open.then(|| (started - intended).abs() / intended),
            timing_error: lag
                .as_ref()
                .filter(|_| open)
                .map(|lag| share(lag.mean_ms / 1_000.0, share(span, intended))),
            lag,
            cpu_us_per_request: share(processor * 1e6, ended as f64),
            cpu_share: share(processor, span),
        }
    }
}

pub(super) fn ms(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(succeeded: impl IntoIterator<Item = u64>) -> Vec<SecondCounts> {
        let second = |succeeded| SecondCounts { succeeded, ..SecondCounts::default() };
        succeeded.into_iter().map(second).collect()
    }

    #[test]
    fn a_quota_that_is_spent_in_bursts_is_found_by_the_sliding_minute() {
        // 100 a 10 s, all in the first second of each ten; 125 s begin and end anywhere.
        let bursts = seconds((0..125).map(|s| if s % 10 == 3 { 100 } else { 0 }));
        let rate = RateSummary::of(&bursts, Duration::from_secs(125), |second| second.succeeded, 1);
        assert_eq!((rate.sustained, rate.window_seconds), (600.0, 60));
        assert!(
            (rate.mean - 600.0).abs() > 1.0,
            "the mean depends on where it was cut: {}",
            rate.mean
        );
        assert!(rate.low < 600.0 && rate.high > 600.0);
    }

    #[test]
    fn a_last_second_that_is_not_whole_counts_for_the_mean_only() {
        let rate = RateSummary::of(
            &seconds([10, 10, 5]),
            Duration::from_millis(2_500),
            |s| s.succeeded,
            1,
        );
        assert_eq!((rate.mean, rate.sustained, rate.window_seconds), (600.0, 600.0, 2));
    }

    #[test]
    fn a_distribution_is_told_to_the_tenth_of_a_percent() {
        let mut histogram = Histogram::new(3).unwrap();
        (1..=10_000).for_each(|n| histogram.record(n * 100).unwrap());
        let dist = LatencyDistribution::of(&histogram).unwrap();
        let p99 = dist.percentile(0.99).unwrap();
        assert!((p99.ms - 990.0).abs() < 1.0, "{p99:?}");
        let (low, high) = (p99.low_ms.unwrap(), p99.high_ms.unwrap());
        assert!((987.0..990.0).contains(&low) && (990.0..993.0).contains(&high), "{p99:?}");
        assert_eq!(LatencyDistribution::of(&Histogram::new(3).unwrap()), None);
    }
}
