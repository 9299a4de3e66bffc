//! Reasons why a night did not come to its end.

use std::io;

use crate::app::forecast::ForecastError;
use crate::app::input::InputError;
use crate::backends::BackendError;
use crate::config::ConfigError;
use crate::webhook::WebhookSettingsError;
use control::ControlError;
use documents::closing::ClosingError;
use documents::error::{CollectError, NightRunError};
use documents::night::NightError;
use store::StoreError;
use worker::WorkerError;

/// Reason why a night did not come to its end. What is recorded stays; the next start resumes.
#[derive(Debug, thiserror::Error)]
pub enum NightUseError {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Night(#[from] NightError),
    #[error(transparent)]
    Collect(#[from] CollectError),
    #[error(transparent)]
    Input(#[from] InputError),
    #[error(transparent)]
    Forecast(#[from] ForecastError),
    #[error(transparent)]
    Run(#[from] NightRunError),
    #[error(transparent)]
    Closing(#[from] ClosingError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Webhook(#[from] WebhookSettingsError),
    #[error(transparent)]
    Worker(#[from] WorkerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("can't write the file of requests")]
    Scratch(#[source] io::Error),
    #[error(
        "the recipe has more than 65536 nights in its ledger: give it another name, to begin anew"
    )]
    TooManyNights,
    #[error("the task that renews the night's lease panicked; its message is above")]
    Panicked,
}
