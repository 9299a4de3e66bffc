//! Jobs of one batch: the first ones by ending, and the details of one.

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use futures_util::TryStreamExt;
use serde::Deserialize;
use serde_json::{Value, json};

use super::state::DashboardState;
use crate::error::{ApiError, json_response};
use domain::job::{BatchId, JobId};
use domain::outcome::{Outcome, OutcomeStatus};
use domain::prices::Prices;
use queue::peek::PeekFilter;
use store::SortOrder;

/// Jobs listed, and outcomes read to find them: a page must not read a million.
const MAX_LISTED: usize = 50;
const MAX_SCANNED: usize = 5_000;

pub(super) fn routes() -> Router<DashboardState> {
    Router::new()
        .route("/dashboard/batches/{batch}/jobs", get(list))
        .route("/dashboard/batches/{batch}/job", get(one))
}

#[derive(Deserialize)]
struct JobListQuery {
    ending: Option<OutcomeStatus>,
}

async fn list(
    State(board): State<DashboardState>,
    Path(batch): Path<BatchId>,
    Query(JobListQuery { ending }): Query<JobListQuery>,
) -> Result<Response, ApiError> {
    require_batch(&board, &batch).await?;
    let mut outcomes = board.app.store.outcomes(&batch, SortOrder::AsStored).await?;
    let (mut jobs, mut looked_through, mut more) = (Vec::new(), 0, false);
    while let Some(outcome) = outcomes.try_next().await? {
        if jobs.len() == MAX_LISTED || looked_through == MAX_SCANNED {
            more = true;
            break;
        }
        looked_through += 1;
        if ending.is_none_or(|ending| ending == outcome.ending) {
            jobs.push(job_summary(&outcome));
        }
    }
    let answer = json!({ "jobs": jobs, "looked_through": looked_through, "more": more });
    Ok(json_response(StatusCode::OK, &answer))
}

#[derive(Deserialize)]
struct JobDetailQuery {
    custom_id: String,
}

async fn one(
    State(board): State<DashboardState>,
    Path(batch): Path<BatchId>,
    Query(JobDetailQuery { custom_id }): Query<JobDetailQuery>,
) -> Result<Response, ApiError> {
    require_batch(&board, &batch).await?;
    let answer = match board.app.store.outcome(&batch, &custom_id).await? {
        Some(outcome) => {
            let show_content = board.app.config.serve.show_content;
            job_details(&outcome, &board.prices()?, show_content)
        }
        None => {
            let id = JobId::new(&batch, &custom_id);
            let sought = PeekFilter { jobs: [id].into(), batch: None };
            let sight = board.app.queue.peek(&sought).await?;
            if sight.jobs.is_empty() && sight.examined.is_none() {
                return Err(ApiError::no_such("job", &custom_id));
            }
            json!({
                "custom_id": custom_id,
                "id": id,
                "seen": sight.jobs,
                "looked_at": sight.examined,
            })
        }
    };
    Ok(json_response(StatusCode::OK, &answer))
}

async fn require_batch(board: &DashboardState, batch: &BatchId) -> Result<(), ApiError> {
    let no_such = || ApiError::no_such("batch", batch.as_str());
    board.app.store.batch(batch).await?.map(drop).ok_or_else(no_such)
}

fn job_summary(outcome: &Outcome) -> Value {
    json!({
        "custom_id": outcome.custom_id,
        "ending": outcome.ending,
        "code": outcome.failure.as_ref().map(|failure| &failure.code),
        "deployment": outcome.deployment,
        "latency_ms": outcome.latency_ms,
        "tokens": outcome.usage.total(),
        "finished_at": outcome.finished_at,
    })
}

fn job_details(outcome: &Outcome, prices: &Prices, show_content: bool) -> Value {
    let is_flex = outcome.service_tier.as_deref() == Some("flex");
    let content = || outcome.body.as_deref().map(|body| String::from_utf8_lossy(body).into_owned());
    json!({
        "custom_id": outcome.custom_id,
        "id": outcome.job_id,
        "ending": outcome.ending,
        "failure": outcome.failure,
        "attempts": outcome.attempts,
        "throttled": outcome.throttled,
        "latency_ms": outcome.latency_ms,
        "finished_at": outcome.finished_at,
        "deadline": outcome.deadline,
        "deployment": outcome.deployment,
        "model": outcome.model,
        "service_tier": outcome.service_tier,
        "usage": outcome.usage,
        "cost": prices.cost_in(&outcome.batch_id, &outcome.model, outcome.usage, is_flex),
        "currency": prices.currency,
        "request_id": outcome.request_id,
        "answer": show_content.then(content).flatten(),
    })
}
