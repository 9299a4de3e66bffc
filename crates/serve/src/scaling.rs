//! `/scaling`: useful number of workers now, for a scaler that polls by HTTP.
//!
//! KEDA's `metrics-api` reads `useful_replicas` (`docs/scaling.md`); the rest explains it. If the
//! queue or the store can't be read the answer is 503, and a scaler changes nothing: a guess would
//! start or stop workers for nothing.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde_json::json;

use super::AppState;
use super::access;
use super::error::{ApiError, json_response};
use crate::settings::Role;
use report::autoscale;

pub fn routes(app: &AppState) -> Router {
    let routes = Router::new().route("/scaling", get(scaling));
    access::require_role(routes, &app.access, Role::Read).with_state(app.clone())
}

async fn scaling(State(app): State<AppState>) -> Result<Response, ApiError> {
    let store = app.store.as_ref();
    let depth = app.queue.depth().await?;
    let words = store.heartbeats().await?;
    let backlog = autoscale::backlog(store, &store.batches().await?).await?;
    let replicas = autoscale::advise(depth, backlog, &words, &app.config.scaling);
    Ok(json_response(StatusCode::OK, &json!(replicas)))
}
