//! Outcomes as one table, all endings in one file: CSV or Parquet.

use std::io::{self, Write};
use std::path::Path;

use futures_util::TryStreamExt;

use super::columns::{Kind, Value, header, row};
use super::target::Target;
use super::{ResultsError, Selection, Written, parquet};
use domain::outcome::Ending;
use store::Store;

/// What kind of table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// RFC 4180, UTF-8, a header line; what is absent is empty.
    Csv,
    Parquet,
}

/// Streams outcomes into one file, which appears whole, under its name, at the end.
///
/// # Errors
/// If the store or the file fails; an earlier file stays as it was.
pub async fn write(
    store: &dyn Store,
    selection: &Selection,
    format: Format,
    path: &Path,
) -> Result<Written, ResultsError> {
    let mut target = Target::create(path)?;
    let mut outcomes = selection.stream(store).await?;
    let mut written = Written::default();
    let failed = |source| ResultsError::Write { path: path.to_owned(), source };
    let mut table = Table::begin(&mut target.file, format, header()).map_err(failed)?;
    while let Some(outcome) = outcomes.try_next().await? {
        table.add(row(&outcome)).map_err(failed)?;
        match outcome.ending {
            Ending::Succeeded => written.results += 1,
            _ => written.errors += 1,
        }
    }
    table.finish().map_err(failed)?;
    target.finish()?;
    Ok(written)
}

/// Rows on their way into a file.
pub enum Table<W: Write + Send> {
    Csv(Box<csv::Writer<W>>),
    Parquet(Box<parquet::Writer<W>>),
}

impl<W: Write + Send> Table<W> {
    pub fn begin(file: W, format: Format, header: Vec<(String, Kind)>) -> io::Result<Self> {
        Ok(match format {
            Format::Csv => {
                let mut writer =
                    csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(file);
                writer.write_record(header.iter().map(|(name, _)| name))?;
                Self::Csv(Box::new(writer))
            }
            Format::Parquet => Self::Parquet(Box::new(parquet::Writer::new(file, header)?)),
        })
    }

    /// Adds a row, which has a cell for each column.
    pub fn add(&mut self, row: Vec<Value>) -> io::Result<()> {
        match self {
            Self::Csv(writer) => Ok(writer.write_record(row.into_iter().map(String::from))?),
            Self::Parquet(writer) => writer.add(row),
        }
    }

    pub fn finish(self) -> io::Result<()> {
        match self {
            Self::Csv(mut writer) => writer.flush(),
            Self::Parquet(writer) => writer.finish(),
        }
    }
}
