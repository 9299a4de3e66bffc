//! The counting pass: model and tokens of each job, in the order of the input, on all cores.
//!
//! It finds the same jobs as `enqueue` and counts their tokens by the same code, and keeps nothing
//! of their text. One thread reads; chunks of lines are dealt to the others in turn and taken back
//! in turn, so that the order stays without being sorted.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use jiff::Timestamp;

use super::batch_file::{LineOptions, read_line};
use super::check::CheckReport;
use super::source::{InputLine, InputSource, InputSourceError, LineReader};
use domain::job::TokenEstimate;

/// Text that is dealt at a time: some milliseconds of counting.
const CHUNK_BYTES: usize = 256 * 1024;

/// Chunks that wait before and after each thread.
const WAITING: usize = 2;

/// Model, tokens and times of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobSize {
    /// Index into [`JobSizes::models`].
    pub model: usize,
    pub estimate: TokenEstimate,
    pub priority: i32,
    pub deadline: Option<Timestamp>,
    pub not_before: Option<Timestamp>,
}

/// Sizes of consecutive jobs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct JobSizes {
    /// Models that they request.
    pub models: Vec<String>,
    pub jobs: Vec<JobSize>,
}

/// Lines that are counted in one go: their text, and where each ends.
#[derive(Default)]
struct LineChunk {
    text: Vec<u8>,
    ends: Vec<usize>,
}

/// Counts the tokens of the jobs of a checked input; `take` gets them in its order.
///
/// # Errors
/// If a source can't be read any more.
pub fn count_tokens(
    sources: &[InputSource],
    reading: &LineOptions,
    checked: &CheckReport,
    mut take: impl FnMut(&JobSizes),
) -> Result<(), InputSourceError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        let mut dealt = Vec::with_capacity(cores);
        let mut counted = Vec::with_capacity(cores);
        for _ in 0..cores {
            let (deal, chunks) = sync_channel::<LineChunk>(WAITING);
            let (give, results) = sync_channel(WAITING);
            scope.spawn(move || count(&chunks, &give, reading));
            dealt.push(deal);
            counted.push(results);
        }
        let reader = scope.spawn(move || read(sources, checked, &dealt));
        // The first without another result is the one whose turn it is when all are done.
        for turn in (0..cores).cycle() {
            match counted[turn].recv() {
                Ok(weighed) => take(&weighed),
                Err(_) => break,
            }
        }
        // No receiver is left if it ended early.
        drop(counted);
        reader.join().expect("reading lines does not panic")
    })
}

fn read(
    sources: &[InputSource],
    checked: &CheckReport,
    deal: &[SyncSender<LineChunk>],
) -> Result<(), InputSourceError> {
    let mut chunk = LineChunk::default();
    let mut turns = deal.iter().cycle();
    let mut ordinal = 0;
    let mut send = |chunk: LineChunk| turns.next().is_some_and(|to| to.send(chunk).is_ok());
    for source in sources {
        let mut lines = LineReader::open(source)?;
        while let Some(line) = lines.next()? {
            let is_repeated = checked.repeated.binary_search(&ordinal).is_ok();
            ordinal += 1;
            if is_repeated {
                continue;
            }
            chunk.text.extend_from_slice(line.bytes);
            chunk.ends.push(chunk.text.len());
            if chunk.text.len() >= CHUNK_BYTES && !send(std::mem::take(&mut chunk)) {
                return Ok(());
            }
        }
    }
    if !chunk.ends.is_empty() {
        send(chunk);
    }
    Ok(())
}

fn count(chunks: &Receiver<LineChunk>, give: &SyncSender<JobSizes>, reading: &LineOptions) {
    while let Ok(chunk) = chunks.recv() {
        if give.send(chunk.job_sizes(reading)).is_err() {
            return;
        }
    }
}

impl LineChunk {
    fn job_sizes(&self, reading: &LineOptions) -> JobSizes {
        let mut weighed = JobSizes::default();
        let mut begin = 0;
        for end in &self.ends {
            let line = InputLine { bytes: &self.text[begin..*end], number: 0 };
            begin = *end;
            // Invalid lines were reported by the pass before.
            let text = line.checked(reading.max_line_bytes);
            let Ok(job) = text.and_then(|text| read_line(text, reading)) else { continue };
            let known = weighed.models.iter().position(|model| *model == job.model);
            let model = known.unwrap_or_else(|| {
                weighed.models.push(job.model.to_string());
                weighed.models.len() - 1
            });
            weighed.jobs.push(JobSize {
                model,
                estimate: job.estimate(),
                priority: job.priority,
                deadline: job.deadline,
                not_before: job.not_before,
            });
        }
        weighed
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::check;
    use super::*;

    fn reading() -> LineOptions {
        LineOptions {
            default_model: None,
            models: None,
            must_limit_output: false,
            max_line_bytes: 1 << 20,
            terms: super::super::BatchTerms::default(),
        }
    }

    #[test]
    fn every_job_is_weighed_once_and_in_its_order() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let filler = "word ".repeat(40);
        for n in 0..5_000 {
            // Every hundredth repeats the name of the one before it, and one line is no job.
            let id = if n % 100 == 99 { n - 1 } else { n };
            let model = ["a", "b"][n % 2];
            writeln!(
                file,
                r#"{{"custom_id":"{id}","url":"/v1/chat/completions","priority":{n},"body":{{"model":"{model}","max_tokens":{n},"messages":[{{"role":"user","content":"{filler}"}}]}}}}"#
            )
            .unwrap();
        }
        writeln!(file, "no job").unwrap();
        let sources = [InputSource::File(file.path().to_owned())];
        let checked = check(&sources, &reading(), std::env::temp_dir()).unwrap();
        let mut seen = Vec::new();
        count_tokens(&sources, &reading(), &checked, |some| {
            seen.extend(some.jobs.iter().map(|job| (job.priority, some.models[job.model].clone())));
            let jobs = some.jobs.iter();
            jobs.for_each(|job| assert_eq!(job.estimate.max_output as i32, job.priority));
        })
        .unwrap();
        let expected = (0..5_000).filter(|n| n % 100 != 99);
        let expected: Vec<_> = expected.map(|n| (n, ["a", "b"][n as usize % 2].into())).collect();
        assert_eq!((seen, checked.jobs), (expected, 4_950));
    }
}
