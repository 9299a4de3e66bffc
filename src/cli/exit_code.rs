//! Last step of a command: its error is told, here and once, and its exit code is returned.

use std::process::ExitCode;

use super::exit::{CommandError, ExitStatus};
use super::output::say;

/// Returns the exit code, and prints an error, only here and once.
pub(super) fn exit_code(how: Result<ExitStatus, CommandError>) -> ExitCode {
    let status = how.unwrap_or_else(|failure| {
        say(&format!("error: {}", error_chain(&failure.error)));
        failure.status
    });
    ExitCode::from(status as u8)
}

/// Joins an error and its causes in one line, none of them twice.
fn error_chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
