//! `/v1/files`: uploaded files, and the output and error files of batches.
//!
//! An uploaded file is stored in pieces, each a payload of its own, so that no process ever holds
//! all of it. A batch's output and error files are never stored: they are its outcomes, streamed as
//! lines ([`super::content`]).

use axum::Extension;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::intake::IntakeLease;
use super::page::{self, ListPage, ListQuery};
use super::record::{BatchRecord, OutputKind};
use super::{content, notes};
use crate::AppState;
use crate::error::{ApiError, json_response};
use store::{Store, StoreError};

/// Size of each piece of a file but the last: fits into one item of any store.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// Entries of a page, default and maximum: as in the Files API.
const PAGE_LIMITS: (usize, usize) = (10_000, 10_000);

/// Stored record of an uploaded file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub filename: String,
    pub bytes: u64,
    pub pieces: u64,
    pub created_at: i64,
    pub expires_at: i64,
}

impl FileRecord {
    fn object(&self, id: &str) -> Value {
        json!({
            "id": id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": "batch",
            "status": "processed",
            "status_details": null,
        })
    }

    fn is_expired(&self) -> bool {
        self.expires_at <= notes::now()
    }
}

/// Returns the answer to an upload.
pub(super) fn created(id: &str, record: &FileRecord) -> Response {
    json_response(StatusCode::OK, &record.object(id))
}

/// Returns the payload name of one piece.
pub(super) fn piece_name(id: &str, number: u64) -> String {
    format!("{id}.{number}")
}

/// Deletes a file's pieces.
pub(super) async fn remove_pieces(
    store: &dyn Store,
    id: &str,
    pieces: u64,
) -> Result<(), StoreError> {
    for number in 0..pieces {
        store.delete_payload(&piece_name(id, number)).await?;
    }
    Ok(())
}

/// Reads a piece that the file must have.
pub(super) async fn get_piece(
    store: &dyn Store,
    id: &str,
    number: u64,
) -> Result<Bytes, StoreError> {
    let missing = || StoreError::Refused(format!("a piece of the file '{id}' is missing").into());
    store.get_payload(&piece_name(id, number)).await?.ok_or_else(missing)
}

/// Finds an uploaded file that has not expired.
pub(super) async fn find(store: &dyn Store, id: &str) -> Result<Option<FileRecord>, StoreError> {
    let record = notes::load::<FileRecord>(store, notes::FILES, id).await?;
    Ok(record.filter(|record| !record.is_expired()))
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

/// Deletes expired files.
pub(super) async fn remove_expired(store: &dyn Store) -> Result<(), StoreError> {
    for (id, record) in notes::list::<FileRecord>(store, notes::FILES).await? {
        if record.is_expired() {
            remove_pieces(store, &id, record.pieces).await?;
            store.delete_kv(notes::FILES, &id).await?;
        }
    }
    Ok(())
}

/// Limit on concurrent uploads: each holds a piece in memory.
pub(super) type UploadSlots = Extension<std::sync::Arc<tokio::sync::Semaphore>>;
