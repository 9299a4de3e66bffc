//! Exit statuses of all commands: one table, and the class of every error of the library.
//!
//! A command returns a library's error with `?`; the status follows from the error's type alone.

/// Exit status of a command, for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ExitStatus {
    AllDone = 0,
    /// Some jobs failed, are dead, or could not be read; the summary says how many.
    SomeFailed = 1,
    /// Wrong usage or configuration: trying again unchanged can't help.
    Usage = 2,
    /// A service was out of reach: trying again later may help.
    Unreachable = 3,
    /// A fault of this machine or of promptmill itself: a full disk, a task that panicked.
    Internal = 4,
    Interrupted = 130,
}

impl ExitStatus {
    /// Returns the status of work that came to its end, with or without failures.
    pub(super) fn of_jobs(all_succeeded: bool) -> Self {
        if all_succeeded { Self::AllDone } else { Self::SomeFailed }
    }
}

/// The table above, for `--help`.
pub(super) const EXIT_CODES: &str = "\
Exit codes:
  0    all done
  1    some jobs failed
  2    usage or configuration
  3    a service is out of reach: it may answer later
  4    a file or disk can't be written, or promptmill itself is at fault
  130  interrupted";

/// Error of a command, with its exit status.
#[derive(Debug)]
pub(super) struct CommandError {
    pub(super) error: anyhow::Error,
    pub(super) status: ExitStatus,
}

impl CommandError {
    pub(super) fn new(status: ExitStatus, error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), status }
    }

    /// Wrong usage or configuration.
    pub(super) fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::new(ExitStatus::Usage, error)
    }

    /// A sentence about wrong usage.
    pub(super) fn usage_text(text: impl Into<String>) -> Self {
        Self::usage(anyhow::Error::msg(text.into()))
    }

    /// A fault of this machine or of promptmill.
    pub(super) fn internal(error: impl Into<anyhow::Error>) -> Self {
        Self::new(ExitStatus::Internal, error)
    }
}

/// Error of the library that knows its exit status.
pub(super) trait ErrorClass: std::error::Error + Send + Sync + 'static {
    fn status(&self) -> ExitStatus;
}

impl<E: ErrorClass> From<E> for CommandError {
    fn from(error: E) -> Self {
        Self::new(error.status(), error)
    }
}
