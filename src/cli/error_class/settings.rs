//! Exit status of the errors of settings: all are for a person to mend.

use crate::cli::exit::{ErrorClass, ExitStatus};
use crate::config::ConfigError;
use crate::webhook::WebhookSettingsError;
use domain::prices::PricesError;

use ExitStatus::Usage;

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
