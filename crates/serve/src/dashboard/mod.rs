//! The page for people, at `/`, and what it asks: everything under `/dashboard/`.
//!
//! Mounted by [`super::router`], which gives it the same [`App`] as all other parts. The page and its
//! assets (`assets`) are open, since they tell nothing; what tells (`views`) or changes something
//! (`actions`) goes through [`access::require`]. Nothing here is counted anew: the views put
//! together what `report`, `control` and `intake` know.

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

use super::App;
use super::access;
use super::error::ApiError;
use crate::settings::Role;
use domain::prices::Prices;
use report::live::Watch;
use samples::Samples;

/// What the page's requests work with. Clones share it.
#[derive(Clone)]
struct Board {
    app: App,
    samples: Arc<Samples>,
    watch: Arc<Mutex<Watch>>,
    /// The last overview: however many people look, the store is asked once a second.
    overview: Arc<Mutex<Option<Seen>>>,
}

/// What was seen, and when.
type Seen = (Instant, Arc<Value>);

impl Board {
    fn prices(&self) -> Result<Prices, ApiError> {
        Prices::load(self.app.config.prices.as_deref()).map_err(|error| {
            error!(%error, "the price table can't be read");
            let message = "the price table can't be read; the server's log says why";
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
        })
    }
}

/// All of it. Samples the deployments from now on.
pub fn routes(app: &App) -> Router {
    let samples = Arc::<Samples>::default();
    tokio::spawn(samples.clone().take(app.store.clone(), app.stop.clone()));
    let board =
        Board { app: app.clone(), samples, watch: Arc::default(), overview: Arc::default() };
    let read = views::routes().merge(jobs::routes()).merge(dead_letters::views());
    let read = access::require(read, app, Role::Read);
    let operate =
        access::require(actions::routes().merge(dead_letters::actions()), app, Role::Operate);
    assets::routes().merge(read.merge(operate).with_state(board))
}
