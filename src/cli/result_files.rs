//! Files of results: their usual names, and what is told when one can't be written.

use std::path::PathBuf;

use super::again::command_again;
use super::exit::CommandError;
use super::exit::ErrorClass;
use domain::job::BatchId;
use report::results::{ResultPaths, ResultsError};

/// Returns the paths that were given, else those made of the stem.
pub(super) fn paths(out: Option<PathBuf>, errors: Option<PathBuf>, stem: &str) -> ResultPaths {
    let file = |what: &str| PathBuf::from(format!("{stem}.{what}.jsonl"));
    ResultPaths {
        out: out.unwrap_or_else(|| file("results")),
        errors: errors.unwrap_or_else(|| file("errors")),
    }
}

/// Says what a run keeps that could not write its results.
pub(super) fn kept_in_state_dir(batch: &BatchId) -> String {
    format!("every outcome is in the state directory, as batch {batch}; no prompt is sent again")
}

/// Tells a file that can't be written with what is kept, and the command that writes it again.
pub(super) fn write_error(error: ResultsError, kept: &str) -> CommandError {
    if !matches!(error, ResultsError::Write { .. }) {
        return error.into();
    }
    let status = error.status();
    let text = format!(
        "{:#}\n  kept: {kept}\n  fix:  free space there, or name another file, and type again: {}",
        anyhow::Error::new(error),
        command_again()
    );
    CommandError::new(status, anyhow::Error::msg(text))
}
