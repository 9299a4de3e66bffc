//! Batch actions: each button does the same as the command of its name.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use serde_json::json;

use super::state::DashboardState;
use crate::error::{ApiError, json_response};
use control::{self, ControlError};
use domain::job::BatchId;
use store::Batch;

const REASON: &str = "by the dashboard";

pub(super) fn routes() -> Router<DashboardState> {
    Router::new()
        .route("/dashboard/batches/{batch}/pause", post(pause))
        .route("/dashboard/batches/{batch}/resume", post(resume))
        .route("/dashboard/batches/{batch}/cancel", post(cancel))
}

async fn pause(
    State(board): State<DashboardState>,
    Path(batch): Path<BatchId>,
) -> Result<Response, ApiError> {
    answer(&board, control::pause(board.app.store.as_ref(), &batch, Some(REASON)).await).await
}

async fn resume(
    State(board): State<DashboardState>,
    Path(batch): Path<BatchId>,
) -> Result<Response, ApiError> {
    answer(&board, control::resume(board.app.store.as_ref(), &batch).await).await
}

async fn cancel(
    State(board): State<DashboardState>,
    Path(batch): Path<BatchId>,
) -> Result<Response, ApiError> {
    answer(&board, control::cancel(board.app.store.as_ref(), &batch).await).await
}

async fn answer(
    board: &DashboardState,
    changed: Result<Batch, ControlError>,
) -> Result<Response, ApiError> {
    let batch = changed.map_err(|error| match error {
        ControlError::Store(error) => ApiError::from(error),
        ControlError::NoSuchBatch(id) => ApiError::no_such("batch", id.as_str()),
        error => ApiError::new(StatusCode::CONFLICT, "not_in_this_state", error.to_string()),
    })?;
    // Drops the cached overview, so that the user sees the change at once.
    *board.overview.lock().await = None;
    let answer = json!({ "batch": batch.id, "state": batch.state });
    Ok(json_response(StatusCode::OK, &answer))
}
