//! The first jobs of an input, in memory: for those who want some real prompts and no batch.

use super::batch_file::{Reading, read_line};
use super::source::{Lines, Source, SourceError};
use super::{Fault, LineFault};
use domain::job::{BatchId, Job};

/// Why no jobs can be had from an input.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{0}")]
    Line(Fault),
}

/// Reads up to `most` jobs from the start of a source.
///
/// # Errors
/// If the source can't be read, has no line, or has a line that is no job.
pub fn sample(
    source: &Source,
    reading: &Reading,
    batch: &BatchId,
    most: usize,
) -> Result<Vec<Job>, SampleError> {
    let fault = |line, what| SampleError::Line(Fault { file: source.to_string(), line, what });
    let mut lines = Lines::open(source)?;
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
