//! Outcomes as one table, all endings in one file: CSV or Parquet.

use std::io::{self, Write};
use std::path::Path;

use futures_util::TryStreamExt;

use super::columns::{COLUMNS, Value};
use super::target::Target;
use super::{ResultsError, Selection, Written, parquet};
use crate::outcome::{Ending, Outcome};
use crate::store::Store;

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
    let mut table = Table::begin(&mut target.file, format).map_err(failed)?;
    while let Some(outcome) = outcomes.try_next().await? {
        table.add(&outcome).map_err(failed)?;
        match outcome.ending {
            Ending::Succeeded => written.results += 1,
            _ => written.errors += 1,
        }
    }
    table.finish().map_err(failed)?;
    target.finish()?;
    Ok(written)
}

enum Table<W: Write + Send> {
    Csv(Box<csv::Writer<W>>),
    Parquet(Box<parquet::Writer<W>>),
}

impl<W: Write + Send> Table<W> {
    fn begin(file: W, format: Format) -> io::Result<Self> {
        Ok(match format {
            Format::Csv => {
                let mut writer =
                    csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(file);
                writer.write_record(COLUMNS.map(|(name, _, _)| name))?;
                Self::Csv(Box::new(writer))
            }
            Format::Parquet => Self::Parquet(Box::new(parquet::Writer::new(file)?)),
        })
    }

    fn add(&mut self, outcome: &Outcome) -> io::Result<()> {
        match self {
            Self::Csv(writer) => {
                let cells = COLUMNS.map(|(_, _, cell)| match cell(outcome) {
                    Value::Text(text) => text.unwrap_or_default(),
                    Value::Number(number) => number.map(|n| n.to_string()).unwrap_or_default(),
                });
                Ok(writer.write_record(cells)?)
            }
            Self::Parquet(writer) => writer.add(outcome),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Csv(mut writer) => writer.flush(),
            Self::Parquet(writer) => writer.finish(),
        }
    }
}
