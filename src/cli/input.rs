//! Input files: opened, checked in a first pass, and their faults reported.

use std::path::{Path, PathBuf};

use super::{CommandError, say};
use intake::{self, CheckReport, InputSource, LineOptions};

/// Input files after the first pass over them.
pub(super) struct InputFiles {
    pub(super) sources: Vec<InputSource>,
    pub(super) reading: LineOptions,
    pub(super) checked: CheckReport,
}

impl InputFiles {
    pub(super) async fn read(
        paths: &[PathBuf],
        reading: LineOptions,
        scratch: &Path,
    ) -> Result<Self, CommandError> {
        let (paths, scratch) = (paths.to_owned(), scratch.to_owned());
        let reading_ = reading.clone();
        let check = tokio::task::spawn_blocking(move || {
            let sources: Vec<_> = paths
                .iter()
                .map(|path| InputSource::open(path, &scratch))
                .collect::<Result<_, _>>()?;
            let checked = intake::check(&sources, &reading_, scratch)?;
            Ok::<_, CommandError>((sources, checked))
        });
        let (sources, checked) = check.await??;
        Ok(Self { sources, reading, checked })
    }

    /// Prints the lines that are not valid jobs.
    pub(super) fn say_faults(&self) {
        for fault in &self.checked.first_faults {
            say(&fault.to_string());
        }
        let more = self.checked.faults - self.checked.first_faults.len() as u64;
        if more > 0 {
            say(&format!("… and {more} more"));
        }
    }

    pub(super) fn report_faults(&self) {
        self.say_faults();
        say(&format!(
            "error: {} of {} lines are not valid jobs; nothing was enqueued. \
             Fix them, or skip them with --skip-invalid",
            self.checked.faults,
            self.checked.faults + self.checked.jobs
        ));
    }
}
