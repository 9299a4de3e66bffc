//! The first pass: reads the whole input and reports its faults.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;

use xxhash_rust::xxh3::Xxh3;

use super::batch_file::{LineOptions, custom_id_of, read_line};
use super::duplicates::{self, DuplicateFinder, DuplicatePair};
use super::fault::{InputFault, LineFault};
use super::source::{InputLine, InputSource, InputSourceError, LineReader};
use domain::job::BatchId;

/// Faults that are kept to be shown in full; all of them are counted.
const SHOWN_FAULTS: usize = 20;

/// Reason why the input could not be checked at all.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Source(#[from] InputSourceError),
    #[error("can't keep track of the input's custom_ids in a temporary file")]
    Temporary(#[source] io::Error),
}

/// Result of the first pass.
#[derive(Debug)]
pub struct CheckReport {
    /// Lines that are jobs.
    pub jobs: u64,
    /// All lines of all sources.
    pub lines: u64,
    /// Lines that are not jobs.
    pub faults: u64,
    /// The first faults.
    pub first_faults: Vec<InputFault>,
    /// Models that its jobs request.
    pub models: BTreeSet<String>,
    /// Harmless oddities, one sentence each.
    pub notes: Vec<String>,
    /// Fingerprint of the whole input and of how it is read.
    pub fingerprint: u64,
    /// All faults as lines of the error file.
    pub(super) fault_lines: tempfile::SpooledTempFile,
    /// Ordinals of the lines that repeat a custom_id, in order.
    pub(super) repeated: Vec<u64>,
}

impl CheckReport {
    /// Returns a batch name that only this input gets, and always: so that running it again
    /// resumes.
    pub fn batch_name(&self, sources: &[InputSource]) -> BatchId {
        let stem = sources.first().map_or_else(String::new, InputSource::stem);
        let legal = |c: char| if c.is_alphanumeric() || "-_".contains(c) { c } else { '-' };
        let stem: String = stem.chars().take(60).map(legal).collect();
        let name = format!("{stem}-{:016x}", self.fingerprint);
        name.parse().expect("made of what batch names allow")
    }

    /// Writes the faults as lines of an error file in Batch format.
    ///
    /// # Errors
    /// If the temporary or the given file fails.
    pub fn write_faults(&mut self, to: &mut dyn Write) -> io::Result<()> {
        use std::io::{Seek, SeekFrom};
        self.fault_lines.seek(SeekFrom::Start(0))?;
        io::copy(&mut self.fault_lines, to)?;
        Ok(())
    }
}

/// Reads the whole input and reports its faults.
///
/// # Errors
/// If a source can't be read; bad lines are no error here but in the result.
pub fn check(
    sources: &[InputSource],
    reading: &LineOptions,
    scratch: PathBuf,
) -> Result<CheckReport, CheckError> {
    let mut hash = LineHash::new(reading);
    let mut pass = CheckPass {
        checked: CheckReport {
            jobs: 0,
            lines: 0,
            faults: 0,
            first_faults: Vec::new(),
            notes: Vec::new(),
            models: BTreeSet::new(),
            fingerprint: 0,
            fault_lines: tempfile::spooled_tempfile_in(256 * 1024, &scratch),
            repeated: Vec::new(),
        },
        duplicates: DuplicateFinder::new(scratch),
    };
    let mut ordinal = 0;
    for (source, name) in sources.iter().enumerate() {
        let mut lines = LineReader::open(name)?;
        let mut any = false;
        while let Some(line) = lines.next()? {
            any = true;
            hash.add(&line);
            let text = line.checked(reading.max_line_bytes);
            match text.and_then(|text| read_line(text, reading)) {
                Ok(job) => {
                    let place = duplicates::LinePosition {
                        ordinal,
                        source: source as u32,
                        line: line.number,
                    };
                    pass.duplicates
                        .add(job.custom_id.as_bytes(), place)
                        .map_err(CheckError::Temporary)?;
                    pass.checked.jobs += 1;
                    if !pass.checked.models.contains(job.model.as_ref()) {
                        pass.checked.models.insert(job.model.into_owned());
                    }
                }
                Err(kind) => {
                    let custom_id =
                        line.checked(reading.max_line_bytes).ok().and_then(custom_id_of);
                    let file = name.to_string();
                    pass.fault(InputFault { file, line: line.number, custom_id, kind })?;
                }
            }
            ordinal += 1;
        }
        pass.checked.notes.extend(lines.notes());
        if !any {
            let (file, kind) = (name.to_string(), LineFault::EmptyFile);
            pass.fault(InputFault { file, line: 0, custom_id: None, kind })?;
        }
    }
    pass.find_duplicates(sources, reading)?;
    pass.checked.lines = ordinal;
    pass.checked.fingerprint = hash.digest();
    Ok(pass.checked)
}

/// Running fingerprint of the lines so far: a longer input is recognized by its start.
pub(super) struct LineHash(Xxh3);

impl LineHash {
    pub(super) fn new(reading: &LineOptions) -> Self {
        let mut hash = Xxh3::new();
        hash.update(reading.fingerprint().as_bytes());
        Self(hash)
    }

    pub(super) fn add(&mut self, line: &InputLine<'_>) {
        self.0.update(line.bytes);
        self.0.update(b"\n");
    }

    pub(super) fn digest(&self) -> u64 {
        self.0.digest()
    }
}

struct CheckPass {
    checked: CheckReport,
    duplicates: DuplicateFinder,
}

impl CheckPass {
    fn fault(&mut self, fault: InputFault) -> Result<(), CheckError> {
        let out = &mut self.checked.fault_lines;
        fault.write_line(out).map_err(CheckError::Temporary)?;
        self.checked.faults += 1;
        if self.checked.first_faults.len() < SHOWN_FAULTS {
            self.checked.first_faults.push(fault);
        }
        Ok(())
    }

    fn find_duplicates(
        &mut self,
        sources: &[InputSource],
        reading: &LineOptions,
    ) -> Result<(), CheckError> {
        let duplicates = std::mem::take(&mut self.duplicates);
        let mut found = duplicates.find().map_err(CheckError::Temporary)?;
        found.sort_unstable_by_key(|pair| pair.again.ordinal);
        let mut found = found.into_iter().peekable();
        // Only fingerprints of the ids were kept: the lines tell them again, if there are any.
        for (source, name) in sources.iter().enumerate() {
            let is_here = |pair: &DuplicatePair| pair.again.source as usize == source;
            if found.peek().is_none_or(|pair| !is_here(pair)) {
                continue;
            }
            let mut lines = LineReader::open(name)?;
            while let Some(line) = lines.next()? {
                let Some(pair) =
                    found.next_if(|pair| is_here(pair) && pair.again.line == line.number)
                else {
                    continue;
                };
                let kind = LineFault::DuplicateCustomId {
                    first_file: sources[pair.first.source as usize].to_string(),
                    first_line: pair.first.line,
                };
                let custom_id = line.checked(reading.max_line_bytes).ok().and_then(custom_id_of);
                let file = name.to_string();
                self.fault(InputFault { file, line: line.number, custom_id, kind })?;
                self.checked.repeated.push(pair.again.ordinal);
                self.checked.jobs -= 1;
            }
        }
        Ok(())
    }
}
