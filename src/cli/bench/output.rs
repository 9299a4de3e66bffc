//! Reports of a measurement: to files and to standard output.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::flags::OutputFlags;
use crate::cli::error_class::write_error;
use crate::cli::exit::CommandError;
use crate::cli::output::print;
use bench::pipeline::PipelineReport;
use bench::report::BenchReport;

impl OutputFlags {
    /// Creates the files, so that one that can't be written fails before anything is paid for.
    pub(super) fn check_writable(&self) -> Result<(), CommandError> {
        let paths = [&self.report, &self.csv, &self.html];
        paths.into_iter().flatten().try_for_each(|path| create(path).map(drop))
    }

    pub(super) fn write(&self, report: &BenchReport) -> Result<(), CommandError> {
        let json = serde_json::to_string(report)?;
        if let Some(path) = &self.report {
            write_file(path, |file| file.write_all(json.as_bytes()))?;
        }
        if let Some(path) = &self.html {
            write_file(path, |file| file.write_all(report.to_html().as_bytes()))?;
        }
        if let Some(path) = &self.csv {
            write_file(path, |file| report.write_csv(file))?;
        }
        let shown = if self.json { json } else { report.to_string() };
        print(shown.trim_end())
    }

    /// Writes the report of a pipeline, which has neither seconds nor plots.
    pub(super) fn write_pipeline(&self, report: &PipelineReport) -> Result<(), CommandError> {
        let json = serde_json::to_string(report)?;
        if let Some(path) = &self.report {
            write_file(path, |file| file.write_all(json.as_bytes()))?;
        }
        let shown = if self.json { json } else { report.to_string() };
        print(shown.trim_end())
    }
}

fn create(path: &Path) -> Result<File, CommandError> {
    File::create(path).map_err(|error| write_error(path, error))
}

fn write_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), CommandError> {
    let mut file = BufWriter::new(create(path)?);
    write(&mut file).and_then(|()| file.flush()).map_err(|error| write_error(path, error))
}
