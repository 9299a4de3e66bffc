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
mod state;
mod views;

use std::sync::Arc;

use axum::Router;

use super::AppState;
use super::access;
use crate::settings::Role;
use samples::SampleHistory;
use state::DashboardState;

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
    let read = access::require_role(read, &app.access, Role::Read);
    let operate = access::require_role(
        actions::routes().merge(dead_letters::actions()),
        &app.access,
        Role::Operate,
    );
    assets::routes().merge(read.merge(operate).with_state(board))
}
