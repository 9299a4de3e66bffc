//! Counts an input: its tokens by model, their distribution, and the jobs for the trials.

use std::collections::BTreeMap;
use std::io;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::error::PlanError;
use super::spool::{JobSpool, SpoolWriter, SpooledJob};
use intake::{self, CheckReport, InputSource, LineOptions};

/// Limit of distinct models.
const MAX_MODELS: usize = u16::MAX as usize;

/// Jobs and tokens of one model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ModelDemand {
    pub model: String,
    pub jobs: u64,
    pub prompt: u64,
    /// Most that they may answer.
    pub max_output: u64,
}

/// Distribution of a token count over the jobs, to 0.1 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenSpread {
    pub mean: f64,
    pub min: u64,
    pub p50: u64,
    pub p95: u64,
    pub max: u64,
}

/// Counted input.
pub struct CountedInput {
    pub jobs: u64,
    /// Models in the order of their first job; a `SpooledJob` refers to an index here.
    pub models: Vec<ModelDemand>,
    /// Prompt tokens of each job, and the tokens it is booked with.
    pub prompt: TokenSpread,
    pub charge: TokenSpread,
    pub spool: JobSpool,
}

/// Counts the jobs of an input that was checked.
///
/// # Errors
/// If the input or the temporary file fails.
pub fn count(
    sources: &[InputSource],
    reading: &LineOptions,
    checked: &CheckReport,
    on_progress: &mut dyn FnMut(u64),
) -> Result<CountedInput, PlanError> {
    let mut tally = PlanTally {
        models: Vec::new(),
        by_name: BTreeMap::new(),
        jobs: 0,
        prompt: histogram(),
        charge: histogram(),
        writer: SpoolWriter::new().map_err(PlanError::Temporary)?,
    };
    let mut failed = Ok(());
    intake::count_tokens(sources, reading, checked, |some| {
        if failed.is_ok() {
            failed = tally.add(some);
            on_progress(tally.jobs);
        }
    })?;
    failed.map_err(PlanError::Temporary)?;
    if tally.jobs != checked.jobs {
        return Err(PlanError::InputChanged { checked: checked.jobs, now: tally.jobs });
    }
    Ok(CountedInput {
        jobs: tally.jobs,
        prompt: TokenSpread::of(&tally.prompt),
        charge: TokenSpread::of(&tally.charge),
        models: tally.models,
        spool: tally.writer.finish().map_err(PlanError::Temporary)?,
    })
}

struct PlanTally {
    models: Vec<ModelDemand>,
    by_name: BTreeMap<String, u16>,
    jobs: u64,
    prompt: Histogram<u64>,
    charge: Histogram<u64>,
    writer: SpoolWriter,
}

impl PlanTally {
    fn add(&mut self, some: &intake::JobSizes) -> io::Result<()> {
        let places: Vec<u16> = some.models.iter().map(|model| self.model_index(model)).collect();
        for job in &some.jobs {
            let place = places[job.model];
            let asked = &mut self.models[usize::from(place)];
            asked.jobs += 1;
            asked.prompt += u64::from(job.estimate.prompt);
            asked.max_output += u64::from(job.estimate.max_output);
            self.jobs += 1;
            record(&mut self.prompt, job.estimate.prompt.into());
            record(&mut self.charge, job.estimate.charge());
            self.writer.add(SpooledJob::new(job, place))?;
        }
        Ok(())
    }

    /// Returns the model's index; models beyond the limit are counted with the last.
    fn model_index(&mut self, model: &str) -> u16 {
        if let Some(known) = self.by_name.get(model) {
            return *known;
        }
        if self.models.len() < MAX_MODELS {
            self.models.push(ModelDemand { model: model.to_owned(), ..ModelDemand::default() });
        }
        let place = u16::try_from(self.models.len() - 1).unwrap_or(u16::MAX);
        self.by_name.insert(model.to_owned(), place);
        place
    }
}

/// Records a value. The histogram grows: a saturating record would cut large values off.
fn record(histogram: &mut Histogram<u64>, value: u64) {
    histogram.record(value).expect("it grows to any value");
}

fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are no fault")
}

impl TokenSpread {
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
        [800, 2_200, 120_000].into_iter().for_each(|tokens| record(&mut histogram, tokens));
        let TokenSpread { mean, min, p50, max, .. } = TokenSpread::of(&histogram);
        assert!((mean / 41_000.0 - 1.0).abs() < 1e-3, "{mean}");
        assert!(min == 800 && p50.abs_diff(2_200) <= 2 && max >= 120_000, "{min}, {p50}, {max}");
    }
}
