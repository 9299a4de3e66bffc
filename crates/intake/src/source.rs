//! Sources of lines: files, plain or compressed by their name, and spooled standard input.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LineFault;
use domain::build_feature::MissingFeatureError;

const BUFFER: usize = 256 * 1024;

/// One input, readable more than once.
#[derive(Debug, Clone)]
pub enum InputSource {
    File(PathBuf),
    /// Input that can be read only once, copied to a file.
    Spooled {
        file: Arc<tempfile::NamedTempFile>,
        name: String,
    },
}

/// Reason why an input can't be read.
#[derive(Debug, thiserror::Error)]
pub enum InputSourceError {
    #[error("can't read {name}")]
    Read { name: String, source: io::Error },
    #[error(transparent)]
    Feature(#[from] MissingFeatureError),
    #[error("{name} is UTF-16; save it as UTF-8")]
    Utf16 { name: String },
}

impl InputSource {
    /// Opens a file, or standard input for `-`, which is read here to its end.
    ///
    /// # Errors
    /// If the file is missing or standard input can't be spooled to `scratch`.
    pub fn open(argument: &Path, scratch: &Path) -> Result<Self, InputSourceError> {
        if argument.as_os_str() == "-" {
            let failed = |source| InputSourceError::Read { name: "standard input".into(), source };
            let mut spool = tempfile::NamedTempFile::new_in(scratch).map_err(failed)?;
            io::copy(&mut io::stdin().lock(), &mut spool).map_err(failed)?;
            return Ok(Self::Spooled { file: spool.into(), name: "standard input".into() });
        }
        let source = Self::File(argument.to_owned());
        source.reader().map(|_| source)
    }

    /// Returns the name without folder and endings, to name a batch by.
    pub fn stem(&self) -> String {
        let Self::File(path) = self else { return "stdin".into() };
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.split('.').find(|part| !part.is_empty()).unwrap_or("batch").to_owned()
    }

    fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Spooled { file, .. } => file.path(),
        }
    }

    fn reader(&self) -> Result<Box<dyn BufRead + Send>, InputSourceError> {
        let path = self.path();
        let failed = |source| InputSourceError::Read { name: self.to_string(), source };
        let file = File::open(path).map_err(failed)?;
        // Opening a folder works on Linux; reading from it is what fails.
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        let reader: Box<dyn Read + Send> = match path.extension().and_then(|e| e.to_str()) {
            Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
            #[cfg(feature = "zstd")]
            Some("zst") => Box::new(zstd::Decoder::new(file).map_err(failed)?),
            #[cfg(not(feature = "zstd"))]
            Some("zst") => return Err(MissingFeatureError { feature: "zstd" }.into()),
            _ => Box::new(file),
        };
        Ok(Box::new(BufReader::with_capacity(BUFFER, reader)))
    }
}

impl fmt::Display for InputSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Spooled { name, .. } => f.write_str(name),
        }
    }
}

/// Reader of a source's lines that are not blank, one at a time, with their numbers.
pub(super) struct LineReader {
    name: String,
    reader: Box<dyn BufRead + Send>,
    line: Vec<u8>,
    number: u64,
    had_bom: bool,
}

/// One line without its end.
pub(super) struct InputLine<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) number: u64,
}

impl<'a> InputLine<'a> {
    pub(super) fn checked(&self, limit: usize) -> Result<&'a str, LineFault> {
        if self.bytes.len() > limit {
            return Err(LineFault::TooLong { bytes: self.bytes.len(), limit });
        }
        simdutf8::compat::from_utf8(self.bytes)
            .map_err(|e| LineFault::NotUtf8 { at: e.valid_up_to() + 1 })
    }
}

impl LineReader {
    pub(super) fn open(source: &InputSource) -> Result<Self, InputSourceError> {
        let mut reader = source.reader()?;
        let name = source.to_string();
        let start = reader
            .fill_buf()
            .map_err(|e| InputSourceError::Read { name: name.clone(), source: e })?;
        if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
            return Err(InputSourceError::Utf16 { name });
        }
        let had_bom = start.starts_with(&[0xef, 0xbb, 0xbf]);
        if had_bom {
            reader.consume(3);
        }
        Ok(Self { name, reader, line: Vec::new(), number: 0, had_bom })
    }

    pub(super) fn next(&mut self) -> Result<Option<InputLine<'_>>, InputSourceError> {
        loop {
            self.line.clear();
            let read = self.reader.read_until(b'\n', &mut self.line);
            let read =
                read.map_err(|source| InputSourceError::Read { name: self.name.clone(), source })?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            if !self.line.trim_ascii().is_empty() {
                let bytes = self.line.trim_ascii();
                return Ok(Some(InputLine { bytes, number: self.number }));
            }
        }
    }

    /// Returns harmless oddities of the source.
    pub(super) fn notes(&self) -> Option<String> {
        let name = &self.name;
        self.had_bom.then(|| format!("{name} begins with a byte order mark, which was skipped"))
    }
}
