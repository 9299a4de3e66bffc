//! Exit status of the errors of a night of documents.

use super::output::write_status;
use crate::app::night::NightUseError;
use crate::cli::exit::{ErrorClass, ExitStatus};
use documents::closing::ClosingError;
use documents::night::NightError;
use documents::run::NightRunError;
use documents::table::TableError;

use ExitStatus::{Internal, Unreachable, Usage};

impl ErrorClass for NightError {
    fn status(&self) -> ExitStatus {
        match self {
            // Another start may run it: later this one can.
            Self::InProgress { .. } | Self::LeaseLost => Unreachable,
            Self::NoName(_) => Usage,
            Self::Ledger(error) => error.status(),
            Self::Store(error) => error.status(),
        }
    }
}

impl ErrorClass for NightRunError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Gather(error) => error.status(),
            Self::Enqueue(error) => error.status(),
            Self::Store(error) => error.status(),
            Self::Template(error) => error.status(),
            Self::Scratch(_) | Self::Json(_) => Internal,
        }
    }
}

impl ErrorClass for TableError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Format(_) | Self::Feature(_) => Usage,
            Self::Results(error) => error.status(),
            Self::Conduct(error) => error.status(),
            Self::Write(error) => write_status(error),
        }
    }
}

impl ErrorClass for ClosingError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Table(error) => error.status(),
            Self::Night(error) => error.status(),
            Self::Store(error) => error.status(),
        }
    }
}

impl ErrorClass for NightUseError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Backend(error) => error.status(),
            Self::Config(error) => error.status(),
            Self::Night(error) => error.status(),
            Self::Collect(error) => error.status(),
            Self::Input(error) => error.status(),
            Self::Forecast(error) => error.status(),
            Self::Run(error) => error.status(),
            Self::Closing(error) => error.status(),
            Self::Control(error) => error.status(),
            Self::Webhook(error) => error.status(),
            Self::Worker(error) => error.status(),
            Self::Store(error) => error.status(),
            Self::Scratch(_) | Self::Panicked => Internal,
            Self::TooManyNights => Usage,
        }
    }
}
