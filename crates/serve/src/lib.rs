//! One HTTP server over the queue and the store that the workers use.
//!
//! [`router`] mounts the parts, each of which brings its own routes and says who may use them:
//!
//! | part | paths |
//! |---|---|
//! | [`health`] | `/livez`, `/readyz` |
//! | [`batch_api`] | `/v1/files…`, `/v1/batches…` |
//! | [`dashboard`] | `/`, `/dashboard/…` |
//! | [`metrics`] | `/metrics` |
//! | [`scaling`] | `/scaling` |
//!
//! Around all of them: [`listen`] (sockets, header limits, graceful end), [`access`] (tokens, roles,
//! forged requests, rates) and [`error`] (how refusals are worded). The server keeps nothing in
//! memory that another instance would need: several may run side by side, and any may be restarted.

pub mod access;
pub mod batch_api;
pub mod dashboard;
pub mod error;
pub mod health;
pub mod listen;
pub mod metrics;
pub mod scaling;
pub mod settings;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::settings::ServerConfig;
use access::{Access, AccessError};
use error::ApiError;
use health::Health;
use listen::Listening;
use queue::Queue;
use store::Store;

/// JSON bodies; uploads have a limit of their own.
const LARGEST_JSON: usize = 256 << 10;

/// What every part of the server works with. Clones share it.
#[derive(Clone)]
pub struct App {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub config: Arc<ServerConfig>,
    /// Cancelled when the server stops: answers without an end of their own end then.
    pub stop: CancellationToken,
    access: Arc<Access>,
    health: Arc<Health>,
    /// Rung when a batch was submitted here.
    intake: Arc<Notify>,
    seen: Arc<batch_api::LastSeen>,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error("can't listen on {address}")]
    Listen { address: SocketAddr, source: std::io::Error },
}

impl App {
    /// # Errors
    /// If the configuration would let in whom it should not.
    pub fn new(
        config: Arc<ServerConfig>,
        (queue, store): (Arc<dyn Queue>, Arc<dyn Store>),
        stop: CancellationToken,
    ) -> Result<Self, AccessError> {
        let access = Arc::new(Access::new(&config.serve)?);
        Ok(Self {
            queue,
            store,
            config,
            stop,
            access,
            health: Arc::default(),
            intake: Arc::default(),
            seen: Arc::default(),
        })
    }
}

/// A server that has its port.
pub struct Server {
    app: App,
    listening: Listening,
    address: SocketAddr,
}

impl Server {
    /// Takes the configured port; port 0 is any that is free.
    ///
    /// # Errors
    /// If the port can't be had.
    pub async fn bind(app: App) -> Result<Self, ServeError> {
        let address = app.config.serve.listen;
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let listening = Listening {
            listener,
            connections: app.config.serve.limits.connections,
            grace: app.config.grace,
        };
        let address = listening.address().map_err(failed)?;
        Ok(Self { app, listening, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until [`App::stop`].
    pub async fn run(self) {
        let stop = self.app.stop.clone();
        self.listening.serve(router(&self.app), stop).await;
    }
}

/// All parts in their places.
pub fn router(app: &App) -> Router {
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
        .layer(DefaultBodyLimit::max(LARGEST_JSON))
        .layer(middleware::from_fn_with_state(patience, in_time))
        .layer(middleware::from_fn(harden))
}

/// Ends what takes too long; files are ended by standing still, however long they take.
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
