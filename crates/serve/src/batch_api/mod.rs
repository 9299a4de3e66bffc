//! The Files and Batches API of OpenAI, over the queue and the store that the workers use.
//!
//! Programs written for it only change the base URL. A batch here is a batch everywhere: `status`,
//! `report` and the dashboard show it by the same name.
//!
//! | file | what |
//! |---|---|
//! | `files`, `file_record`, `upload`, `content` | `/v1/files`: pieces in the store; outputs made of outcomes |
//! | `batches`, `record` | `/v1/batches`: the stored record, and its status changes |
//! | `intake`, `lease` | uploaded lines become jobs, on the server that holds the lease |
//! | `notes`, `page`, `snapshot_cache` | records in the store, paged lists, status of batches |

mod batches;
mod content;
mod file_record;
mod files;
mod intake;
mod lease;
mod notes;
mod page;
mod record;
mod snapshot_cache;
mod upload;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::sync::Semaphore;

use super::{AppState, access};
use crate::settings::Role;
pub(super) use snapshot_cache::SnapshotCache;

/// Uploads at a time: each holds a piece in memory.
const MAX_UPLOADS: usize = 8;

/// Bytes that a form may have besides its file.
const FORM_BYTES: usize = 1 << 20;

/// Returns all routes, and starts the background intake of submitted batches.
pub fn routes(app: &AppState) -> Router {
    tokio::spawn(intake::run_intake(app.clone()));
    let largest = usize::try_from(app.config.serve.limits.file_mib).unwrap_or(usize::MAX);
    let largest = largest.saturating_mul(1 << 20).saturating_add(FORM_BYTES);
    let room: upload::UploadSlots = Extension(Arc::new(Semaphore::new(MAX_UPLOADS)));
    let upload = Router::new()
        .route("/v1/files", post(upload::post))
        .layer(DefaultBodyLimit::max(largest))
        .layer(room);
    let read = Router::new()
        .route("/v1/files", get(files::list))
        .route("/v1/files/{id}", get(files::get))
        .route("/v1/files/{id}/content", get(files::get_content))
        .route("/v1/batches", get(batches::list))
        .route("/v1/batches/{id}", get(batches::get));
    let submit = Router::new()
        .route("/v1/files/{id}", axum::routing::delete(files::delete))
        .route("/v1/batches", post(batches::post))
        .route("/v1/batches/{id}/cancel", post(batches::cancel))
        .merge(upload);
    access::require_role(read, &app.access, Role::Read)
        .merge(access::require_role(submit, &app.access, Role::Submit))
        .with_state(app.clone())
}
