//! What an input asks for: its tokens by model, how they are spread, and the jobs for the trials.

use std::collections::BTreeMap;
use std::io;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::PlanError;
use super::spool::{Load, Spool, Writer};
use intake::{self, Checked, Reading, Source};

/// Models that are told apart.
const MOST_MODELS: usize = u16::MAX as usize;

/// What the jobs of one model ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Asked {
    pub model: String,
    pub jobs: u64,
    pub prompt: u64,
    /// The most that they may answer.
    pub max_output: u64,
}

/// How something is spread over the jobs, to 0.1 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    pub mean: f64,
    pub min: u64,
    pub p50: u64,
    pub p95: u64,
    pub max: u64,
}

/// A counted input.
pub struct Counted {
    pub jobs: u64,
    /// In the order in which they came up; a `Load` names its place here.
    pub models: Vec<Asked>,
    /// Prompt tokens of each job, and what it is booked with.
    pub prompt: Spread,
    pub charge: Spread,
    pub spool: Spool,
}

/// Counts the jobs of an input that was checked.
///
/// # Errors
/// If the input or the temporary file fails.
pub fn count(
    sources: &[Source],
    reading: &Reading,
    checked: &Checked,
    told: &mut dyn FnMut(u64),
) -> Result<Counted, PlanError> {
    let mut tally = Tally {
        models: Vec::new(),
        by_name: BTreeMap::new(),
        jobs: 0,
        prompt: histogram(),
        charge: histogram(),
        writer: Writer::new().map_err(PlanError::Temporary)?,
    };
    let mut failed = Ok(());
    intake::weigh(sources, reading, checked, |some| {
        if failed.is_ok() {
            failed = tally.add(some);
            told(tally.jobs);
        }
    })?;
    failed.map_err(PlanError::Temporary)?;
    if tally.jobs != checked.jobs {
        return Err(PlanError::InputChanged { checked: checked.jobs, now: tally.jobs });
    }
    Ok(Counted {
        jobs: tally.jobs,
        prompt: Spread::of(&tally.prompt),
        charge: Spread::of(&tally.charge),
        models: tally.models,
        spool: tally.writer.finish().map_err(PlanError::Temporary)?,
    })
}

struct Tally {
    models: Vec<Asked>,
    by_name: BTreeMap<String, u16>,
    jobs: u64,
    prompt: Histogram<u64>,
    charge: Histogram<u64>,
    writer: Writer,
}

impl Tally {
    fn add(&mut self, some: &intake::Weighed) -> io::Result<()> {
        let places: Vec<u16> = some.models.iter().map(|model| self.place(model)).collect();
        for job in &some.jobs {
            let place = places[job.model];
            let asked = &mut self.models[usize::from(place)];
            asked.jobs += 1;
            asked.prompt += u64::from(job.estimate.prompt);
            asked.max_output += u64::from(job.estimate.max_output);
            self.jobs += 1;
            note(&mut self.prompt, job.estimate.prompt.into());
            note(&mut self.charge, job.estimate.charge());
            self.writer.add(Load::new(job, place))?;
        }
        Ok(())
    }

    /// Whatever is beyond the most is counted with the last.
    fn place(&mut self, model: &str) -> u16 {
        if let Some(known) = self.by_name.get(model) {
            return *known;
        }
        if self.models.len() < MOST_MODELS {
            self.models.push(Asked { model: model.to_owned(), ..Asked::default() });
        }
        let place = u16::try_from(self.models.len() - 1).unwrap_or(u16::MAX);
        self.by_name.insert(model.to_owned(), place);
        place
    }
}

/// The histogram grows with what it gets: a value that is recorded saturating would be cut off.
fn note(histogram: &mut Histogram<u64>, value: u64) {
    histogram.record(value).expect("it grows to any value");
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are no fault")
}

impl Spread {
    fn of(histogram: &Histogram<u64>) -> Self {
        Self {
            mean: histogram.mean(),
            min: histogram.min(),
            p50: histogram.value_at_quantile(0.5),
            p95: histogram.value_at_quantile(0.95),
            max: histogram.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_prompt_is_told_as_large_as_it_is() {
        let mut histogram = histogram();
        [800, 2_200, 120_000].into_iter().for_each(|tokens| note(&mut histogram, tokens));
        let Spread { mean, min, p50, max, .. } = Spread::of(&histogram);
        assert!((mean / 41_000.0 - 1.0).abs() < 1e-3, "{mean}");
        assert!(min == 800 && p50.abs_diff(2_200) <= 2 && max >= 120_000, "{min}, {p50}, {max}");
    }
}
