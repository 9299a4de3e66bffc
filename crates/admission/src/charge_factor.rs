//! Charge factor: the service's charge for one token of ours, from its `remaining` headers.
//!
//! Sorted by the remaining tokens, a window's answers stand in the order in which the service
//! booked them. The step from one to the next is the cost of the later one, unless an unknown call
//! lies between: somebody else's, or one of ours without an answer. Such steps are too large and
//! never too small, and they scatter; the correct steps lie close together. So the factor is the
//! mean over the densest part of the steps.

/// Steps needed for an estimate.
const ENOUGH: usize = 12;

/// Share of the steps that makes up the densest part.
const DENSEST: f64 = 0.2;

/// Relative distance from the densest part up to which steps still count as correct: the service's
/// estimate of a prompt differs from ours by job.
const NEAR: f64 = 0.25;

/// One answer: the tokens left after its booking, and our charge for it.
#[derive(Debug, Clone, Copy)]
pub struct ChargeSample {
    pub left: f64,
    pub charge: f64,
}

/// Estimates the factor, if the samples of one window suffice.
pub fn estimate_factor(samples: &mut [ChargeSample]) -> Option<f64> {
    samples.sort_unstable_by(|a, b| b.left.total_cmp(&a.left));
    let step = |pair: &[ChargeSample]| (pair[0].left - pair[1].left, pair[1].charge);
    let steps =
        || samples.windows(2).map(step).filter(|(step, charge)| *step > 0.0 && *charge > 0.0);
    let mut ratios: Vec<f64> = steps().map(|(step, charge)| step / charge).collect();
    if ratios.len() < ENOUGH {
        return None;
    }
    ratios.sort_unstable_by(f64::total_cmp);
    let mode = densest(&ratios);
    let near = |(step, charge): &(f64, f64)| (step / charge / mode - 1.0).abs() <= NEAR;
    let (cost, charge) = steps().filter(near).fold((0.0, 0.0), |(a, b), (s, c)| (a + s, b + c));
    (charge > 0.0).then(|| cost / charge)
}

/// Returns the middle of the shortest stretch of sorted numbers, by their ratio, that holds its
/// share.
fn densest(sorted: &[f64]) -> f64 {
    let span = ((sorted.len() as f64 * DENSEST) as usize).max(ENOUGH / 3);
    let tightest = sorted.windows(span).min_by(|a, b| {
        let width = |stretch: &[f64]| stretch[span - 1] / stretch[0];
        width(a).total_cmp(&width(b))
    });
    tightest.map_or(1.0, |stretch| stretch[span / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers to calls that the service books at `factor`, each after `between` tokens of others.
    fn samples(factor: f64, between: impl Fn(usize) -> f64) -> Vec<ChargeSample> {
        let mut left = 1_000_000.0;
        let charge = |n: usize| [50.0, 8_000.0, 1_200.0, 300.0][n % 4];
        let answers = (0..80).map(|n| {
            left -= between(n) + (charge(n) * factor).ceil();
            ChargeSample { left, charge: charge(n) }
        });
        let mut answers: Vec<_> = answers.collect();
        // They come in any order.
        answers.sort_by_key(|sample| (sample.left as u64).wrapping_mul(0x9E37_79B9) % 1_009);
        answers
    }

    #[test]
    fn the_factor_is_found_whatever_the_order_of_the_answers() {
        for factor in [0.6, 1.0, 1.5] {
            let found = estimate_factor(&mut samples(factor, |_| 0.0)).unwrap();
            assert!((found / factor - 1.0).abs() < 0.01, "{factor}: {found}");
        }
    }

    #[test]
    fn what_others_book_in_between_is_not_taken_for_ours() {
        let others = |n: usize| if n.is_multiple_of(3) { 0.0 } else { 137.0 * (n % 11) as f64 };
        let found = estimate_factor(&mut samples(1.5, others)).unwrap();
        assert!((found / 1.5 - 1.0).abs() < 0.05, "{found}");
    }

    #[test]
    fn calls_without_an_answer_do_not_mislead_it() {
        let mut answers = samples(0.6, |_| 0.0);
        let mut n = 0;
        answers.retain(|_| {
            n += 1;
            n % 4 != 0
        });
        let found = estimate_factor(&mut answers).unwrap();
        assert!((found / 0.6 - 1.0).abs() < 0.05, "{found}");
    }

    #[test]
    fn a_few_answers_say_nothing() {
        assert_eq!(estimate_factor(&mut samples(1.0, |_| 0.0)[..5]), None);
    }
}
