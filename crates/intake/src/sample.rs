//! The first jobs of an input, in memory: real prompts without a batch.

use super::batch_file::{LineOptions, read_line};
use super::source::{InputSource, InputSourceError, LineReader};
use super::{InputFault, LineFault};
use domain::job::{BatchId, Job};

/// Reason why no jobs can be read from an input.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    #[error(transparent)]
    Source(#[from] InputSourceError),
    #[error("{0}")]
    Line(InputFault),
}

/// Reads up to `most` jobs from the start of a source.
///
/// # Errors
/// If the source can't be read, has no line, or has a line that is no job.
pub fn sample(
    source: &InputSource,
    reading: &LineOptions,
    batch: &BatchId,
    most: usize,
) -> Result<Vec<Job>, SampleError> {
    let fault = |line, what| {
        SampleError::Line(InputFault {
            file: source.to_string(),
            line,
            custom_id: None,
            kind: what,
        })
    };
    let mut lines = LineReader::open(source)?;
    let mut jobs = Vec::new();
    while jobs.len() < most
        && let Some(line) = lines.next()?
    {
        let text = line.checked(reading.max_line_bytes).map_err(|what| fault(line.number, what))?;
        let read = read_line(text, reading).map_err(|what| fault(line.number, what))?;
        jobs.push(read.into_job(batch, jobs.len() as u64));
    }
    if jobs.is_empty() {
        return Err(fault(0, LineFault::EmptyFile));
    }
    Ok(jobs)
}
