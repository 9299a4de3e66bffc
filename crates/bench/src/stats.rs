//! Confidence intervals and significance tests, each by its name.
//!
//! | figure | interval or test |
//! | --- | --- |
//! | a percentile | order statistics: the ranks between which the true one lies with 95 % (binomial, normal approximation) |
//! | a mean rate | moving-block bootstrap of the seconds, which are correlated |
//! | the difference of two percentiles | bootstrap: a percentile of a resample is an order statistic, drawn as a Beta variate |
//! | two distributions | Mann-Whitney U with the correction for ties, two-sided |
//! | two shares | z-test of two proportions, pooled, two-sided |
//!
//! All intervals are of 95 %. Pure: randomness comes from a seed.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Beta, Distribution};

/// Normal quantile of a two-sided 95 %.
const Z95: f64 = 1.959_963_984_540_054;

const RESAMPLES: usize = 2_000;

/// Values and their counts, ascending by value.
pub type HistogramBuckets = [(u64, u64)];

pub fn total(buckets: &HistogramBuckets) -> u64 {
    buckets.iter().map(|(_, count)| count).sum()
}

/// Returns the value at a rank, from 1.
pub fn at_rank(buckets: &HistogramBuckets, rank: u64) -> Option<u64> {
    let mut seen = 0;
    let holds = |(_, count): &&(u64, u64)| {
        seen += count;
        seen >= rank
    };
    buckets.iter().find(holds).filter(|_| rank > 0).map(|(value, _)| *value)
}

/// Returns the value below or at which this share of all lies.
pub fn quantile(buckets: &HistogramBuckets, share: f64) -> Option<u64> {
    let n = total(buckets);
    at_rank(buckets, ((n as f64 * share).ceil() as u64).clamp(1, n.max(1)))
}

/// Returns the values between which the true quantile lies with 95 %. A side that would need more
/// values than there are is `None`.
pub fn quantile_interval(buckets: &HistogramBuckets, share: f64) -> (Option<u64>, Option<u64>) {
    let n = total(buckets) as f64;
    let spread = Z95 * (n * share * (1.0 - share)).sqrt();
    let low = (n * share - spread).floor();
    let high = (n * share + spread).ceil() + 1.0;
    let value = |rank: f64| at_rank(buckets, rank as u64);
    ((low >= 1.0).then(|| value(low)).flatten(), (high <= n).then(|| value(high)).flatten())
}

/// Returns the 95 % interval of a mean over seconds.
pub fn mean_interval(seconds: &[f64], seed: u64) -> (f64, f64) {
    let mut means = resampled_means(seconds, seed);
    percentile_interval(&mut means)
}

/// Returns the 95 % interval of mean(b) - mean(a).
pub fn mean_difference_interval(a: &[f64], b: &[f64], seed: u64) -> (f64, f64) {
    let a = resampled_means(a, seed);
    let mut differences = resampled_means(b, seed ^ 1);
    differences.iter_mut().zip(a).for_each(|(b, a)| *b -= a);
    percentile_interval(&mut differences)
}

/// Resamples means in blocks of n^(1/3) neighbours, the growth that suits a mean (Künsch 1989).
fn resampled_means(seconds: &[f64], seed: u64) -> Vec<f64> {
    let n = seconds.len();
    if n == 0 {
        return vec![0.0; RESAMPLES];
    }
    let mut rng = SmallRng::seed_from_u64(seed);
    let block = (n as f64).cbrt().round() as usize;
    let mut resample = || {
        let (mut sum, mut taken) = (0.0, 0);
        while taken < n {
            let length = block.min(n - taken);
            let from = rng.random_range(0..=n - block);
            sum += seconds[from..from + length].iter().sum::<f64>();
            taken += length;
        }
        sum / n as f64
    };
    (0..RESAMPLES).map(|_| resample()).collect()
}

fn percentile_interval(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
    (at(0.025), at(0.975))
}

/// Returns the 95 % interval of quantile(b) - quantile(a); `None` if one of them has no values.
pub fn quantile_difference_interval(
    a: &HistogramBuckets,
    b: &HistogramBuckets,
    share: f64,
    seed: u64,
) -> Option<(f64, f64)> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut draws = |buckets: &HistogramBuckets| {
        let n = total(buckets);
        let rank = (n as f64 * share).ceil().clamp(1.0, n.max(1) as f64);
        let of_rank = Beta::new(rank, n as f64 - rank + 1.0).ok()?;
        let mut draw = || {
            let place = (of_rank.sample(&mut rng) * n as f64).ceil() as u64;
            at_rank(buckets, place.clamp(1, n)).map(|value| value as f64)
        };
        (0..RESAMPLES).map(|_| draw()).collect::<Option<Vec<f64>>>()
    };
    let (a, mut differences) = (draws(a)?, draws(b)?);
    differences.iter_mut().zip(a).for_each(|(b, a)| *b -= a);
    Some(percentile_interval(&mut differences))
}

/// Result of the Mann-Whitney test of two distributions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RankTest {
    /// Probability that a value of the second is larger than one of the first; ties count half.
    pub superiority: f64,
    pub p: f64,
}

/// Compares two distributions by ranks; `None` if one of them is empty.
pub fn mann_whitney(a: &HistogramBuckets, b: &HistogramBuckets) -> Option<RankTest> {
    let (n, m) = (total(a) as f64, total(b) as f64);
    if n == 0.0 || m == 0.0 {
        return None;
    }
    // U of b: pairs in which b's value is the larger one.
    let (mut u, mut ties, mut below) = (0.0, 0.0, 0.0);
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let value = match (a.peek(), b.peek()) {
            (None, None) => break,
            (Some((x, _)), None) | (None, Some((x, _))) => *x,
            (Some((x, _)), Some((y, _))) => *x.min(y),
        };
        let take = |side: &mut std::iter::Peekable<std::slice::Iter<'_, (u64, u64)>>| {
            side.next_if(|(v, _)| *v == value).map_or(0.0, |(_, count)| *count as f64)
        };
        let (of_a, of_b) = (take(&mut a), take(&mut b));
        u += of_b * (below + of_a / 2.0);
        below += of_a;
        let tied: f64 = of_a + of_b;
        ties += tied.powi(3) - tied;
    }
    let all = n + m;
    let variance = n * m / 12.0 * ((all + 1.0) - ties / (all * (all - 1.0)));
    let z = if variance > 0.0 { (u - n * m / 2.0) / variance.sqrt() } else { 0.0 };
    Some(RankTest { superiority: u / (n * m), p: two_sided(z) })
}

/// Returns the p-value of two shares being the same, each given as (how many, of how many).
pub fn two_proportion_test(a: (u64, u64), b: (u64, u64)) -> Option<f64> {
    let ((x, n), (y, m)) = ((a.0 as f64, a.1 as f64), (b.0 as f64, b.1 as f64));
    if n == 0.0 || m == 0.0 {
        return None;
    }
    let pooled = (x + y) / (n + m);
    let error = (pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)).sqrt();
    Some(if error > 0.0 { two_sided((x / n - y / m) / error) } else { 1.0 })
}

fn two_sided(z: f64) -> f64 {
    libm::erfc(z.abs() / std::f64::consts::SQRT_2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_distr::{LogNormal, StandardNormal};

    fn buckets(mut values: Vec<u64>) -> Vec<(u64, u64)> {
        values.sort_unstable();
        values.chunk_by(|a, b| a == b).map(|same| (same[0], same.len() as u64)).collect()
    }

    fn lognormal(median: f64, n: usize, seed: u64) -> Vec<(u64, u64)> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let draws = LogNormal::new(f64::ln(median), 0.3).unwrap();
        buckets((0..n).map(|_| draws.sample(&mut rng) as u64).collect())
    }

    #[test]
    fn quantiles_are_the_ranked_values() {
        let values = buckets((1..=100).collect());
        assert_eq!(quantile(&values, 0.5), Some(50));
        assert_eq!(quantile(&values, 0.99), Some(99));
        assert_eq!(quantile(&values, 1.0), Some(100));
        assert_eq!(quantile(&[], 0.5), None);
        // Textbook ranks of the median of 100 values: 40 and 61.
        assert_eq!(quantile_interval(&values, 0.5), (Some(40), Some(61)));
        assert_eq!(quantile_interval(&values, 0.99), (Some(97), None), "too few to say");
    }

    #[test]
    fn a_percentiles_interval_covers_the_truth_as_often_as_it_says() {
        let truth = 100_000.0 * (0.3f64 * 1.644_853_6).exp();
        let covers = |seed| {
            let (low, high) = quantile_interval(&lognormal(100_000.0, 1_000, seed), 0.95);
            (low.unwrap() as f64..=high.unwrap() as f64).contains(&truth)
        };
        let covered = (0..400).filter(|seed| covers(*seed)).count();
        assert!((370..=396).contains(&covered), "{covered} of 400");
    }

    #[test]
    fn a_mean_of_seconds_that_hang_together_gets_a_wider_interval() {
        let mut rng = SmallRng::seed_from_u64(3);
        let noise: Vec<f64> = (0..600).map(|_| rng.sample(StandardNormal)).collect();
        let mut walk = 0.0;
        let sluggish: Vec<f64> = noise
            .iter()
            .map(|x| {
                walk = 0.8 * walk + 0.6 * x;
                walk
            })
            .collect();
        let width = |(low, high): (f64, f64)| high - low;
        let (plain, wide) = (mean_interval(&noise, 1), mean_interval(&sluggish, 1));
        let expected = 2.0 * Z95 / 600f64.sqrt();
        assert!((width(plain) / expected - 1.0).abs() < 0.15, "{plain:?}");
        assert!(width(wide) > 1.7 * width(plain), "{wide:?} {plain:?}");
    }

    #[test]
    fn alike_is_told_from_different() {
        let (a, same, slower) =
            (lognormal(1e5, 5_000, 1), lognormal(1e5, 5_000, 2), lognormal(1.1e5, 5_000, 3));
        let ranked = mann_whitney(&a, &same).unwrap();
        assert!(ranked.p > 0.01 && (ranked.superiority - 0.5).abs() < 0.03, "{ranked:?}");
        let ranked = mann_whitney(&a, &slower).unwrap();
        assert!(ranked.p < 1e-6 && ranked.superiority > 0.55, "{ranked:?}");
        let (low, high) = quantile_difference_interval(&a, &slower, 0.5, 1).unwrap();
        // The standard error is 790: an interval of 3,100 about 10,000.
        let (middle, width) = ((low + high) / 2.0, high - low);
        assert!((7_600.0..12_400.0).contains(&middle), "{low} {high}");
        assert!((2_500.0..3_700.0).contains(&width), "{low} {high}");
        let (low, high) = quantile_difference_interval(&a, &same, 0.5, 1).unwrap();
        assert!(low < 0.0 && high > 0.0, "{low} {high}");
    }

    #[test]
    fn mann_whitney_agrees_with_the_textbook_on_ties() {
        // Worked by hand: of 9 pairs, 6 are won and 2 are ties.
        let ranked = mann_whitney(&buckets(vec![1, 2, 3]), &buckets(vec![3, 4, 2])).unwrap();
        assert!((ranked.superiority - 7.0 / 9.0).abs() < 1e-9, "{ranked:?}");
        let all_same = mann_whitney(&buckets(vec![5; 9]), &buckets(vec![5; 4])).unwrap();
        assert_eq!(all_same, RankTest { superiority: 0.5, p: 1.0 });
    }

    #[test]
    fn shares_are_compared_by_their_pooled_error() {
        let p = two_proportion_test((10, 100), (20, 100)).unwrap();
        assert!((p - 0.0477).abs() < 0.001, "{p}");
        assert_eq!(two_proportion_test((0, 50), (0, 50)), Some(1.0));
        assert_eq!(two_proportion_test((0, 0), (0, 50)), None);
    }
}
