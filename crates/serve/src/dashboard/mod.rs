//! Dashboard page at `/`, and its requests under `/dashboard/`.
//!
//! Mounted by [`super::router`], with the same [`AppState`] as all other parts. The page and its
//! assets (`assets`) are open, since they reveal nothing; routes that show (`views`) or change
//! something (`actions`) go through [`access::require_role`]. Nothing is counted here: the views
//! combine what `report`, `control` and `intake` provide.

mod actions;
mod assets;
mod dead_letters;
mod jobs;
mod samples;
mod views;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::error;

use super::AppState;
use super::access;
use super::error::ApiError;
use crate::settings::Role;
use domain::prices::Prices;
use report::live::LiveWatcher;
use samples::SampleHistory;

/// State of the dashboard's request handlers. Clones share it.
#[derive(Clone)]
struct DashboardState {
    app: AppState,
    samples: Arc<SampleHistory>,
    watcher: Arc<Mutex<LiveWatcher>>,
    /// Cached overview: however many people watch, the store is asked once a second.
    overview: Arc<Mutex<Option<CachedOverview>>>,
}

/// Overview, and the time it was built.
type CachedOverview = (Instant, Arc<Value>);

impl DashboardState {
    fn prices(&self) -> Result<Prices, ApiError> {
        Prices::load(self.app.config.prices.as_deref()).map_err(|error| {
            error!(%error, "the price table can't be read");
            let message = "the price table can't be read; the server's log says why";
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
        })
    }
}

/// Returns all routes, and starts sampling the deployments in the background.
pub fn routes(app: &AppState) -> Router {
    let samples = Arc::<SampleHistory>::default();
    tokio::spawn(samples.clone().run(app.store.clone(), app.stop.clone()));
    let board = DashboardState {
        app: app.clone(),
        samples,
        watcher: Arc::default(),
        overview: Arc::default(),
    };
    let read = views::routes().merge(jobs::routes()).merge(dead_letters::views());
    let read = access::require_role(read, app, Role::Read);
    let operate =
        access::require_role(actions::routes().merge(dead_letters::actions()), app, Role::Operate);
    assets::routes().merge(read.merge(operate).with_state(board))
}
