//! Exit status of the errors of the use cases: mostly that of the error inside.

use crate::app::input::InputError;
use crate::app::local_run::LocalRunError;
use crate::app::queue_worker::QueueWorkerError;
use crate::app::status::StatusError;
use crate::cli::exit::{ErrorClass, ExitStatus};

use ExitStatus::{Internal, Usage};

impl ErrorClass for InputError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Source(error) => error.status(),
            Self::Check(error) => error.status(),
            Self::Panicked => Internal,
        }
    }
}

impl ErrorClass for LocalRunError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Backend(error) => error.status(),
            Self::Config(error) => error.status(),
            Self::Enqueue(error) => error.status(),
            Self::Worker(error) => error.status(),
            Self::Store(error) => error.status(),
            Self::Results(error) => error.status(),
            Self::Webhook(error) => error.status(),
            Self::Lost { .. } => Internal,
        }
    }
}

impl ErrorClass for QueueWorkerError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::NoEndpoint => Usage,
            Self::Config(error) => error.status(),
            Self::Prices(error) => error.status(),
            Self::Backend(error) => error.status(),
            Self::Webhook(error) => error.status(),
            Self::Worker(error) => error.status(),
            Self::Store(error) => error.status(),
        }
    }
}

impl ErrorClass for StatusError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::NoSuchBatch(_) => Usage,
            Self::Backend(error) => error.status(),
            Self::Queue(error) => error.status(),
            Self::Store(error) => error.status(),
        }
    }
}
