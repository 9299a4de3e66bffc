//! Overview of batches, deployments and workers, and usage.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::state::DashboardState;
use crate::error::{ApiError, json_response};
use crate::settings::Role;
use domain::heartbeat::{Heartbeat, WorkerStatus};
use domain::job::BatchId;
use report::deployments;
use report::live::{BatchFilter, LiveInputs};
use report::usage::{self, UsageDimension};

/// Newest batches that are shown.
const MAX_BATCHES: usize = 100;

/// Usage lines that are shown; metadata may have any number of values.
const MAX_USAGE_LINES: usize = 500;

/// Maximum age of an overview.
const FRESH_FOR: Duration = Duration::from_secs(1);

pub(super) fn routes() -> Router<DashboardState> {
    Router::new().route("/dashboard/overview", get(overview)).route("/dashboard/usage", get(usage))
}

async fn overview(
    State(board): State<DashboardState>,
    Extension(role): Extension<Role>,
) -> Result<Response, ApiError> {
    let seen = cached_overview(&board).await?;
    let show_content = board.app.config.serve.show_content;
    let answer = json!({ "role": role, "show_content": show_content, "seen": *seen });
    Ok(json_response(axum::http::StatusCode::OK, &answer))
}

/// Returns the cached overview, or a new one if it is too old.
async fn cached_overview(board: &DashboardState) -> Result<Arc<Value>, ApiError> {
    let mut last = board.overview.lock().await;
    if let Some((at, seen)) = last.as_ref()
        && at.elapsed() < FRESH_FOR
    {
        return Ok(seen.clone());
    }
    let seen = Arc::new(build_overview(board).await?);
    *last = Some((Instant::now(), seen.clone()));
    Ok(seen)
}

async fn build_overview(board: &DashboardState) -> Result<Value, ApiError> {
    let (store, prices) = (board.app.store.as_ref(), board.prices()?);
    let heartbeats = store.heartbeats().await?;
    let deployments = deployments::aggregate(&heartbeats);
    let by = LiveInputs { deployments: &deployments, prices: &prices };
    let newest = BatchFilter::Newest(MAX_BATCHES);
    let batches = board.watcher.lock().await.snapshot(store, newest, by).await?;
    let depth = board.app.queue.depth().await?;
    let with_samples = deployments.iter().map(|deployment| {
        let samples = board.samples.of(&deployment.name);
        json!({ "now": deployment, "samples": samples })
    });
    let workers = heartbeats.iter().filter(|heartbeat| heartbeat.is_worker()).map(worker);
    Ok(json!({
        "batches": batches,
        "most_batches": MAX_BATCHES,
        "deployments": with_samples.collect::<Vec<_>>(),
        "workers": workers.collect::<Vec<_>>(),
        "queue": depth,
        "currency": prices.currency,
        "prices_of": prices.date,
    }))
}

fn worker(worker: &Heartbeat) -> Value {
    let WorkerStatus { host, pid, version, started, .. } = &worker.status;
    let instance = worker.instance;
    json!({ "instance": instance, "host": host, "pid": pid, "version": version, "started": started })
}

#[derive(Deserialize)]
struct UsageQuery {
    by: String,
    batch: Option<BatchId>,
}

async fn usage(
    State(board): State<DashboardState>,
    Query(asked): Query<UsageQuery>,
) -> Result<Response, ApiError> {
    let by: UsageDimension = asked
        .by
        .parse()
        .map_err(|error: usage::UnknownDimension| ApiError::invalid("by", error.to_string()))?;
    let (store, prices) = (board.app.store.as_ref(), board.prices()?);
    let lines = usage::sum(store, asked.batch.as_ref(), &[by], &prices).await?;
    let total = usage::total(&lines);
    let shown = &lines[..lines.len().min(MAX_USAGE_LINES)];
    let answer = json!({
        "lines": shown,
        "left_out": lines.len() - shown.len(),
        "total": total,
        "currency": prices.currency,
        "prices_of": prices.date,
    });
    Ok(json_response(axum::http::StatusCode::OK, &answer))
}
