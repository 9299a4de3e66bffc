//! `/v1/batches`: create, retrieve, list, cancel.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use super::lease::IntakeLease;
use super::page::{self, ListPage, ListQuery};
use super::record::{BatchRecord, BatchRequestCounts, BatchSnapshot};
use super::{file_record, notes};
use crate::AppState;
use crate::error::{ApiError, json_response};
use control::{self, ControlError};
use domain::job::{Api, BatchId};
use store::{Store, StoreError};

/// Entries of a page: default and maximum (OpenAI docs, "List batch").
const PAGE_LIMITS: (usize, usize) = (20, 100);

/// The longest completion window, in hours: a week.
const LONGEST_WINDOW: i64 = 168;

/// Limits of the metadata (OpenAI docs, "Create batch").
const MOST_PAIRS: usize = 16;
const LONGEST_KEY: usize = 64;
const LONGEST_VALUE: usize = 512;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBatchRequest {
    input_file_id: String,
    endpoint: String,
    completion_window: String,
    #[serde(default)]
    metadata: Option<BTreeMap<String, String>>,
}

pub(super) async fn post(
    State(app): State<AppState>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let body = body.map_err(|refused| {
        ApiError::new(refused.status(), "invalid_body", "the body is too large, or was cut off")
    })?;
    let wanted: CreateBatchRequest = serde_json::from_slice(&body).map_err(|error| {
        let message = format!("invalid body: {error}");
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_body", message)
    })?;
    let record = new_record(wanted, notes::now())?;
    let store = app.store.as_ref();
    if file_record::find(store, &record.input_file_id).await?.is_none() {
        let message = "there is no such file; upload it first, with purpose=batch";
        return Err(ApiError::invalid("input_file_id", message));
    }
    let id = notes::new_id("batch_");
    // The intake first: a record without one would wait forever.
    let lease = IntakeLease::free(record.input_file_id.clone());
    notes::create(store, notes::INTAKES, &id, &lease).await?;
    notes::create(store, notes::BATCHES, &id, &record).await?;
    app.batch_submitted.notify_one();
    Ok(json_response(StatusCode::OK, &record.object(&id, &BatchSnapshot::default())))
}

fn new_record(wanted: CreateBatchRequest, now: i64) -> Result<BatchRecord, ApiError> {
    let known = [Api::ChatCompletions, Api::Embeddings, Api::Responses];
    // Azure's Batch API writes it without `/v1` (aibrix#2409).
    let endpoint = Api::from_url(&wanted.endpoint).filter(|api| known.contains(api));
    let endpoint = endpoint.ok_or_else(|| {
        let urls = known.map(Api::url).join(", ");
        ApiError::invalid("endpoint", format!("it must be one of {urls}"))
    })?;
    let hours = wanted.completion_window.strip_suffix('h').and_then(|n| n.parse::<i64>().ok());
    let hours = hours.filter(|hours| (1..=LONGEST_WINDOW).contains(hours)).ok_or_else(|| {
        let message = format!("it must be '24h', or another number of hours to {LONGEST_WINDOW}");
        ApiError::invalid("completion_window", message)
    })?;
    check_metadata(wanted.metadata.as_ref())?;
    Ok(BatchRecord {
        endpoint,
        input_file_id: wanted.input_file_id,
        completion_window: wanted.completion_window,
        metadata: wanted.metadata,
        created_at: now,
        expires_at: now + hours * 3_600,
        in_progress_at: None,
        finalizing_at: None,
        completed_at: None,
        failed_at: None,
        expired_at: None,
        cancelling_at: None,
        cancelled_at: None,
        errors: Vec::new(),
        counts: BatchRequestCounts::default(),
    })
}

fn check_metadata(metadata: Option<&BTreeMap<String, String>>) -> Result<(), ApiError> {
    let Some(metadata) = metadata else { return Ok(()) };
    let fits = |(key, value): (&String, &String)| {
        key.chars().count() <= LONGEST_KEY && value.chars().count() <= LONGEST_VALUE
    };
    if metadata.len() <= MOST_PAIRS && metadata.iter().all(fits) {
        return Ok(());
    }
    let message = format!(
        "at most {MOST_PAIRS} pairs, keys of {LONGEST_KEY} and values of {LONGEST_VALUE} characters"
    );
    Err(ApiError::invalid("metadata", message))
}

pub(super) async fn get(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let record = notes::load::<BatchRecord>(app.store.as_ref(), notes::BATCHES, &id).await?;
    let record = record.ok_or_else(|| ApiError::no_such("batch", &id))?;
    let (record, seen) = refresh(&app, &id, record).await?;
    Ok(json_response(StatusCode::OK, &record.object(&id, &seen)))
}

pub(super) async fn list(
    State(app): State<AppState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let asked = ListQuery::read(query)?;
    let all = notes::list::<BatchRecord>(app.store.as_ref(), notes::BATCHES).await?;
    let (items, has_more) = ListPage::cut(all, &asked, PAGE_LIMITS)?.into_items();
    let mut objects = Vec::with_capacity(items.len());
    for (id, record) in items {
        let (record, seen) = refresh(&app, &id, record).await?;
        let object = record.object(&id, &seen);
        objects.push((id, object));
    }
    Ok(json_response(StatusCode::OK, &page::object(&objects, has_more)))
}

pub(super) async fn cancel(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let store = app.store.as_ref();
    let record = notes::load::<BatchRecord>(store, notes::BATCHES, &id).await?;
    let record = record.ok_or_else(|| ApiError::no_such("batch", &id))?;
    let (record, _) = refresh(&app, &id, record).await?;
    if record.is_final() {
        let status = serde_json::to_value(record.status()).unwrap_or_default();
        let message = format!("a batch with the status {status} can't be cancelled");
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_status", message));
    }
    let now = notes::now();
    let cancel = |record: &mut BatchRecord| record.cancel(now);
    let record = notes::update(store, (notes::BATCHES, &id), cancel).await?.unwrap_or(record);
    let (record, seen) = refresh(&app, &id, record).await?;
    Ok(json_response(StatusCode::OK, &record.object(&id, &seen)))
}

/// Reads the batch's current state, and stores what has changed.
async fn refresh(
    app: &AppState,
    id: &str,
    record: BatchRecord,
) -> Result<(BatchRecord, BatchSnapshot), ApiError> {
    if record.is_final() || record.in_progress_at.is_none() {
        return Ok((record, BatchSnapshot::default()));
    }
    let store = app.store.as_ref();
    if record.cancelling_at.is_some() {
        cancel_jobs(store, id).await?;
    }
    let seen = app.snapshots.get(store, id).await?;
    let now = notes::now();
    if !record.clone().advance(&seen, now) {
        return Ok((record, seen));
    }
    let advance = |record: &mut BatchRecord| record.advance(&seen, now);
    let record = notes::update(store, (notes::BATCHES, id), advance).await?.unwrap_or(record);
    Ok((record, seen))
}

/// Makes the workers end the batch's jobs. Done and cancelled batches stay as they are; a batch
/// that is not there yet is cancelled by the server that is filling it.
pub(super) async fn cancel_jobs(store: &dyn Store, id: &str) -> Result<(), StoreError> {
    let Ok(batch) = id.parse::<BatchId>() else { return Ok(()) };
    match control::cancel(store, &batch).await {
        Err(ControlError::Store(error)) => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(json: serde_json::Value) -> Result<BatchRecord, Option<&'static str>> {
        let wanted: CreateBatchRequest = serde_json::from_value(json).map_err(|_| None)?;
        new_record(wanted, 1_000).map_err(|error| error.param)
    }

    #[test]
    fn what_can_not_be_done_is_refused_by_its_field() {
        let base = serde_json::json!({
            "input_file_id": "file-1", "endpoint": "/v1/embeddings", "completion_window": "24h",
            "metadata": { "team": "tokyo" },
        });
        let with = |key: &str, value: serde_json::Value| {
            let mut json = base.clone();
            json[key] = value;
            wanted(json)
        };
        assert_eq!(wanted(base.clone()).map(|record| record.expires_at), Ok(1_000 + 86_400));
        assert_eq!(with("completion_window", "1h".into()).unwrap().expires_at, 4_600);
        for window in ["24", "0h", "-1h", "169h", "1d", "", "99999999999999999999h"] {
            let refused = with("completion_window", window.into());
            assert_eq!(refused, Err(Some("completion_window")), "{window}");
        }
        assert_eq!(with("endpoint", "/v1/images".into()), Err(Some("endpoint")));
        assert_eq!(with("output_expires_after", serde_json::json!({})), Err(None));
        let many: BTreeMap<_, _> = (0..17).map(|n| (n.to_string(), "x")).collect();
        assert_eq!(with("metadata", serde_json::json!(many)), Err(Some("metadata")));
        let long = serde_json::json!({ "a": "あ".repeat(513) });
        assert_eq!(with("metadata", long), Err(Some("metadata")));
        assert_eq!(with("metadata", serde_json::json!({ "a": 1 })), Err(None));
    }
}
