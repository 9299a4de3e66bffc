//! One HTTP server over the queue and the store that the workers use.
//!
//! [`router`] mounts the parts, each with its own routes and required roles:
//!
//! | part | paths |
//! |---|---|
//! | [`health`] | `/livez`, `/readyz` |
//! | [`batch_api`] | `/v1/files…`, `/v1/batches…` |
//! | [`dashboard`] | `/`, `/dashboard/…` |
//! | [`metrics`] | `/metrics` |
//! | [`scaling`] | `/scaling` |
//!
//! Around all of them: [`listen`] (sockets, header limits, graceful shutdown), [`access`] (tokens,
//! roles, forged requests, rates) and [`error`] (error responses). The server keeps nothing in
//! memory that another instance would need: several may run side by side, and any may be restarted.

pub mod access;
mod app_state;
pub mod batch_api;
pub mod dashboard;
pub mod error;
pub mod health;
pub mod listen;
pub mod metrics;
pub mod scaling;
pub mod settings;

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;

pub use app_state::AppState;

use access::AccessError;
use error::ApiError;
use listen::HttpListener;

/// Bytes of a JSON body; uploads have a limit of their own.
const MAX_JSON_BYTES: usize = 256 << 10;

/// Failure to start the server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("can't listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

/// HTTP server bound to its port.
pub struct Server {
    app: AppState,
    listener: HttpListener,
    address: SocketAddr,
}

impl Server {
    /// Binds the configured port; port 0 is any free one.
    ///
    /// # Errors
    /// If the port can't be bound.
    pub async fn bind(app: AppState) -> Result<Self, ServeError> {
        let address = app.config.serve.listen;
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let listening = HttpListener {
            listener,
            connections: app.config.serve.limits.connections,
            grace: app.config.grace,
        };
        let address = listening.address().map_err(failed)?;
        Ok(Self { app, listener: listening, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until [`AppState::stop`].
    pub async fn run(self) {
        let stop = self.app.stop.clone();
        self.listener.serve(router(&self.app), stop).await;
    }
}

/// Mounts all parts.
pub fn router(app: &AppState) -> Router {
    let patience = Duration::from_secs(app.config.serve.limits.request_seconds);
    Router::new()
        .merge(health::routes(app))
        .merge(batch_api::routes(app))
        .merge(dashboard::routes(app))
        .merge(metrics::routes(app))
        .merge(scaling::routes(app))
        .fallback(async || ApiError::new(StatusCode::NOT_FOUND, "not_found", "no such path"))
        .method_not_allowed_fallback(async || {
            let message = "this path has no such method";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
        .layer(middleware::from_fn_with_state(patience, in_time))
        .layer(middleware::from_fn(harden))
}

/// Ends requests that take too long. File transfers are exempt: they end only if they stall.
async fn in_time(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    if request.uri().path().starts_with("/v1/files") {
        return next.run(request).await;
    }
    match tokio::time::timeout(patience, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let message = "it took too long; ask for less, or raise serve.limits.request_seconds";
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message).into_response()
        }
    }
}

/// Keeps browsers from guessing types, framing pages, or keeping answers.
async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}
