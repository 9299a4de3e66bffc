//! Input files of a command: checked as a whole, their faults told, before anything is sent.

use std::path::{Path, PathBuf};

use super::budget::BudgetFlags;
use super::exit::CommandError;
use super::output::say;
use crate::app::budget;
use crate::app::input::InputFiles;
use crate::config::Config;
use domain::job::BatchId;
use domain::prices::Prices;
use intake::{CheckReport, LineOptions};

/// Handling of lines that are not valid jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InvalidLines {
    /// They end the command.
    Refuse,
    /// They are left out; the caller says where they are told.
    Skip,
    /// They are left out and told here.
    #[cfg(feature = "bench")]
    Tell,
}

impl InvalidLines {
    pub(super) fn by_flag(skip_invalid: bool) -> Self {
        if skip_invalid { Self::Skip } else { Self::Refuse }
    }
}

/// Input that a command line names.
pub(super) struct InputRequest<'a> {
    pub(super) paths: &'a [PathBuf],
    pub(super) batch: Option<&'a BatchId>,
    pub(super) budget: BudgetFlags,
    pub(super) invalid: InvalidLines,
}

/// Input that is ready to be enqueued or planned.
pub(super) struct PreparedInput {
    pub(super) files: InputFiles,
    pub(super) batch: BatchId,
    pub(super) prices: Prices,
}

/// Checks the input, its budget, and the prices that the budget needs. Standard input is copied to
/// `scratch`.
///
/// # Errors
/// If there is nothing to do, or a line is not a valid job and must be.
pub(super) async fn prepare_input(
    request: InputRequest<'_>,
    config: &Config,
    scratch: &Path,
) -> Result<PreparedInput, CommandError> {
    let InputRequest { paths, batch, budget, invalid } = request;
    let prices = Prices::load(config.prices.file.as_deref())?;
    budget.limit(&prices)?;
    let options = LineOptions { must_limit_output: budget.is_given(), ..config.reading() };
    let files = InputFiles::check(paths, options, scratch).await?;
    let report = &files.report;
    if report.faults > 0 && invalid != InvalidLines::Skip {
        say_faults(report);
    }
    if report.faults > 0 && invalid == InvalidLines::Refuse {
        return Err(CommandError::usage_text(format!(
            "{} of {} lines are not valid jobs; nothing was enqueued. Fix them, or skip them with \
             --skip-invalid",
            report.faults,
            report.faults + report.jobs
        )));
    }
    report.notes.iter().for_each(|note| say(&format!("note: {note}")));
    if report.jobs == 0 {
        let message = "no line of the input is a valid job: nothing to do";
        return Err(CommandError::usage_text(message));
    }
    if budget.is_money() {
        budget::check_prices(&report.models, config, &prices).map_err(CommandError::usage)?;
    }
    let batch = batch.cloned().unwrap_or_else(|| report.batch_name(&files.sources));
    Ok(PreparedInput { files, batch, prices })
}

/// Prints the first lines that are not valid jobs.
fn say_faults(report: &CheckReport) {
    for fault in &report.first_faults {
        say(&fault.to_string());
    }
    let more = report.faults - report.first_faults.len() as u64;
    if more > 0 {
        say(&format!("… and {more} more"));
    }
}
