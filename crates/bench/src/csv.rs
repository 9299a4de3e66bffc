//! Exports a report's seconds as CSV, for spreadsheets.

use std::io::{self, Write};

use serde::Serialize;

use super::report::BenchReport;

#[derive(Serialize)]
struct SecondCsvRow<'a> {
    phase: usize,
    load: &'a str,
    second: usize,
    succeeded: u64,
    throttled: u64,
    failed: u64,
    good: u64,
    prompt_tokens: u64,
    output_tokens: u64,
    charged_tokens: u64,
    utilization: Option<f64>,
}

impl BenchReport {
    /// Writes a header and one row for each measured second of each phase.
    ///
    /// # Errors
    /// If the writer fails.
    pub fn write_csv(&self, to: impl Write) -> io::Result<()> {
        let mut rows = csv::Writer::from_writer(to);
        for (phase, found) in self.phases.iter().enumerate() {
            for (second, of) in found.series.iter().enumerate() {
                rows.serialize(SecondCsvRow {
                    phase,
                    load: &found.load,
                    second,
                    succeeded: of.succeeded,
                    throttled: of.throttled,
                    failed: of.failed,
                    good: of.good,
                    prompt_tokens: of.prompt_tokens,
                    output_tokens: of.output_tokens,
                    charged_tokens: of.charged_tokens,
                    utilization: of.utilization,
                })?;
            }
        }
        rows.flush()
    }
}
