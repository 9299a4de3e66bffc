//! What is known of each job, in a temporary file: memory stays flat, and every trial reads the same.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};

use jiff::Timestamp;

use domain::job::Estimate;
use intake::Weight;

const SIZE: usize = 24;

/// What a job is let go by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// A place in the list of models.
    pub model: u16,
    pub estimate: Estimate,
    pub priority: i32,
    pub deadline: Option<Second>,
    pub not_before: Option<Second>,
}

/// A Unix time in whole seconds, from 1 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Second(u32);

impl Second {
    fn of(time: Timestamp) -> Self {
        Self(u32::try_from(time.as_second().max(1)).unwrap_or(u32::MAX))
    }

    pub fn unix(self) -> f64 {
        f64::from(self.0)
    }
}

impl Load {
    pub fn new(weight: &Weight, model: u16) -> Self {
        Self {
            model,
            estimate: weight.estimate,
            priority: weight.priority,
            deadline: weight.deadline.map(Second::of),
            not_before: weight.not_before.map(Second::of),
        }
    }

    fn to_bytes(self) -> [u8; SIZE] {
        let second = |at: Option<Second>| at.map_or(0, |at| at.0).to_le_bytes();
        let mut bytes = [0; SIZE];
        bytes[..4].copy_from_slice(&self.estimate.prompt.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.estimate.max_output.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.priority.to_le_bytes());
        bytes[12..16].copy_from_slice(&second(self.deadline));
        bytes[16..20].copy_from_slice(&second(self.not_before));
        bytes[20..22].copy_from_slice(&self.model.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; SIZE]) -> Self {
        let four = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
        let second = |at| Some(u32::from_le_bytes(four(at))).filter(|s| *s > 0).map(Second);
        Self {
            estimate: Estimate {
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

/// Jobs on their way into the file.
pub struct Writer(BufWriter<tempfile::NamedTempFile>);

impl Writer {
    /// In the folder for temporary files.
    ///
    /// # Errors
    /// If there is no room in it.
    pub fn new() -> io::Result<Self> {
        tempfile::NamedTempFile::new().map(|file| Self(BufWriter::new(file)))
    }

    /// # Errors
    /// As [`Self::new`].
    pub fn add(&mut self, load: Load) -> io::Result<()> {
        self.0.write_all(&load.to_bytes())
    }

    /// # Errors
    /// As [`Self::new`].
    pub fn finish(self) -> io::Result<Spool> {
        self.0.into_inner().map(Spool).map_err(io::IntoInnerError::into_error)
    }
}

/// All jobs, to be read as often as is wanted, by several at a time.
pub struct Spool(tempfile::NamedTempFile);

impl Spool {
    /// The jobs in the order of the input.
    ///
    /// # Errors
    /// If the file is gone.
    pub fn read(&self) -> io::Result<Loads> {
        let mut file = self.0.reopen()?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Loads(BufReader::with_capacity(SIZE * 4_096, file)))
    }
}

/// Jobs, one after the other.
pub struct Loads(BufReader<File>);

impl Loads {
    /// # Errors
    /// If the file can't be read any more.
    pub fn next(&mut self) -> io::Result<Option<Load>> {
        let mut bytes = [0; SIZE];
        match self.0.read_exact(&mut bytes) {
            Ok(()) => Ok(Some(Load::from_bytes(&bytes))),
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
        let load = |n: u32| Load {
            model: n as u16,
            estimate: Estimate { prompt: n, max_output: n * 7 },
            priority: -(n as i32),
            deadline: n.is_multiple_of(2).then(|| Second(n + 1)),
            not_before: n.is_multiple_of(3).then(|| Second(n + 2)),
        };
        let mut writer = Writer::new().unwrap();
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
