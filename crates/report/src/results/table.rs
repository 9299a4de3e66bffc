//! Outcomes as one table with all endings, in a CSV or Parquet file.

use std::io::{self, Write};
use std::path::Path;

use futures_util::TryStreamExt;

use super::atomic_file::AtomicFile;
use super::columns::{CellValue, ColumnKind, header, row};
#[cfg(feature = "parquet")]
use super::parquet;
use super::{OutcomeSelection, ResultCounts, ResultsError};
use domain::build_feature::MissingFeatureError;
use domain::outcome::OutcomeStatus;
use store::Store;

/// File format of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// RFC 4180, UTF-8, a header line; absent values are empty.
    Csv,
    #[cfg(feature = "parquet")]
    Parquet,
}

impl TableFormat {
    /// Returns the Parquet format.
    ///
    /// # Errors
    /// If this build leaves it out.
    pub fn parquet() -> Result<Self, MissingFeatureError> {
        #[cfg(feature = "parquet")]
        let format = Ok(Self::Parquet);
        #[cfg(not(feature = "parquet"))]
        let format = Err(MissingFeatureError { feature: "parquet" });
        format
    }
}

/// Streams outcomes into one file, which appears under its name only when complete.
///
/// # Errors
/// If the store or the file fails; an earlier file stays as it was.
pub async fn write(
    store: &dyn Store,
    selection: &OutcomeSelection,
    format: TableFormat,
    path: &Path,
) -> Result<ResultCounts, ResultsError> {
    let mut target = AtomicFile::create(path)?;
    let mut outcomes = selection.stream(store).await?;
    let mut written = ResultCounts::default();
    let failed = |source| ResultsError::Write { path: path.to_owned(), source };
    let mut table = TableWriter::begin(&mut target.file, format, header()).map_err(failed)?;
    while let Some(outcome) = outcomes.try_next().await? {
        table.add(row(&outcome)).map_err(failed)?;
        match outcome.ending {
            OutcomeStatus::Succeeded => written.results += 1,
            _ => written.errors += 1,
        }
    }
    table.finish().map_err(failed)?;
    target.finish()?;
    Ok(written)
}

/// Writer of rows into a file.
pub enum TableWriter<W: Write + Send> {
    Csv(Box<csv::Writer<W>>),
    #[cfg(feature = "parquet")]
    Parquet(Box<parquet::ParquetWriter<W>>),
}

impl<W: Write + Send> TableWriter<W> {
    pub fn begin(
        file: W,
        format: TableFormat,
        header: Vec<(String, ColumnKind)>,
    ) -> io::Result<Self> {
        Ok(match format {
            TableFormat::Csv => {
                let mut writer =
                    csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(file);
                writer.write_record(header.iter().map(|(name, _)| name))?;
                Self::Csv(Box::new(writer))
            }
            #[cfg(feature = "parquet")]
            TableFormat::Parquet => {
                Self::Parquet(Box::new(parquet::ParquetWriter::new(file, header)?))
            }
        })
    }

    /// Adds a row, which has a cell for each column.
    pub fn add(&mut self, row: Vec<CellValue>) -> io::Result<()> {
        match self {
            Self::Csv(writer) => Ok(writer.write_record(row.into_iter().map(String::from))?),
            #[cfg(feature = "parquet")]
            Self::Parquet(writer) => writer.add(row),
        }
    }

    pub fn finish(self) -> io::Result<()> {
        match self {
            Self::Csv(mut writer) => writer.flush(),
            #[cfg(feature = "parquet")]
            Self::Parquet(writer) => writer.finish(),
        }
    }
}
