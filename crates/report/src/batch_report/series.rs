//! Time series of a batch, in a bounded number of points.
//!
//! Points are a second wide until there are too many; then they are merged to the next wider ones.
//! Each width is a multiple of the one before, so no point is ever split.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use store::OutcomeSummary;

const WIDTHS_S: [i64; 12] = [1, 5, 10, 30, 60, 300, 600, 1_800, 3_600, 7_200, 21_600, 86_400];

/// Points from first to last, including those in which nothing ended.
const MAX_POINTS: i64 = 400;

/// Jobs that ended within one point's width from `at` on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeriesPoint {
    pub at: Timestamp,
    pub ended: u64,
    /// Prompt and completion tokens, at the time when their job ended.
    pub tokens: u64,
    /// Throttled calls (429) of the jobs that ended.
    pub throttled: u64,
    pub retries: u64,
    /// Tokens by deployment, in the order of [`TimeSeries::deployments`].
    pub tokens_by_deployment: Vec<u64>,
}

/// All points in which anything ended, in order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TimeSeries {
    pub seconds_a_point: i64,
    pub deployments: Vec<String>,
    pub points: Vec<SeriesPoint>,
}

#[derive(Default)]
struct PointSum {
    ended: u64,
    throttled: u64,
    retries: u64,
    /// By index of the deployment.
    tokens: BTreeMap<usize, u64>,
}

#[derive(Default)]
pub(super) struct SeriesBuilder {
    /// Index into [`WIDTHS_S`].
    width_index: usize,
    deployments: Vec<String>,
    sums: BTreeMap<i64, PointSum>,
}

impl SeriesBuilder {
    pub(super) fn add(&mut self, brief: &OutcomeSummary) {
        let place = self.deployment_index(&brief.deployment);
        let sum = self.sums.entry(self.point_index(brief.finished_at.as_second())).or_default();
        sum.ended += u64::from(brief.ending.is_some());
        sum.throttled += u64::from(brief.throttled);
        sum.retries += u64::from(brief.attempts.saturating_sub(1));
        *sum.tokens.entry(place).or_default() += brief.usage.total();
        while self.span() > MAX_POINTS && self.width_index + 1 < WIDTHS_S.len() {
            self.widen();
        }
    }

    fn deployment_index(&mut self, deployment: &str) -> usize {
        let known = self.deployments.iter().position(|name| name == deployment);
        known.unwrap_or_else(|| {
            self.deployments.push(deployment.to_owned());
            self.deployments.len() - 1
        })
    }

    fn point_index(&self, second: i64) -> i64 {
        second.div_euclid(WIDTHS_S[self.width_index])
    }

    fn span(&self) -> i64 {
        let ends = self.sums.first_key_value().zip(self.sums.last_key_value());
        ends.map_or(0, |((first, _), (last, _))| last - first + 1)
    }

    fn widen(&mut self) {
        let old = WIDTHS_S[self.width_index];
        self.width_index += 1;
        for (point, from) in std::mem::take(&mut self.sums) {
            let to = self.sums.entry(self.point_index(point * old)).or_default();
            to.ended += from.ended;
            to.throttled += from.throttled;
            to.retries += from.retries;
            for (place, tokens) in from.tokens {
                *to.tokens.entry(place).or_default() += tokens;
            }
        }
    }

    pub(super) fn finish(self) -> TimeSeries {
        let seconds = WIDTHS_S[self.width_index];
        let places = 0..self.deployments.len();
        let point = |(point, sum): (i64, PointSum)| {
            let of = |place| sum.tokens.get(&place).copied().unwrap_or(0);
            Some(SeriesPoint {
                at: Timestamp::from_second(point * seconds).ok()?,
                ended: sum.ended,
                tokens: sum.tokens.values().sum(),
                throttled: sum.throttled,
                retries: sum.retries,
                tokens_by_deployment: places.clone().map(of).collect(),
            })
        };
        let points = self.sums.into_iter().filter_map(point).collect();
        TimeSeries { seconds_a_point: seconds, deployments: self.deployments, points }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::brief;
    use super::*;

    #[test]
    fn a_week_has_as_few_points_as_an_hour_and_loses_nothing() {
        for (span, width) in [(300, 1), (3_600, 10), (7 * 86_400, 1_800)] {
            let mut series = SeriesBuilder::default();
            // From both ends at once: no order is promised.
            for n in 0..1_000 {
                let second = if n % 2 == 0 { n } else { 1_000 - n } * span / 1_000;
                let mut brief = brief(n);
                brief.finished_at += jiff::SignedDuration::from_secs(second as i64 - n as i64);
                series.add(&brief);
            }
            let series = series.finish();
            assert_eq!(series.seconds_a_point, width, "{span}");
            assert!(series.points.len() as i64 <= MAX_POINTS);
            assert_eq!(series.points.iter().map(|point| point.ended).sum::<u64>(), 1_000);
            let tokens: u64 = (0..1_000).map(|n| brief(n).usage.total()).sum();
            assert_eq!(series.points.iter().map(|point| point.tokens).sum::<u64>(), tokens);
            assert!(series.points.windows(2).all(|two| two[0].at < two[1].at));
        }
    }

    #[test]
    fn every_width_is_a_multiple_of_the_one_before() {
        assert!(WIDTHS_S.windows(2).all(|two| two[1] % two[0] == 0));
    }
}
