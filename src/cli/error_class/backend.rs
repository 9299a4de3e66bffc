//! Exit status of the errors of queues and stores, and of the worker on them.

use crate::backends::BackendError;
use crate::cli::exit::{ErrorClass, ExitStatus};
use queue::QueueError;
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
