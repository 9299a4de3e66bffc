//! Folder for a forecast's temporary files.

use tempfile::TempDir;

use crate::cli::exit::CommandError;

/// Creates a folder for temporary files, removed with the value.
///
/// # Errors
/// Names the folder in which it could not be created.
pub(super) fn scratch_dir() -> Result<TempDir, CommandError> {
    tempfile::tempdir().map_err(|error| {
        let place = std::env::temp_dir();
        let text = format!(
            "can't create a temporary folder in {}: make room there, or name another by TMPDIR",
            place.display()
        );
        CommandError::internal(anyhow::Error::new(error).context(text))
    })
}
