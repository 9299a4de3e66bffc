//! Learns from past outcomes: call times of each deployment, and answer lengths of each model.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::latency::{CallLatency, CallProfile};
use domain::job::BatchId;
use domain::outcome::OutcomeStatus;
use store::{OutcomeSummary, Store, StoreError};

/// Outcomes kept of each deployment and each model: memory is bounded for any batch.
const SAMPLE_SIZE: usize = 1 << 16;

/// Least number of answers to learn from; fewer would reflect chance.
const MIN_ANSWERS: usize = 10;

/// Tokens and seconds of an answer.
type CallObservation = (u32, f32);

/// Learns from a batch's answers; returns their number.
///
/// # Errors
/// If the store fails.
pub async fn learn(
    profile: &mut CallProfile,
    store: &dyn Store,
    batch: &BatchId,
) -> Result<u64, StoreError> {
    let mut samples = OutcomeSamples::default();
    let mut briefs = store.outcome_summaries(batch).await?;
    while let Some(brief) = briefs.try_next().await? {
        samples.observe(&brief);
    }
    let answers = samples.by_model.values().map(|sample| sample.total).sum();
    samples.apply_to(profile, batch);
    Ok(answers)
}

#[derive(Default)]
struct OutcomeSamples {
    by_deployment: BTreeMap<String, ReservoirSample<CallObservation>>,
    by_model: BTreeMap<String, ReservoirSample<u32>>,
}

impl OutcomeSamples {
    fn observe(&mut self, brief: &OutcomeSummary) {
        if brief.ending != Some(OutcomeStatus::Succeeded) {
            return;
        }
        let tokens = u32::try_from(brief.usage.completion).unwrap_or(u32::MAX);
        let seconds = brief.latency_ms as f32 / 1e3;
        sample(&mut self.by_deployment, &brief.deployment).add((tokens, seconds));
        sample(&mut self.by_model, &brief.model).add(tokens);
    }

    fn apply_to(self, profile: &mut CallProfile, batch: &BatchId) {
        let mut all = Vec::new();
        for (deployment, sample) in self.by_deployment {
            all.extend_from_slice(&sample.values);
            if let Some(line) = fit(&sample.values, sample.total) {
                let seen = sample.total;
                profile
                    .learnt
                    .push(format!("{line} at {deployment}, by {seen} answers of batch {batch}"));
                profile.latency.by_deployment.insert(deployment, line);
            }
        }
        if let Some(line) = fit(&all, all.len() as u64) {
            profile.latency.others = line;
        }
        for (model, mut sample) in self.by_model {
            let mean = sample.values.iter().map(|n| f64::from(*n)).sum::<f64>()
                / sample.values.len().max(1) as f64;
            let seen = sample.total;
            profile.learnt.push(format!(
                "answers of {model} have {mean:.1} tokens, by {seen} of batch {batch}"
            ));
            sample.values.shuffle(&mut sample.rng);
            profile.answers.by_model.insert(model, sample.values);
        }
    }
}

fn sample<'m, T>(
    of: &'m mut BTreeMap<String, ReservoirSample<T>>,
    name: &str,
) -> &'m mut ReservoirSample<T> {
    if !of.contains_key(name) {
        of.insert(name.to_owned(), ReservoirSample::default());
    }
    of.get_mut(name).expect("it was put there")
}

/// Uniform random sample of a stream (Vitter's algorithm R).
struct ReservoirSample<T> {
    values: Vec<T>,
    total: u64,
    rng: SmallRng,
}

impl<T> Default for ReservoirSample<T> {
    fn default() -> Self {
        Self { values: Vec::new(), total: 0, rng: SmallRng::seed_from_u64(0) }
    }
}

impl<T> ReservoirSample<T> {
    fn add(&mut self, value: T) {
        self.total += 1;
        if self.values.len() < SAMPLE_SIZE {
            self.values.push(value);
            return;
        }
        let place = self.rng.random_range(0..self.total) as usize;
        if let Some(kept) = self.values.get_mut(place) {
            *kept = value;
        }
    }
}

/// Fits a line by least squares, and the spread of calls around it by their ratio. They are a
/// sample of `of` answers.
fn fit(seen: &[CallObservation], of: u64) -> Option<CallLatency> {
    if seen.len() < MIN_ANSWERS {
        return None;
    }
    let n = seen.len() as f64;
    let mean = |of: &dyn Fn(&CallObservation) -> f64| seen.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(&|s| f64::from(s.0)), mean(&|s| f64::from(s.1)));
    let xx = mean(&|s| (f64::from(s.0) - x).powi(2));
    let xy = mean(&|s| (f64::from(s.0) - x) * (f64::from(s.1) - y));
    let slope = if xx > 0.0 { (xy / xx).max(0.0) } else { 0.0 };
    let (first, per_token) = match y - slope * x {
        first if first >= 0.0 => (first, slope),
        // A call can't take less than nothing: fit through the origin.
        _ => (0.0, y / x),
    };
    let yy = mean(&|s| (f64::from(s.1) - y).powi(2));
    let error = if y > 0.0 { (yy / of as f64).sqrt() / y } else { 0.0 };
    let line = CallLatency { first, per_token, spread: 0.0, error };
    let off = |s: &CallObservation| (f64::from(s.1).max(1e-3) / line.mean(s.0).max(1e-3)).ln();
    let centre = mean(&off);
    let spread = mean(&|s| (off(s) - centre).powi(2)).sqrt().min(2.0);
    Some(CallLatency { spread, ..line })
}

#[cfg(test)]
mod tests {
    use rand_distr::{Distribution, StandardNormal};

    use super::*;

    #[test]
    fn what_calls_take_is_found_again() {
        let known = CallLatency { first: 0.4, per_token: 0.012, spread: 0.25, error: 0.0 };
        let mut dice = SmallRng::seed_from_u64(5);
        let seen: Vec<CallObservation> = (0..20_000)
            .map(|_| {
                let tokens = dice.random_range(1..400);
                (tokens, known.draw(tokens, StandardNormal.sample(&mut dice)) as f32)
            })
            .collect();
        let found = fit(&seen, 20_000).unwrap();
        assert!((found.first - 0.4).abs() < 0.03, "{found:?}");
        assert!((found.per_token / 0.012 - 1.0).abs() < 0.02, "{found:?}");
        assert!((found.spread - 0.25).abs() < 0.01, "{found:?}");
        assert!(
            (0.003..0.005).contains(&found.error),
            "about 0.55 of a mean by root 20,000: {found:?}"
        );
        let mean = seen.iter().map(|s| f64::from(s.1)).sum::<f64>() / seen.len() as f64;
        let told = seen.iter().map(|s| found.mean(s.0)).sum::<f64>() / seen.len() as f64;
        assert!((mean / told - 1.0).abs() < 1e-4, "the time of all together is kept");
    }

    #[test]
    fn calls_that_all_have_no_answer_teach_one_time() {
        let found = fit(&[(0, 0.2); 50], 50).unwrap();
        assert!((found.first - 0.2).abs() < 1e-6 && found.per_token == 0.0, "{found:?}");
        assert!(found.spread < 1e-6 && found.error < 1e-6);
        assert_eq!(fit(&[(5, 1.0); 9], 9), None, "so few tell of chance");
    }

    #[test]
    fn a_sample_of_many_is_like_all_of_them() {
        let mut sample = ReservoirSample::default();
        (0..500_000_u32).for_each(|n| sample.add(n));
        let mean = sample.values.iter().map(|n| f64::from(*n)).sum::<f64>() / SAMPLE_SIZE as f64;
        assert_eq!((sample.values.len(), sample.total), (SAMPLE_SIZE, 500_000));
        assert!((mean / 250_000.0 - 1.0).abs() < 0.01, "{mean}");
    }
}
