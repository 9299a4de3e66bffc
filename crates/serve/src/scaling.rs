//! `/scaling`: how many workers are of use now, for a scaler that asks by HTTP.
//!
//! KEDA's `metrics-api` takes `useful_replicas` of it (`docs/scaling.md`); the rest says why. When the
//! queue or the store can't be asked the answer is 503, and a scaler leaves things as they are: a
//! guess would start or end workers for nothing.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use serde_json::json;

use super::App;
use super::access;
use super::error::{ApiError, json_response};
use crate::settings::Role;
use report::replicas;

pub fn routes(app: &App) -> Router {
    let routes = Router::new().route("/scaling", get(scaling));
    access::require(routes, app, Role::Read).with_state(app.clone())
}

async fn scaling(State(app): State<App>) -> Result<Response, ApiError> {
    let store = app.store.as_ref();
    let depth = app.queue.depth().await?;
    let words = store.words().await?;
    let backlog = replicas::backlog(store, &store.batches().await?).await?;
    let replicas = replicas::now(depth, backlog, &words, &app.config.scaling);
    Ok(json_response(StatusCode::OK, &json!(replicas)))
}
