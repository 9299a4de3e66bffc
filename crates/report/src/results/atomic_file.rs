//! Output file that appears complete or not at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::error::ResultsError;

/// File under a temporary name beside its own; pipes and standard output are written directly.
pub struct AtomicFile {
    pub path: PathBuf,
    pub file: BufWriter<Box<dyn Write + Send>>,
    temporary: Option<tempfile::TempPath>,
}

impl AtomicFile {
    pub fn create(path: &Path) -> Result<Self, ResultsError> {
        let failed = |source| ResultsError::Write { path: path.to_owned(), source };
        let path = path.to_owned();
        // Pipes, terminals and /dev/null can't be replaced, only written to.
        let special = path.metadata().is_ok_and(|m| !m.is_file());
        if path.as_os_str() == "-" {
            let file = BufWriter::new(Box::new(io::stdout()) as Box<dyn Write + Send>);
            return Ok(Self { path, file, temporary: None });
        }
        if special {
            let file = File::options().write(true).open(&path).map_err(failed)?;
            let file = BufWriter::new(Box::new(file) as Box<dyn Write + Send>);
            return Ok(Self { path, file, temporary: None });
        }
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new()
            .prefix(".promptmill-")
            .permissions(permissions())
            .tempfile_in(folder)
            .map_err(failed)?;
        let (file, temporary) = temporary.into_parts();
        let file = BufWriter::with_capacity(256 * 1024, Box::new(file) as Box<dyn Write + Send>);
        Ok(Self { path, file, temporary: Some(temporary) })
    }

    /// Checks that the file can be created. Pipes and devices are not opened: a reader would take
    /// the first close for the end.
    ///
    /// # Errors
    /// Names the file that can't be.
    pub fn check(path: &Path) -> Result<(), ResultsError> {
        if path.as_os_str() == "-" || path.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir()) {
            return Ok(());
        }
        Self::create(path).map(drop)
    }

    pub fn finish(mut self) -> Result<(), ResultsError> {
        self.file.flush().map_err(|source| self.failed(source))?;
        let Some(temporary) = self.temporary.take() else { return Ok(()) };
        temporary.persist(&self.path).map_err(|e| self.failed(e.error))
    }

    pub fn failed(&self, source: io::Error) -> ResultsError {
        ResultsError::Write { path: self.path.clone(), source }
    }
}

/// Returns the usual permissions of a new file; temporary files are private by default.
fn permissions() -> std::fs::Permissions {
    use std::os::unix::fs::PermissionsExt;
    std::fs::Permissions::from_mode(0o644)
}
