//! Exit status of the errors of a night.

use crate::app::night::{DocumentsSetupError, PromptFileError};
use crate::cli::exit::{ErrorClass, ExitStatus};
use documents::collect::CollectError;
use documents::ledger::LedgerError;
use documents::source::DocumentSourceError;
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
