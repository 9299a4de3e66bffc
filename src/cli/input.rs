//! Input files on their way in: opened, read through, and their faults told.

use std::path::{Path, PathBuf};

use super::{Failure, say};
use intake::{self, Checked, Reading, Source};

/// Files that were read through once.
pub(super) struct Input {
    pub(super) sources: Vec<Source>,
    pub(super) reading: Reading,
    pub(super) checked: Checked,
}

impl Input {
    pub(super) async fn read(
        paths: &[PathBuf],
        reading: Reading,
        scratch: &Path,
    ) -> Result<Self, Failure> {
        let (paths, scratch) = (paths.to_owned(), scratch.to_owned());
        let reading_ = reading.clone();
        let check = tokio::task::spawn_blocking(move || {
            let sources: Vec<_> = paths
                .iter()
                .map(|path| Source::open(path, &scratch).map_err(Failure::usage))
                .collect::<Result<_, _>>()?;
            let checked = intake::check(&sources, &reading_, scratch).map_err(Failure::usage)?;
            Ok::<_, Failure>((sources, checked))
        });
        let (sources, checked) = check.await.map_err(Failure::unreachable)??;
        Ok(Self { sources, reading, checked })
    }

    /// Says which lines are no jobs.
    pub(super) fn say_faults(&self) {
        for fault in &self.checked.shown {
            say(&fault.to_string());
        }
        let more = self.checked.faults - self.checked.shown.len() as u64;
        if more > 0 {
            say(&format!("… and {more} more"));
        }
    }

    pub(super) fn report_faults(&self) {
        self.say_faults();
        say(&format!(
            "error: {} of {} lines are no jobs; nothing was enqueued. \
             Mend them, or go on without them with --skip-invalid",
            self.checked.faults,
            self.checked.faults + self.checked.jobs
        ));
    }
}
