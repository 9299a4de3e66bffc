//! What the page shows of all: batches, deployments, workers, and what they used.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Board;
use crate::error::{ApiError, json_response};
use crate::settings::Role;
use domain::job::BatchId;
use domain::share::Word;
use report::deployments;
use report::live::{By, Which};
use report::usage::{self, Dimension};

/// Batches that are shown, the newest of all.
const MOST_BATCHES: usize = 100;

/// Lines of usage that are shown; metadata may have any number of values.
const MOST_LINES: usize = 500;

/// How old an overview may be.
const FRESH_FOR: Duration = Duration::from_secs(1);

pub(super) fn routes() -> Router<Board> {
    Router::new().route("/dashboard/overview", get(overview)).route("/dashboard/usage", get(usage))
}

async fn overview(
    State(board): State<Board>,
    Extension(role): Extension<Role>,
) -> Result<Response, ApiError> {
    let seen = seen(&board).await?;
    let show_content = board.app.config.serve.show_content;
    let answer = json!({ "role": role, "show_content": show_content, "seen": *seen });
    Ok(json_response(axum::http::StatusCode::OK, &answer))
}

/// What is to be seen now, or was a moment ago.
async fn seen(board: &Board) -> Result<Arc<Value>, ApiError> {
    let mut last = board.overview.lock().await;
    if let Some((at, seen)) = last.as_ref()
        && at.elapsed() < FRESH_FOR
    {
        return Ok(seen.clone());
    }
    let seen = Arc::new(look(board).await?);
    *last = Some((Instant::now(), seen.clone()));
    Ok(seen)
}

async fn look(board: &Board) -> Result<Value, ApiError> {
    let (store, prices) = (board.app.store.as_ref(), board.prices()?);
    let words = store.words().await?;
    let deployments = deployments::sum(&words);
    let by = By { deployments: &deployments, prices: &prices };
    let newest = Which::Newest(MOST_BATCHES);
    let batches = board.watch.lock().await.look(store, newest, by).await?;
    let depth = board.app.queue.depth().await?;
    let with_samples = deployments.iter().map(|deployment| {
        let samples = board.samples.of(&deployment.name);
        json!({ "now": deployment, "samples": samples })
    });
    let workers = words.iter().filter(|word| word.is_worker()).map(worker);
    Ok(json!({
        "batches": batches,
        "most_batches": MOST_BATCHES,
        "deployments": with_samples.collect::<Vec<_>>(),
        "workers": workers.collect::<Vec<_>>(),
        "queue": depth,
        "currency": prices.currency,
        "prices_of": prices.date,
    }))
}

fn worker(word: &Word) -> Value {
    let about = |key: &str| word.about[key].clone();
    json!({
        "instance": word.instance,
        "host": about("host"),
        "pid": about("pid"),
        "version": about("version"),
        "started": about("started"),
    })
}

#[derive(Deserialize)]
struct UsageBy {
    by: String,
    batch: Option<BatchId>,
}

async fn usage(
    State(board): State<Board>,
    Query(asked): Query<UsageBy>,
) -> Result<Response, ApiError> {
    let by: Dimension = asked
        .by
        .parse()
        .map_err(|error: usage::UnknownDimension| ApiError::invalid("by", error.to_string()))?;
    let (store, prices) = (board.app.store.as_ref(), board.prices()?);
    let lines = usage::sum(store, asked.batch.as_ref(), &[by], &prices).await?;
    let total = usage::total(&lines);
    let shown = &lines[..lines.len().min(MOST_LINES)];
    let answer = json!({
        "lines": shown,
        "left_out": lines.len() - shown.len(),
        "total": total,
        "currency": prices.currency,
        "prices_of": prices.date,
    });
    Ok(json_response(axum::http::StatusCode::OK, &answer))
}
