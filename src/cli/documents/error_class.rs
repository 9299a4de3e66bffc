//! Exit status of the errors of a night.

use crate::app::night::{DocumentsSetupError, NightUseError, PromptFileError};
use crate::cli::error_class::write_status;
use crate::cli::exit::{ErrorClass, ExitStatus};
use documents::closing::ClosingError;
use documents::collect::CollectError;
use documents::ledger::LedgerError;
use documents::night::NightError;
use documents::run::NightRunError;
use documents::source::DocumentSourceError;
use documents::table::TableError;
use documents::{RecipeError, template::TemplateError};

use ExitStatus::{Internal, Unreachable, Usage};

impl ErrorClass for DocumentSourceError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Io(_) => Internal,
            error if error.is_transient() => Unreachable,
            _ => Usage,
        }
    }
}

impl ErrorClass for RecipeError {
    fn status(&self) -> ExitStatus {
        Usage
    }
}

impl ErrorClass for TemplateError {
    fn status(&self) -> ExitStatus {
        Usage
    }
}

impl ErrorClass for CollectError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Source(error) => error.status(),
            Self::Template(error) => error.status(),
            Self::Store(error) => error.status(),
            Self::RequestsFile(_) | Self::Panicked => Internal,
        }
    }
}

impl ErrorClass for LedgerError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Io(_) | Self::Json(_) => Internal,
            Self::Version => Usage,
        }
    }
}

impl ErrorClass for NightError {
    fn status(&self) -> ExitStatus {
        match self {
            // Another start may run it: later this one can.
            Self::InProgress { .. } | Self::LeaseLost | Self::Contended => Unreachable,
            Self::Note(_) => Internal,
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

impl ErrorClass for DocumentsSetupError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::NoSource => Usage,
            Self::Recipe(error) => error.status(),
            Self::Source(error) => error.status(),
            Self::Program(_) | Self::Scratch(_) => Internal,
        }
    }
}

impl ErrorClass for PromptFileError {
    fn status(&self) -> ExitStatus {
        match self {
            Self::Collect(error) => error.status(),
            Self::Write(error) => error.status(),
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
