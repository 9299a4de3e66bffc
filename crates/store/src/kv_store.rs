//! Seam of the key-value records: small documents of other parts of the program.

use std::time::Duration;

use async_trait::async_trait;

use super::error::StoreError;

/// A small record for parts of the program that need their own: files and batches of the API. At
/// most some kilobytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvRecord {
    /// Namespace of the record; all records of a kind can be listed.
    pub kind: String,
    /// Key within the kind: letters, digits, `-`, `_` and `.`.
    pub id: String,
    pub json: String,
    /// Time after its last write from which the store may drop it; `None`: it stays.
    pub ttl: Option<Duration>,
}

/// Keeps key-value records; a write is a compare-and-swap.
#[async_trait]
pub trait KvStore: Send + Sync {
    /// Writes a record if it still is what the caller read (`None`: absent). False if another
    /// writer was first, or an attempt of ours succeeded unnoticed: the caller reads again.
    async fn put_kv(&self, note: &KvRecord, was: Option<&str>) -> Result<bool, StoreError>;

    /// Returns a record's JSON, byte for byte.
    async fn get_kv(&self, kind: &str, id: &str) -> Result<Option<String>, StoreError>;

    /// Returns all records of a kind, in no order.
    async fn list_kv(&self, kind: &str) -> Result<Vec<KvRecord>, StoreError>;

    /// Removes a record; a missing one is no error.
    async fn delete_kv(&self, kind: &str, id: &str) -> Result<(), StoreError>;
}
