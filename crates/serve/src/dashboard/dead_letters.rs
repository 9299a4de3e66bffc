//! Dead letters by cause, and the actions on them.

use std::collections::BTreeMap;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::state::DashboardState;
use crate::error::{ApiError, json_response};
use domain::job::{Amendment, BatchId};
use intake::dead_letters::{self, DeadLetterError};
use queue::DeadLetter;

/// Dead letters read for one view, read per request, and shown per cause.
const MAX_READ: usize = 10_000;
const PAGE_SIZE: usize = 250;
const SHOWN_PER_CAUSE: usize = 20;

pub(super) fn views() -> Router<DashboardState> {
    Router::new().route("/dashboard/dead-letters", get(list))
}

pub(super) fn actions() -> Router<DashboardState> {
    Router::new()
        .route("/dashboard/dead-letters/retry", post(retry))
        .route("/dashboard/dead-letters/drop", post(discard))
}

#[derive(Default, Serialize)]
struct DeadLetterCause {
    count: u64,
    letters: Vec<Value>,
}

async fn list(State(board): State<DashboardState>) -> Result<Response, ApiError> {
    let show_content = board.app.config.serve.show_content;
    let mut causes: BTreeMap<String, DeadLetterCause> = BTreeMap::new();
    let (mut from, mut looked_at, mut more) = (0, 0, false);
    loop {
        let page = board.app.queue.dead_letters(from, PAGE_SIZE).await?;
        let Some(last) = page.last() else { break };
        if looked_at >= MAX_READ {
            more = true;
            break;
        }
        (from, looked_at) = (last.number + 1, looked_at + page.len());
        for letter in page {
            let cause = causes.entry(letter.reason.reason.clone()).or_default();
            cause.count += 1;
            if cause.letters.len() < SHOWN_PER_CAUSE {
                cause.letters.push(shown(&letter, show_content));
            }
        }
    }
    let answer = json!({ "causes": causes, "looked_at": looked_at, "more": more });
    Ok(json_response(StatusCode::OK, &answer))
}

fn shown(letter: &DeadLetter, show_content: bool) -> Value {
    let job = letter.job();
    let prompt = job.as_ref().filter(|_| show_content).map(|job| job.body.clone());
    json!({
        "number": letter.number,
        "batch": job.as_ref().map(|job| &job.batch_id),
        "custom_id": job.as_ref().map(|job| &job.custom_id),
        "description": letter.reason.description,
        "at": letter.at,
        "prompt": prompt.map(|body| String::from_utf8_lossy(&body).into_owned()),
    })
}

/// Selector of the dead letters that match all given fields. Selecting all must be explicit.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeadLetterSelector {
    #[serde(default)]
    all: bool,
    cause: Option<String>,
    number: Option<i64>,
    batch: Option<BatchId>,
    /// Changes to the requests, if they are retried.
    model: Option<String>,
    max_tokens: Option<u32>,
}

impl DeadLetterSelector {
    fn read(body: &[u8]) -> Result<Self, ApiError> {
        let wrong = |error: serde_json::Error| {
            ApiError::new(StatusCode::BAD_REQUEST, "invalid_json", error.to_string())
        };
        let chosen: Self = serde_json::from_slice(body).map_err(wrong)?;
        let is_named = chosen.cause.is_some() || chosen.number.is_some() || chosen.batch.is_some();
        if chosen.all == is_named {
            let message = "name a cause, a number or a batch, or else say \"all\": true";
            return Err(ApiError::invalid("all", message));
        }
        Ok(chosen)
    }

    fn matches(&self, letter: &DeadLetter) -> bool {
        self.cause.as_ref().is_none_or(|cause| *cause == letter.reason.reason)
            && self.number.is_none_or(|number| number == letter.number)
            && self
                .batch
                .as_ref()
                .is_none_or(|batch| letter.job().is_some_and(|job| job.batch_id == *batch))
    }

    fn amendment(&self) -> Amendment {
        Amendment { model: self.model.clone(), max_tokens: self.max_tokens }
    }
}

async fn retry(State(board): State<DashboardState>, body: Bytes) -> Result<Response, ApiError> {
    let chosen = DeadLetterSelector::read(&body)?;
    let (queue, store) = (board.app.queue.as_ref(), board.app.store.as_ref());
    let amendment = chosen.amendment();
    let done =
        dead_letters::resubmit(|letter| chosen.matches(letter), &amendment, queue, store).await;
    let done = done.map_err(api_error)?;
    *board.overview.lock().await = None;
    let answer = json!({ "jobs": done.jobs, "known": done.known, "left": done.left });
    Ok(json_response(StatusCode::OK, &answer))
}

async fn discard(State(board): State<DashboardState>, body: Bytes) -> Result<Response, ApiError> {
    let chosen = DeadLetterSelector::read(&body)?;
    let (queue, store) = (board.app.queue.as_ref(), board.app.store.as_ref());
    let gone = dead_letters::discard(|letter| chosen.matches(letter), queue, store).await;
    let answer = json!({ "dropped": gone.map_err(api_error)? });
    *board.overview.lock().await = None;
    Ok(json_response(StatusCode::OK, &answer))
}

fn api_error(error: DeadLetterError) -> ApiError {
    match error {
        DeadLetterError::Queue(error) => error.into(),
        DeadLetterError::Store(error) => error.into(),
    }
}
