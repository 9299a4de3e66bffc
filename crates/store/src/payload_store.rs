//! Seam of the payloads: bodies of jobs that are too large for their queue (claim checks).

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::error::StoreError;

/// Lifetime of a payload that nobody deletes: its job was never sent, or is a dead letter. Far
/// longer than any job may wait.
pub const PAYLOAD_TTL: Duration = Duration::from_secs(180 * 24 * 3600);

/// Keeps payloads by name.
#[async_trait]
pub trait PayloadStore: Send + Sync {
    /// Stores the body of a job that is too large for the queue, durably, for [`PAYLOAD_TTL`]. The
    /// same name is overwritten.
    async fn put_payload(&self, name: &str, bytes: Bytes) -> Result<(), StoreError>;

    /// Returns `None` if it is missing or incomplete.
    async fn get_payload(&self, name: &str) -> Result<Option<Bytes>, StoreError>;

    /// Deletes a payload; a missing one is no error.
    async fn delete_payload(&self, name: &str) -> Result<(), StoreError>;
}
