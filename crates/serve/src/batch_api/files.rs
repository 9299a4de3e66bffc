//! `/v1/files`: uploaded files, and the output and error files of batches.
//!
//! An uploaded file is stored in pieces, each a payload of its own, so that no process ever holds
//! all of it. A batch's output and error files are never stored: they are its outcomes, streamed as
//! lines ([`super::content`]). The stored record is in [`super::file_record`].

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::TryStreamExt;
use serde_json::{Value, json};

use super::file_record::{FileRecord, find, remove_pieces};
use super::lease::IntakeLease;
use super::page::{self, ListPage, ListQuery};
use super::record::{BatchRecord, OutputKind};
use super::{content, notes};
use crate::AppState;
use crate::error::{ApiError, json_response};

/// Entries of a page, default and maximum: as in the Files API.
const PAGE_LIMITS: (usize, usize) = (10_000, 10_000);

/// Returns the answer to an upload.
pub(super) fn created(id: &str, record: &FileRecord) -> Response {
    json_response(StatusCode::OK, &record.object(id))
}

async fn find_or_refuse(app: &AppState, id: &str) -> Result<FileRecord, ApiError> {
    find(app.store.as_ref(), id).await?.ok_or_else(|| ApiError::no_such("File object", id))
}

pub(super) async fn list(
    State(app): State<AppState>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let asked = ListQuery::read(query)?;
    let mut all = notes::list::<FileRecord>(app.store.as_ref(), notes::FILES).await?;
    let is_wanted = asked.purpose.as_deref().is_none_or(|purpose| purpose == "batch");
    all.retain(|(_, record)| is_wanted && !record.is_expired());
    let (items, has_more) = ListPage::cut(all, &asked, PAGE_LIMITS)?.into_items();
    let object = |(id, record): (String, FileRecord)| {
        let object = record.object(&id);
        (id, object)
    };
    let objects: Vec<_> = items.into_iter().map(object).collect();
    Ok(json_response(StatusCode::OK, &page::object(&objects, has_more)))
}

pub(super) async fn get(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let object = match OutputKind::from_file_id(&id) {
        Some((output, batch)) => output_object(&app, &id, output, &batch).await?,
        None => find_or_refuse(&app, &id).await?.object(&id),
    };
    Ok(json_response(StatusCode::OK, &object))
}

/// Returns the object of a batch's file. It is not stored, so its size takes streaming all of it.
async fn output_object(
    app: &AppState,
    id: &str,
    output: OutputKind,
    batch: &str,
) -> Result<Value, ApiError> {
    let record = output_record(app, id, batch).await?;
    let mut lines = content::lines(app.store.as_ref(), output, batch).await?;
    let mut bytes = 0;
    while let Some(line) = lines.try_next().await.map_err(content::failed)? {
        bytes += line.len() as u64;
    }
    let name = if output == OutputKind::Answers { "output" } else { "error" };
    Ok(json!({
        "id": id,
        "object": "file",
        "bytes": bytes,
        "created_at": record.finalizing_at.or(record.cancelled_at).unwrap_or(record.created_at),
        "expires_at": null,
        "filename": format!("{batch}_{name}.jsonl"),
        "purpose": "batch_output",
        "status": "processed",
        "status_details": null,
    }))
}

async fn output_record(app: &AppState, id: &str, batch: &str) -> Result<BatchRecord, ApiError> {
    let record = notes::load(app.store.as_ref(), notes::BATCHES, batch).await?;
    record.ok_or_else(|| ApiError::no_such("File object", id))
}

pub(super) async fn get_content(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    match OutputKind::from_file_id(&id) {
        Some((output, batch)) => {
            output_record(&app, &id, &batch).await?;
            let lines = content::lines(app.store.as_ref(), output, &batch).await?;
            Ok(content::of_lines(&app, lines))
        }
        None => {
            let record = find_or_refuse(&app, &id).await?;
            Ok(content::of_upload(&app, &id, &record))
        }
    }
}

pub(super) async fn delete(
    State(app): State<AppState>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let store = app.store.as_ref();
    if OutputKind::from_file_id(&id).is_some() {
        let message = "a batch's output and error files are its outcomes: they stay with the batch";
        return Err(ApiError::invalid("file_id", message));
    }
    let record = find_or_refuse(&app, &id).await?;
    for (batch, lease) in notes::list::<IntakeLease>(store, notes::INTAKES).await? {
        let record = notes::load::<BatchRecord>(store, notes::BATCHES, &batch).await?;
        if lease.file == id && record.is_some_and(|record| record.is_active()) {
            let message = "a batch is being read from this file; delete it later";
            return Err(ApiError::invalid("file_id", message));
        }
    }
    // The record first: pieces without a record expire.
    store.delete_kv(notes::FILES, &id).await?;
    remove_pieces(store, &id, record.pieces).await?;
    let deleted = json!({ "id": id, "object": "file", "deleted": true });
    Ok(json_response(StatusCode::OK, &deleted))
}
