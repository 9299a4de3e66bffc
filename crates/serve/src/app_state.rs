//! State that all parts of the server share.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::access::{AccessControl, AccessError};
use super::batch_api::SnapshotCache;
use super::settings::ServerConfig;
use queue::Queue;
use store::Store;

/// Shared state of all parts of the server. Clones share it.
#[derive(Clone)]
pub struct AppState {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub config: Arc<ServerConfig>,
    /// Cancelled when the server stops.
    pub stop: CancellationToken,
    pub(super) access: Arc<AccessControl>,
    /// Notified when a batch is submitted here.
    pub(super) batch_submitted: Arc<Notify>,
    pub(super) snapshots: Arc<SnapshotCache>,
}

impl AppState {
    /// # Errors
    /// If the configuration would give access without a token, or a token can't be read.
    pub fn new(
        config: Arc<ServerConfig>,
        (queue, store): (Arc<dyn Queue>, Arc<dyn Store>),
        stop: CancellationToken,
    ) -> Result<Self, AccessError> {
        let access = Arc::new(AccessControl::new(&config.serve)?);
        Ok(Self {
            queue,
            store,
            config,
            stop,
            access,
            batch_submitted: Arc::default(),
            snapshots: Arc::default(),
        })
    }
}
