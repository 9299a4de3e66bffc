//! What past outcomes teach: how long calls took at each deployment, and how long each model's answers
//! were.

use std::collections::BTreeMap;

use futures_util::TryStreamExt;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use super::latency::{Experience, Line};
use domain::job::BatchId;
use domain::outcome::Ending;
use store::{Brief, Store, StoreError};

/// Outcomes that are kept of each deployment and each model: memory is bounded, whatever the batch.
const KEPT: usize = 1 << 16;

/// Fewer tell of chance.
const ENOUGH: usize = 10;

/// An answer: its tokens, and the seconds it took.
type Seen = (u32, f32);

/// Learns from a batch's answers; returns how many there are.
///
/// # Errors
/// What the store said.
pub async fn learn(
    experience: &mut Experience,
    store: &dyn Store,
    batch: &BatchId,
) -> Result<u64, StoreError> {
    let mut kept = Kept::default();
    let mut briefs = store.briefs(batch).await?;
    while let Some(brief) = briefs.try_next().await? {
        kept.hear(&brief);
    }
    let answers = kept.by_model.values().map(|sample| sample.seen).sum();
    kept.teach(experience, batch);
    Ok(answers)
}

#[derive(Default)]
struct Kept {
    by_deployment: BTreeMap<String, Sample<Seen>>,
    by_model: BTreeMap<String, Sample<u32>>,
}

impl Kept {
    fn hear(&mut self, brief: &Brief) {
        if brief.ending != Some(Ending::Succeeded) {
            return;
        }
        let tokens = u32::try_from(brief.usage.completion).unwrap_or(u32::MAX);
        let seconds = brief.latency_ms as f32 / 1e3;
        sample(&mut self.by_deployment, &brief.deployment).add((tokens, seconds));
        sample(&mut self.by_model, &brief.model).add(tokens);
    }

    fn teach(self, experience: &mut Experience, batch: &BatchId) {
        let mut all = Vec::new();
        for (deployment, sample) in self.by_deployment {
            all.extend_from_slice(&sample.kept);
            if let Some(line) = fit(&sample.kept, sample.seen) {
                let seen = sample.seen;
                experience
                    .learnt
                    .push(format!("{line} at {deployment}, by {seen} answers of batch {batch}"));
                experience.latency.by_deployment.insert(deployment, line);
            }
        }
        if let Some(line) = fit(&all, all.len() as u64) {
            experience.latency.others = line;
        }
        for (model, mut sample) in self.by_model {
            let mean = sample.kept.iter().map(|n| f64::from(*n)).sum::<f64>()
                / sample.kept.len().max(1) as f64;
            let seen = sample.seen;
            experience.learnt.push(format!(
                "answers of {model} have {mean:.1} tokens, by {seen} of batch {batch}"
            ));
            sample.kept.shuffle(&mut sample.dice);
            experience.answers.by_model.insert(model, sample.kept);
        }
    }
}

fn sample<'m, T>(of: &'m mut BTreeMap<String, Sample<T>>, name: &str) -> &'m mut Sample<T> {
    if !of.contains_key(name) {
        of.insert(name.to_owned(), Sample::default());
    }
    of.get_mut(name).expect("it was put there")
}

/// Some of many, each as likely as any other (Vitter's algorithm R).
struct Sample<T> {
    kept: Vec<T>,
    seen: u64,
    dice: SmallRng,
}

impl<T> Default for Sample<T> {
    fn default() -> Self {
        Self { kept: Vec::new(), seen: 0, dice: SmallRng::seed_from_u64(0) }
    }
}

impl<T> Sample<T> {
    fn add(&mut self, value: T) {
        self.seen += 1;
        if self.kept.len() < KEPT {
            self.kept.push(value);
            return;
        }
        let place = self.dice.random_range(0..self.seen) as usize;
        if let Some(kept) = self.kept.get_mut(place) {
            *kept = value;
        }
    }
}

/// The straight line with the least squares, and how far calls are off it, by their ratio. They are a
/// sample of so many answers.
fn fit(seen: &[Seen], of: u64) -> Option<Line> {
    if seen.len() < ENOUGH {
        return None;
    }
    let n = seen.len() as f64;
    let mean = |of: &dyn Fn(&Seen) -> f64| seen.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(&|s| f64::from(s.0)), mean(&|s| f64::from(s.1)));
    let xx = mean(&|s| (f64::from(s.0) - x).powi(2));
    let xy = mean(&|s| (f64::from(s.0) - x) * (f64::from(s.1) - y));
    let slope = if xx > 0.0 { (xy / xx).max(0.0) } else { 0.0 };
    let (first, per_token) = match y - slope * x {
        first if first >= 0.0 => (first, slope),
        // No call takes less than nothing: through the origin then.
        _ => (0.0, y / x),
    };
    let yy = mean(&|s| (f64::from(s.1) - y).powi(2));
    let error = if y > 0.0 { (yy / of as f64).sqrt() / y } else { 0.0 };
    let line = Line { first, per_token, spread: 0.0, error };
    let off = |s: &Seen| (f64::from(s.1).max(1e-3) / line.mean(s.0).max(1e-3)).ln();
    let centre = mean(&off);
    let spread = mean(&|s| (off(s) - centre).powi(2)).sqrt().min(2.0);
    Some(Line { spread, ..line })
}

#[cfg(test)]
mod tests {
    use rand_distr::{Distribution, StandardNormal};

    use super::*;

    #[test]
    fn what_calls_take_is_found_again() {
        let known = Line { first: 0.4, per_token: 0.012, spread: 0.25, error: 0.0 };
        let mut dice = SmallRng::seed_from_u64(5);
        let seen: Vec<Seen> = (0..20_000)
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
        let mut sample = Sample::default();
        (0..500_000_u32).for_each(|n| sample.add(n));
        let mean = sample.kept.iter().map(|n| f64::from(*n)).sum::<f64>() / KEPT as f64;
        assert_eq!((sample.kept.len(), sample.seen), (KEPT, 500_000));
        assert!((mean / 250_000.0 - 1.0).abs() < 0.01, "{mean}");
    }
}
