//! A batch file of the prompts about documents: for `documents --batch-file`, and for `plan`.

use std::path::Path;

use super::exit::{CommandError, ExitStatus};
use super::output::say;
use crate::app::night::write_prompts;
use documents::collect::DocumentReader;

/// Writes the prompts about all documents, and tells which could not be read.
pub(super) async fn write(
    reader: &DocumentReader<'_>,
    path: &Path,
) -> Result<ExitStatus, CommandError> {
    let file = write_prompts(reader, path).await?;
    for (document, why) in &file.unread {
        say(&format!("{document}: {why}"));
    }
    say(&format!(
        "{} prompts about {} documents; {} documents unread",
        file.prompts,
        file.documents,
        file.unread.len()
    ));
    Ok(ExitStatus::of_jobs(file.unread.is_empty()))
}
