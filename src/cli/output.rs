//! Text to standard output and standard error, the only two places that print.

use std::io::{self, Write};

use super::exit::CommandError;

/// Prints a message to stderr.
#[expect(clippy::print_stderr, reason = "the command line talks here and nowhere else")]
pub(super) fn say(text: &str) {
    eprintln!("{text}");
}

/// Prints data to stdout. A pipe closed by its reader (`| head`) is no error.
///
/// # Errors
/// If standard output can't be written: whoever reads it would take half of the data for all of it.
pub(super) fn print(text: &str) -> Result<(), CommandError> {
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let error = anyhow::Error::new(error).context("can't write to standard output");
            Err(CommandError::internal(error))
        }
        _ => Ok(()),
    }
}

/// Prints data to stdout, a line each.
///
/// # Errors
/// As [`print()`].
pub(super) fn print_lines(lines: &[String]) -> Result<(), CommandError> {
    lines.iter().try_for_each(|line| print(line))
}
