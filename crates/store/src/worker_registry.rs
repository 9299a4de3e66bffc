//! Seam of the heartbeats: which worker instances live, and what each claims of the quotas.

use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::error::StoreError;
use domain::heartbeat::Heartbeat;

/// Age at which a heartbeat that was not renewed expires, by the store's clock. Readers know much
/// sooner that its instance is dead; this only cleans up.
pub const HEARTBEAT_TTL: Duration = Duration::from_secs(60);

/// Keeps the heartbeats of all worker instances.
#[async_trait]
pub trait WorkerRegistry: Send + Sync {
    /// Stores a worker's heartbeat, in place of its last one. When this returns, every reader of
    /// [`Self::heartbeats`] sees it.
    async fn put_heartbeat(&self, heartbeat: &Heartbeat) -> Result<(), StoreError>;

    /// Returns the heartbeats of all instances, in no order.
    async fn heartbeats(&self) -> Result<Vec<Heartbeat>, StoreError>;

    /// Removes an instance's heartbeat; a missing one is no error.
    async fn delete_heartbeat(&self, instance: Uuid) -> Result<(), StoreError>;
}
