//! Exit status of the errors of commands on a batch or on dead letters.

use crate::cli::exit::{ErrorClass, ExitStatus};
use control::ControlError;
use intake::dead_letters::DeadLetterError;
use report::why::WhyError;

use ExitStatus::Usage;

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
