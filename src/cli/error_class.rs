//! Exit status of every error that several commands meet. Those of one command stand beside it.

use std::path::Path;

use super::exit::{CommandError, ErrorClass, ExitStatus};
use crate::backends::BackendError;
use crate::config::ConfigError;
use crate::webhook::WebhookSettingsError;
use control::ControlError;
use domain::prices::PricesError;
use intake::dead_letters::DeadLetterError;
use intake::{CheckError, EnqueueError, InputSourceError};
#[cfg(feature = "bench")]
use plan::PlanError;
use queue::QueueError;
use report::results::ResultsError;
use report::why::WhyError;
use state::StateError;
use state::sqlite::SqliteError;
use store::StoreError;
use worker::WorkerError;

use ExitStatus::{Internal, Unreachable, Usage};

impl ErrorClass for SqliteError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Stopped => Internal,
            fault if fault.is_disk_fault() => Internal,
            busy if busy.is_transient() => Unreachable,
            Self::Newer { .. }
            | Self::TooOld { .. }
            | Self::Directory { .. }
            | Self::Sqlite { .. } => Usage,
        }
    }
}

/// Returns the status of a backend's fault: an embedded one knows its own.
fn backend_status(
    source: &(dyn std::error::Error + Send + Sync + 'static),
    otherwise: ExitStatus,
) -> ExitStatus {
    source.downcast_ref::<SqliteError>().map_or(otherwise, SqliteError::status)
}

impl ErrorClass for StoreError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Unavailable(source) => backend_status(source.as_ref(), Unreachable),
            Self::Refused(source) => backend_status(source.as_ref(), Usage),
        }
    }
}

impl ErrorClass for QueueError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Unavailable(source) => backend_status(source.as_ref(), Unreachable),
            Self::Refused(source) => backend_status(source.as_ref(), Usage),
            Self::TooLarge { .. } => Usage,
        }
    }
}

impl ErrorClass for BackendError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Queue(error) => error.status(),
            Self::Store(error) => error.status(),
            Self::Sqlite(error) => error.status(),
            Self::State(error) => error.status(),
            #[cfg(feature = "azure")]
            Self::ServiceBus(_) | Self::Identity(_) => Usage,
        }
    }
}

impl ErrorClass for StateError {
    fn status(&self) -> ExitStatus {
        Usage
    }
}

impl ErrorClass for ConfigError {
    fn status(&self) -> ExitStatus {
        Usage
    }
}

impl ErrorClass for WebhookSettingsError {
    fn status(&self) -> ExitStatus {
        Usage
    }
}

impl ErrorClass for PricesError {
    fn status(&self) -> ExitStatus {
        Usage
    }
}

impl ErrorClass for WorkerError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Queue(error) => error.status(),
            Self::Store(error) => error.status(),
            Self::Late(_) => Unreachable,
            Self::Panicked => Internal,
        }
    }
}

impl ErrorClass for ControlError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Store(error) => error.status(),
            Self::NoSuchBatch(_)
            | Self::Done(_)
            | Self::Cancelled(_)
            | Self::NoBudget(_)
            | Self::OtherUnit { .. }
            | Self::AlreadyCommitted { .. } => Usage,
        }
    }
}

impl ErrorClass for InputSourceError {
    fn status(&self) -> ExitStatus {
        Usage
    }
}

impl ErrorClass for CheckError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Source(error) => error.status(),
            Self::Temporary(_) => Internal,
        }
    }
}

impl ErrorClass for EnqueueError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Source(error) => error.status(),
            Self::Queue(error) => error.status(),
            Self::Store(error) => error.status(),
            Self::Changed { .. }
            | Self::InputChanged { .. }
            | Self::TooLarge { .. }
            | Self::Cancelled(_)
            | Self::Budgeted { .. } => Usage,
            Self::Panicked => Internal,
        }
    }
}

impl ErrorClass for DeadLetterError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Queue(error) => error.status(),
            Self::Store(error) => error.status(),
        }
    }
}

impl ErrorClass for WhyError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Queue(error) => error.status(),
            Self::Store(error) => error.status(),
            Self::Unknown(_) | Self::NoSuchBatch(_) => Usage,
        }
    }
}

#[cfg(feature = "bench")]
impl ErrorClass for PlanError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Check(error) => error.status(),
            Self::Source(error) => error.status(),
            Self::Temporary(_) => Internal,
            Self::InputChanged { .. } | Self::NoDeployment => Usage,
        }
    }
}

impl ErrorClass for ResultsError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Write { source, .. } => write_status(source),
            Self::Store(error) => error.status(),
            Self::Body { .. } => Internal,
        }
    }
}

/// Returns the status of a file that can't be written: a wrong path is the caller's, a full or
/// broken disk is not.
pub(super) fn write_status(error: &std::io::Error) -> ExitStatus {
    use std::io::ErrorKind::{
        IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem,
    };
    match error.kind() {
        NotFound | PermissionDenied | IsADirectory | NotADirectory | ReadOnlyFilesystem => Usage,
        _ => Internal,
    }
}

/// Names the file that can't be written.
pub(super) fn write_error(path: &Path, error: std::io::Error) -> CommandError {
    let status = write_status(&error);
    let error = anyhow::Error::new(error).context(format!("can't write {}", path.display()));
    CommandError::new(status, error)
}

impl ErrorClass for serde_json::Error {
    fn status(&self) -> ExitStatus {
        Internal
    }
}

impl ErrorClass for tokio::task::JoinError {
    fn status(&self) -> ExitStatus {
        Internal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_script_tells_by_the_exit_code_whether_to_wait_to_mend_or_to_look_at_the_machine() {
        let away = || StoreError::Unavailable("connection refused".into());
        let refused = || StoreError::Refused("no permission".into());
        let write = |kind: io::ErrorKind| ResultsError::Write {
            path: "out.jsonl".into(),
            source: kind.into(),
        };
        assert_eq!([away().status(), refused().status()], [Unreachable, Usage]);
        assert_eq!(WorkerError::Store(away()).status(), Unreachable);
        assert_eq!(WorkerError::Panicked.status(), Internal);
        assert_eq!(EnqueueError::Panicked.status(), Internal);
        assert_eq!(EnqueueError::Queue(QueueError::Refused("q".into())).status(), Usage);
        assert_eq!(CheckError::Temporary(io::ErrorKind::StorageFull.into()).status(), Internal);
        assert_eq!(write(io::ErrorKind::StorageFull).status(), Internal);
        assert_eq!(write(io::ErrorKind::NotFound).status(), Usage);
        let stopped = StoreError::Refused(SqliteError::Stopped.into());
        assert_eq!(stopped.status(), Internal, "the writer's thread panicked");
        assert_eq!(serde_json::from_str::<u8>("x").unwrap_err().status(), Internal);
    }
}
