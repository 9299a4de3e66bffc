//! Exit status of the errors of input files.

use crate::cli::exit::{ErrorClass, ExitStatus};
use intake::{CheckError, EnqueueError, InputSourceError};

use ExitStatus::{Internal, Usage};

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
