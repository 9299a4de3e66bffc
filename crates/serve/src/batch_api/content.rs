//! `/v1/files/{id}/content`: bytes as they were uploaded, or a batch's outcomes as lines, in bounded
//! memory.
//!
//! A task reads ahead of the caller by some pieces. If the caller takes none for too long, or if
//! the store fails on the way, the task ends, and with it the connection: a truncated file never
//! looks complete.

use std::io;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::file_record::{FileRecord, get_piece};
use super::record::OutputKind;
use crate::AppState;
use crate::error::ApiError;
use domain::job::BatchId;
use report::results::{OutcomeKind, OutcomeSelection, ResultsError, jsonl};
use store::{SortOrder, Store, StoreError};

/// Approximate size of the pieces in which lines are sent.
const PIECE_BYTES: usize = 64 << 10;

/// Pieces read ahead.
const READ_AHEAD: usize = 2;

pub(super) type LineStream = BoxStream<'static, Result<Vec<u8>, ResultsError>>;

/// Streams a batch's output or error file.
pub(super) async fn lines(
    store: &dyn Store,
    output: OutputKind,
    batch: &str,
) -> Result<LineStream, ApiError> {
    let batch: BatchId = batch.parse().map_err(|_| ApiError::no_such("File object", batch))?;
    let kinds = output.endings().into_iter().map(OutcomeKind::Ended).collect();
    let selection = OutcomeSelection { batch, order: SortOrder::AsStored, kinds };
    jsonl::lines(store, &selection).await.map_err(failed)
}

pub(super) fn failed(error: ResultsError) -> ApiError {
    match error {
        ResultsError::Store(error) => error.into(),
        // The error text names a custom_id, but no content.
        error => StoreError::Refused(error.into()).into(),
    }
}

pub(super) fn of_lines(app: &AppState, lines: LineStream) -> Response {
    let gathered = stream::try_unfold(Some(lines), |lines| async {
        let Some(mut lines) = lines else { return Ok(None) };
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        while piece.len() < PIECE_BYTES {
            match lines.try_next().await? {
                Some(line) => piece.extend_from_slice(&line),
                None => return Ok((!piece.is_empty()).then(|| (Bytes::from(piece), None))),
            }
        }
        Ok(Some((Bytes::from(piece), Some(lines))))
    });
    send(app, gathered.map_err(|error: ResultsError| error.to_string()).boxed(), None)
}

pub(super) fn of_upload(app: &AppState, id: &str, record: &FileRecord) -> Response {
    let (store, id) = (app.store.clone(), id.to_owned());
    let pieces = stream::iter(0..record.pieces).then(move |number| {
        let (store, id) = (store.clone(), id.clone());
        async move { get_piece(store.as_ref(), &id, number).await.map_err(|e| e.to_string()) }
    });
    send(app, pieces.boxed(), Some(record.bytes))
}

fn send(
    app: &AppState,
    mut pieces: BoxStream<'static, Result<Bytes, String>>,
    length: Option<u64>,
) -> Response {
    let idle = Duration::from_secs(app.config.serve.limits.idle_seconds);
    let (sender, mut receiver) = mpsc::channel::<io::Result<Bytes>>(READ_AHEAD);
    tokio::spawn(async move {
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| {
                warn!(%error, "a download is cut off");
                io::Error::other("the store failed")
            });
            let is_last = piece.is_err();
            match sender.send_timeout(piece, idle).await {
                Ok(()) if is_last => return,
                Ok(()) => {}
                Err(mpsc::error::SendTimeoutError::Closed(_)) => return,
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                    info!("a download stalled for too long and is cut off");
                    // The channel must not end like a complete file: its last item is an error.
                    drop(pieces);
                    let _ = sender.send(Err(io::ErrorKind::TimedOut.into())).await;
                    return;
                }
            }
        }
    });
    let body = Body::from_stream(stream::poll_fn(move |cx| receiver.poll_recv(cx)));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let kind = HeaderValue::from_static("application/octet-stream");
    headers.insert(header::CONTENT_TYPE, kind);
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    response
}
