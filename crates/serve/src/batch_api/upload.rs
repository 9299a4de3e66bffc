//! `POST /v1/files`: a form with a file, streamed into the store piece by piece.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::extract::multipart::{Field, Multipart, MultipartError, MultipartRejection};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use tokio::time::timeout;

use super::file_record::{self, FileRecord, PIECE_BYTES, piece_name};
use super::{files, notes};
use crate::AppState;
use crate::error::ApiError;
use store::{PAYLOAD_TTL, Store};

/// Bytes of any other field of the form: each is one word.
const MAX_FIELD_BYTES: usize = 1 << 10;

/// Characters of a file name; longer ones are truncated.
const MAX_NAME_CHARS: usize = 255;

/// Allowed lifetimes of a file, in seconds (OpenAI docs, "Upload file", `expires_after`).
const LIFETIME_SECONDS: std::ops::RangeInclusive<i64> = 3_600..=2_592_000;

/// Limit on concurrent uploads: each holds a piece in memory.
pub(super) type UploadSlots = Extension<std::sync::Arc<tokio::sync::Semaphore>>;

/// Fields of the form.
#[derive(Default)]
struct UploadForm {
    purpose: Option<String>,
    anchor: Option<String>,
    requested_seconds: Option<i64>,
    file: Option<(String, UploadedPieces)>,
}

pub(super) async fn post(
    State(app): State<AppState>,
    room: UploadSlots,
    form: Result<Multipart, MultipartRejection>,
) -> Result<Response, ApiError> {
    let form = form.map_err(|_| {
        ApiError::invalid("file", "send the file as multipart/form-data, with purpose=batch")
    })?;
    let Ok(_room) = room.0.try_acquire() else {
        let message = "too many files are being uploaded; try again soon";
        let error = ApiError::new(StatusCode::TOO_MANY_REQUESTS, "too_many_uploads", message);
        return Err(ApiError { retry_after: Some(2), ..error });
    };
    let mut form = read(&app, form).await?;
    match form.purpose.as_deref() {
        Some("batch") => {}
        Some(_) => return Err(ApiError::invalid("purpose", "only the purpose 'batch' is served")),
        None => return Err(ApiError::invalid("purpose", "it is missing; send purpose=batch")),
    }
    let Some((filename, pieces)) = form.file.take() else {
        return Err(ApiError::invalid("file", "the form has no file"));
    };
    let created_at = notes::now();
    let record = FileRecord {
        filename,
        bytes: pieces.bytes,
        pieces: pieces.count,
        created_at,
        expires_at: created_at + form.lifetime_seconds()?,
    };
    let id = pieces.id.clone();
    notes::create(app.store.as_ref(), notes::FILES, &id, &record).await?;
    pieces.keep();
    Ok(files::created(&id, &record))
}

async fn read(app: &AppState, mut parts: Multipart) -> Result<UploadForm, ApiError> {
    let idle = Duration::from_secs(app.config.serve.limits.idle_seconds);
    let mut form = UploadForm::default();
    while let Some(mut field) = in_time(idle, parts.next_field()).await? {
        match field.name().unwrap_or_default() {
            "file" if form.file.is_some() => {
                return Err(ApiError::invalid("file", "send one file at a time"));
            }
            "file" => {
                let name = field.file_name().unwrap_or("upload.jsonl");
                let name = name.chars().filter(|c| !c.is_control()).take(MAX_NAME_CHARS).collect();
                form.file = Some((name, store_file(app, idle, &mut field).await?));
            }
            "purpose" => form.purpose = Some(read_text(idle, &mut field).await?),
            "expires_after[anchor]" => form.anchor = Some(read_text(idle, &mut field).await?),
            "expires_after[seconds]" => {
                let seconds = read_text(idle, &mut field).await?.parse();
                let refused = |_| ApiError::invalid("expires_after", "seconds must be a number");
                form.requested_seconds = Some(seconds.map_err(refused)?);
            }
            _ => return Err(ApiError::invalid("file", "the form has a field that is not known")),
        }
    }
    Ok(form)
}

impl UploadForm {
    /// Returns the lifetime of the file, in seconds.
    fn lifetime_seconds(&self) -> Result<i64, ApiError> {
        let longest = PAYLOAD_TTL.as_secs().cast_signed();
        let refused = |message: &str| Err(ApiError::invalid("expires_after", message));
        match (&self.anchor, self.requested_seconds) {
            (None, None) => Ok(longest),
            (Some(anchor), _) if anchor != "created_at" => refused("anchor must be 'created_at'"),
            (Some(_), Some(seconds)) if LIFETIME_SECONDS.contains(&seconds) => Ok(seconds),
            (Some(_), Some(_)) => refused("seconds must be from 3600 to 2592000"),
            _ => refused("it needs both anchor and seconds"),
        }
    }
}

/// Reads the text of a short field.
async fn read_text(idle: Duration, field: &mut Field<'_>) -> Result<String, ApiError> {
    let mut bytes = BytesMut::new();
    while let Some(more) = in_time(idle, field.chunk()).await? {
        bytes.extend_from_slice(&more);
        if bytes.len() > MAX_FIELD_BYTES {
            return Err(ApiError::invalid("file", "a field of the form is too long"));
        }
    }
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|_| ApiError::invalid("file", "a field of the form is no text"))?;
    Ok(text.to_owned())
}

async fn store_file(
    app: &AppState,
    idle: Duration,
    field: &mut Field<'_>,
) -> Result<UploadedPieces, ApiError> {
    let mib = app.config.serve.limits.file_mib;
    let id = notes::new_id("file-");
    let mut pieces =
        UploadedPieces { store: app.store.clone(), id, count: 0, bytes: 0, kept: false };
    let mut piece = BytesMut::with_capacity(PIECE_BYTES);
    while let Some(mut more) = in_time(idle, field.chunk()).await? {
        pieces.bytes += more.len() as u64;
        if pieces.bytes > mib << 20 {
            let message = format!("the file is larger than {mib} MiB; split it");
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            let error = ApiError::new(status, "file_too_large", message);
            return Err(ApiError { param: Some("file"), ..error });
        }
        while !more.is_empty() {
            let rest = more.split_off(more.len().min(PIECE_BYTES - piece.len()));
            piece.extend_from_slice(&more);
            more = rest;
            if piece.len() == PIECE_BYTES {
                pieces.add(piece.split().freeze()).await?;
                piece.reserve(PIECE_BYTES);
            }
        }
    }
    if !piece.is_empty() {
        pieces.add(piece.freeze()).await?;
    }
    Ok(pieces)
}

/// Stored pieces of an upload. Dropping deletes them unless they are kept, also if the caller
/// disconnects midway.
struct UploadedPieces {
    store: Arc<dyn Store>,
    id: String,
    count: u64,
    bytes: u64,
    kept: bool,
}

impl UploadedPieces {
    async fn add(&mut self, bytes: Bytes) -> Result<(), ApiError> {
        let name = piece_name(&self.id, self.count);
        // Counted before the write, so that a half-written piece is deleted as well.
        self.count += 1;
        Ok(self.store.put_payload(&name, bytes).await?)
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for UploadedPieces {
    fn drop(&mut self) {
        if self.kept || self.count == 0 {
            return;
        }
        let (store, id, count) = (self.store.clone(), std::mem::take(&mut self.id), self.count);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = file_record::remove_pieces(store.as_ref(), &id, count).await {
                    // They expire by themselves.
                    tracing::warn!(%error, file = id, "an upload's pieces are left behind");
                }
            });
        }
    }
}

async fn in_time<T>(
    idle: Duration,
    read: impl Future<Output = Result<T, MultipartError>>,
) -> Result<T, ApiError> {
    let Ok(read) = timeout(idle, read).await else {
        let message = "the upload stalled for too long";
        return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "upload_timeout", message));
    };
    read.map_err(|_| ApiError::invalid("file", "the form is broken or ends too early"))
}
