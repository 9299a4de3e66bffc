//! `POST /v1/files`: a form with the file in it, streamed into the store piece by piece.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::multipart::{Field, Multipart, MultipartError, MultipartRejection};
use axum::http::StatusCode;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use tokio::time::timeout;

use super::files::{self, FileRecord, PIECE_BYTES, UploadRoom, piece};
use super::notes;
use crate::App;
use crate::error::ApiError;
use store::{PAYLOAD_LIFE, Store};

/// A form's other fields are a word each.
const LARGEST_FIELD: usize = 1 << 10;

/// Longer names are cut.
const LONGEST_NAME: usize = 255;

/// How long a file may be asked to stay, in seconds (OpenAI docs, "Upload file", `expires_after`).
const STAYS: std::ops::RangeInclusive<i64> = 3_600..=2_592_000;

/// What the form says.
#[derive(Default)]
struct Form {
    purpose: Option<String>,
    anchor: Option<String>,
    stays: Option<i64>,
    file: Option<(String, Pieces)>,
}

pub(super) async fn post(
    State(app): State<App>,
    room: UploadRoom,
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
        expires_at: created_at + form.life()?,
    };
    let id = pieces.id.clone();
    notes::create(app.store.as_ref(), notes::FILES, &id, &record).await?;
    pieces.keep();
    Ok(files::created(&id, &record))
}

async fn read(app: &App, mut parts: Multipart) -> Result<Form, ApiError> {
    let idle = Duration::from_secs(app.config.serve.limits.idle_seconds);
    let mut form = Form::default();
    while let Some(mut field) = in_time(idle, parts.next_field()).await? {
        match field.name().unwrap_or_default() {
            "file" if form.file.is_some() => {
                return Err(ApiError::invalid("file", "send one file at a time"));
            }
            "file" => {
                let name = field.file_name().unwrap_or("upload.jsonl");
                let name = name.chars().filter(|c| !c.is_control()).take(LONGEST_NAME).collect();
                form.file = Some((name, store_file(app, idle, &mut field).await?));
            }
            "purpose" => form.purpose = Some(word(idle, &mut field).await?),
            "expires_after[anchor]" => form.anchor = Some(word(idle, &mut field).await?),
            "expires_after[seconds]" => {
                let seconds = word(idle, &mut field).await?.parse();
                let refused = |_| ApiError::invalid("expires_after", "seconds must be a number");
                form.stays = Some(seconds.map_err(refused)?);
            }
            _ => return Err(ApiError::invalid("file", "the form has a field that is not known")),
        }
    }
    Ok(form)
}

impl Form {
    /// For how many seconds the file stays.
    fn life(&self) -> Result<i64, ApiError> {
        let longest = PAYLOAD_LIFE.as_secs().cast_signed();
        let refused = |message: &str| Err(ApiError::invalid("expires_after", message));
        match (&self.anchor, self.stays) {
            (None, None) => Ok(longest),
            (Some(anchor), _) if anchor != "created_at" => refused("anchor must be 'created_at'"),
            (Some(_), Some(seconds)) if STAYS.contains(&seconds) => Ok(seconds),
            (Some(_), Some(_)) => refused("seconds must be from 3600 to 2592000"),
            _ => refused("it needs both anchor and seconds"),
        }
    }
}

/// A short field's text.
async fn word(idle: Duration, field: &mut Field<'_>) -> Result<String, ApiError> {
    let mut bytes = BytesMut::new();
    while let Some(more) = in_time(idle, field.chunk()).await? {
        bytes.extend_from_slice(&more);
        if bytes.len() > LARGEST_FIELD {
            return Err(ApiError::invalid("file", "a field of the form is too long"));
        }
    }
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|_| ApiError::invalid("file", "a field of the form is no text"))?;
    Ok(text.to_owned())
}

async fn store_file(app: &App, idle: Duration, field: &mut Field<'_>) -> Result<Pieces, ApiError> {
    let mib = app.config.serve.limits.file_mib;
    let id = notes::new_id("file-");
    let mut pieces = Pieces { store: app.store.clone(), id, count: 0, bytes: 0, kept: false };
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

/// What of an upload is in the store. Unless it is kept, it is taken away again, also if the caller
/// goes away in the midst of it.
struct Pieces {
    store: Arc<dyn Store>,
    id: String,
    count: u64,
    bytes: u64,
    kept: bool,
}

impl Pieces {
    async fn add(&mut self, bytes: Bytes) -> Result<(), ApiError> {
        let name = piece(&self.id, self.count);
        // Before it is there: what is half written is taken away as well.
        self.count += 1;
        Ok(self.store.put_payload(&name, bytes).await?)
    }

    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if self.kept || self.count == 0 {
            return;
        }
        let (store, id, count) = (self.store.clone(), std::mem::take(&mut self.id), self.count);
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = files::remove_pieces(store.as_ref(), &id, count).await {
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
        let message = "the upload stood still for too long";
        return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "upload_timeout", message));
    };
    read.map_err(|_| ApiError::invalid("file", "the form is broken or ends too early"))
}
