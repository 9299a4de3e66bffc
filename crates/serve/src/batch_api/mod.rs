//! The Files and Batches API of OpenAI, over the queue and the store that the workers use.
//!
//! Programs that were written for it change a base URL. A batch here is a batch everywhere: `status`,
//! `report` and the dashboard show it by the same name.
//!
//! | file | what |
//! |---|---|
//! | `files`, `upload`, `content` | `/v1/files`: pieces in the store; outputs made of outcomes |
//! | `batches`, `record` | `/v1/batches`: what is kept of each, and how it moves on |
//! | `intake` | uploaded lines become jobs, whichever server is there to do it |
//! | `notes`, `page`, `seen` | records in the store, lists in pages, how batches stand |

mod batches;
mod content;
mod files;
mod intake;
mod notes;
mod page;
mod record;
mod seen;
mod upload;

use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use axum::{Extension, Router};
use tokio::sync::Semaphore;

use super::{App, access};
use crate::settings::Role;
pub(super) use seen::LastSeen;

/// Uploads at a time: each holds a piece in memory.
const UPLOADS: usize = 8;

/// What a form weighs besides its file.
const FORM_BYTES: usize = 1 << 20;

/// All of it. Takes in what was submitted from now on.
pub fn routes(app: &App) -> Router {
    tokio::spawn(intake::take_in(app.clone()));
    let largest = usize::try_from(app.config.serve.limits.file_mib).unwrap_or(usize::MAX);
    let largest = largest.saturating_mul(1 << 20).saturating_add(FORM_BYTES);
    let room: files::UploadRoom = Extension(Arc::new(Semaphore::new(UPLOADS)));
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
    access::require(read, app, Role::Read)
        .merge(access::require(submit, app, Role::Submit))
        .with_state(app.clone())
}
