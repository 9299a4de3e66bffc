//! `promptmill bench compare`: two reports, side by side.

use std::path::Path;

use serde::Serialize;

use crate::cli::exit::{CommandError, ExitStatus};
use crate::cli::output::print;
use bench::compare;
use bench::report::BenchReport;

/// Prints the figures that differ by more than chance.
pub(super) fn compare_reports(a: &Path, b: &Path, json: bool) -> Result<ExitStatus, CommandError> {
    let read = |path: &Path| -> Result<BenchReport, CommandError> {
        let failed = |error: anyhow::Error| {
            CommandError::usage(error.context(format!("{} is no report of bench", path.display())))
        };
        let text = std::fs::read(path).map_err(|error| failed(error.into()))?;
        serde_json::from_slice(&text).map_err(|error| failed(error.into()))
    };
    let phases = compare::compare(&read(a)?, &read(b)?);
    if json {
        #[derive(Serialize)]
        struct CompareOutput<'a> {
            phases: &'a [compare::PhaseComparison],
        }
        let out = serde_json::to_string(&CompareOutput { phases: &phases })?;
        print(&out)?;
    } else {
        phases.iter().try_for_each(|phase| print(&phase.to_string()))?;
        print(
            "Intervals by bootstrap; p by Mann-Whitney (as a whole) and two proportions (shares). \
             Each is judged at 5 %: of twenty figures that are the same, one is expected to differ.",
        )?;
    }
    Ok(ExitStatus::AllDone)
}
