//! Distribution of a value over the jobs: HDR histograms, to three digits.

use hdrhistogram::Histogram;
use serde::Serialize;

const DIGITS: u8 = 3;
const BARS: u32 = 40;

/// Percentiles and histogram of a value.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValueDistribution {
    pub count: u64,
    pub mean: f64,
    pub min: u64,
    pub p50: u64,
    pub p90: u64,
    pub p95: u64,
    pub p99: u64,
    pub max: u64,
    /// Equally wide on a logarithmic scale, from the smallest value to the largest.
    pub bars: Vec<DistributionBar>,
}

/// Values from `from` to below `to`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct DistributionBar {
    pub from: f64,
    pub to: f64,
    pub count: u64,
}

/// Accumulator of values; allocates nothing before the first.
#[derive(Default)]
pub(super) struct DistributionBuilder {
    histogram: Option<Histogram<u64>>,
    /// Exact minimum and maximum; the histogram's own are only as precise as its digits.
    bounds: Option<(u64, u64)>,
}

impl DistributionBuilder {
    pub(super) fn add(&mut self, value: u64) {
        if self.histogram.is_none() {
            self.histogram = Histogram::new(DIGITS).ok();
        }
        // It resizes itself, so nothing is out of its range.
        let _ = self.histogram.as_mut().map(|histogram| histogram.record(value));
        let (min, max) = self.bounds.unwrap_or((value, value));
        self.bounds = Some((min.min(value), max.max(value)));
    }

    pub(super) fn distribution(&self) -> Option<ValueDistribution> {
        let (values, (min, max)) = self.histogram.as_ref().zip(self.bounds)?;
        let at = |share| values.value_at_quantile(share).clamp(min, max);
        Some(ValueDistribution {
            count: values.len(),
            mean: values.mean(),
            min,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            max,
            bars: bars(values, min.max(1), max.max(1)),
        })
    }
}

fn bars(values: &Histogram<u64>, min: u64, max: u64) -> Vec<DistributionBar> {
    let low = min as f64;
    let step = ((max + 1) as f64 / low).powf(1.0 / f64::from(BARS));
    let edge = |n: u32| low * step.powf(f64::from(n));
    let bar = |n: u32| DistributionBar { from: edge(n), to: edge(n + 1), count: 0 };
    let mut bars: Vec<DistributionBar> = (0..BARS).map(bar).collect();
    for recorded in values.iter_recorded() {
        let value = recorded.value_iterated_to().clamp(min, max) as f64;
        let place = ((value / low).ln() / step.ln()) as usize;
        bars[place.min(BARS as usize - 1)].count += recorded.count_since_last_iteration();
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(values: impl IntoIterator<Item = u64>) -> Option<ValueDistribution> {
        let mut all = DistributionBuilder::default();
        values.into_iter().for_each(|value| all.add(value));
        all.distribution()
    }

    #[test]
    fn percentiles_are_right_to_three_digits_and_bars_hold_every_value() {
        let spread = spread(1..=100_000).unwrap();
        assert!((spread.p50 as f64 - 50_000.0).abs() < 60.0 && spread.max == 100_000, "{spread:?}");
        assert_eq!(spread.bars.iter().map(|bar| bar.count).sum::<u64>(), 100_000);
        assert!(spread.bars.windows(2).all(|two| (two[0].to - two[1].from).abs() < 1e-6));
    }

    #[test]
    fn one_value_or_nothing_at_all_is_no_trouble() {
        assert_eq!(spread([]), None);
        for value in [0, 7, u64::from(u32::MAX)] {
            let spread = spread([value; 3]).unwrap();
            assert_eq!(spread.bars.iter().map(|bar| bar.count).sum::<u64>(), 3, "{value}");
        }
    }
}
