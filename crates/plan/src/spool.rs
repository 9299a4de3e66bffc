//! Temporary file of the jobs: memory stays flat, and every trial reads the same.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use jiff::Timestamp;

use domain::job::TokenEstimate;
use intake::JobSize;

const RECORD_BYTES: usize = 24;

/// Fields of a job that admission needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpooledJob {
    /// Index into the list of models.
    pub model: u16,
    pub estimate: TokenEstimate,
    pub priority: i32,
    pub deadline: Option<UnixSecond>,
    pub not_before: Option<UnixSecond>,
}

/// A Unix time in whole seconds, from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixSecond(u32);

impl UnixSecond {
    fn of(time: Timestamp) -> Self {
        Self(u32::try_from(time.as_second().max(1)).unwrap_or(u32::MAX))
    }

    pub fn unix(self) -> f64 {
        f64::from(self.0)
    }
}

impl SpooledJob {
    pub fn new(weight: &JobSize, model: u16) -> Self {
        Self {
            model,
            estimate: weight.estimate,
            priority: weight.priority,
            deadline: weight.deadline.map(UnixSecond::of),
            not_before: weight.not_before.map(UnixSecond::of),
        }
    }

    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let second = |at: Option<UnixSecond>| at.map_or(0, |at| at.0).to_le_bytes();
        let mut bytes = [0; RECORD_BYTES];
        bytes[..4].copy_from_slice(&self.estimate.prompt.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.estimate.max_output.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.priority.to_le_bytes());
        bytes[12..16].copy_from_slice(&second(self.deadline));
        bytes[16..20].copy_from_slice(&second(self.not_before));
        bytes[20..22].copy_from_slice(&self.model.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Self {
        let four = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let second = |at| Some(u32::from_le_bytes(four(at))).filter(|s| *s > 0).map(UnixSecond);
        Self {
            estimate: TokenEstimate {
                prompt: u32::from_le_bytes(four(0)),
                max_output: u32::from_le_bytes(four(4)),
            },
            priority: i32::from_le_bytes(four(8)),
            deadline: second(12),
            not_before: second(16),
            model: u16::from_le_bytes([bytes[20], bytes[21]]),
        }
    }
}

/// Writer of the temporary file.
pub struct SpoolWriter(BufWriter<tempfile::NamedTempFile>);

impl SpoolWriter {
    /// Creates the file in the folder for temporary files.
    ///
    /// # Errors
    /// If there is no room in it.
    pub fn new() -> io::Result<Self> {
        tempfile::NamedTempFile::new().map(|file| Self(BufWriter::new(file)))
    }

    /// # Errors
    /// Same as [`Self::new`].
    pub fn add(&mut self, load: SpooledJob) -> io::Result<()> {
        self.0.write_all(&load.to_bytes())
    }

    /// # Errors
    /// Same as [`Self::new`].
    pub fn finish(self) -> io::Result<JobSpool> {
        self.0.into_inner().map(JobSpool).map_err(io::IntoInnerError::into_error)
    }
}

/// Written jobs; several readers may read them at a time, any number of times.
pub struct JobSpool(tempfile::NamedTempFile);

impl JobSpool {
    /// Reads the jobs in the order of the input.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn read(&self) -> io::Result<SpoolReader> {
        let mut file = self.0.reopen()?;
        file.seek(SeekFrom::Start(0))?;
        Ok(SpoolReader(BufReader::with_capacity(RECORD_BYTES * 4_096, file)))
    }
}

/// Sequential reader of the jobs.
pub struct SpoolReader(BufReader<File>);

impl SpoolReader {
    /// # Errors
    /// If the file can't be read any more.
    pub fn next(&mut self) -> io::Result<Option<SpooledJob>> {
        let mut bytes = [0; RECORD_BYTES];
        match self.0.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(SpooledJob::from_bytes(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_comes_back_as_it_went() {
        let load = |n: u32| SpooledJob {
            model: n as u16,
            estimate: TokenEstimate { prompt: n, max_output: n * 7 },
            priority: -(n as i32),
            deadline: n.is_multiple_of(2).then(|| UnixSecond(n + 1)),
            not_before: n.is_multiple_of(3).then(|| UnixSecond(n + 2)),
        };
        let mut writer = SpoolWriter::new().unwrap();
        (0..100_000).for_each(|n| writer.add(load(n)).unwrap());
        let spool = writer.finish().unwrap();
        for _ in 0..2 {
            let mut loads = spool.read().unwrap();
            let mut read = 0;
            while let Some(found) = loads.next().unwrap() {
                assert_eq!(found, load(read));
                read += 1;
            }
            assert_eq!(read, 100_000);
        }
    }
}
