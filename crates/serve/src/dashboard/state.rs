//! State of the dashboard's request handlers.

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::error;

use super::samples::SampleHistory;
use crate::AppState;
use crate::error::ApiError;
use domain::prices::Prices;
use report::live::LiveWatcher;

/// State of the dashboard's request handlers. Clones share it.
#[derive(Clone)]
pub(super) struct DashboardState {
    pub(super) app: AppState,
    pub(super) samples: Arc<SampleHistory>,
    pub(super) watcher: Arc<Mutex<LiveWatcher>>,
    /// Cached overview: however many people watch, the store is asked once a second.
    pub(super) overview: Arc<Mutex<Option<CachedOverview>>>,
}

/// Overview, and the time it was built.
pub(super) type CachedOverview = (Instant, Arc<Value>);

impl DashboardState {
    pub(super) fn prices(&self) -> Result<Prices, ApiError> {
        Prices::load(self.app.config.prices.as_deref()).map_err(|error| {
            error!(%error, "the price table can't be read");
            let message = "the price table can't be read; the server's log says why";
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
        })
    }
}
