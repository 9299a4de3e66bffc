//! Stored record of an uploaded file, and the file's pieces.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::notes;
use store::{Store, StoreError};

/// Size of each piece of a file but the last: fits into one item of any store.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// Stored record of an uploaded file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub filename: String,
    pub bytes: u64,
    pub pieces: u64,
    pub created_at: i64,
    pub expires_at: i64,
}

impl FileRecord {
    pub(super) fn object(&self, id: &str) -> Value {
        json!({
            "id": id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": "batch",
            "status": "processed",
            "status_details": null,
        })
    }

    pub(super) fn is_expired(&self) -> bool {
        self.expires_at <= notes::now()
    }
}

/// Returns the payload name of one piece.
pub(super) fn piece_name(id: &str, number: u64) -> String {
    format!("{id}.{number}")
}

/// Deletes a file's pieces.
pub(super) async fn remove_pieces(
    store: &dyn Store,
    id: &str,
    pieces: u64,
) -> Result<(), StoreError> {
    for number in 0..pieces {
        store.delete_payload(&piece_name(id, number)).await?;
    }
    Ok(())
}

/// Reads a piece that the file must have.
pub(super) async fn get_piece(
    store: &dyn Store,
    id: &str,
    number: u64,
) -> Result<Bytes, StoreError> {
    let missing = || StoreError::Refused(format!("a piece of the file '{id}' is missing").into());
    store.get_payload(&piece_name(id, number)).await?.ok_or_else(missing)
}

/// Finds an uploaded file that has not expired.
pub(super) async fn find(store: &dyn Store, id: &str) -> Result<Option<FileRecord>, StoreError> {
    let record = notes::load::<FileRecord>(store, notes::FILES, id).await?;
    Ok(record.filter(|record| !record.is_expired()))
}

/// Deletes expired files.
pub(super) async fn remove_expired(store: &dyn Store) -> Result<(), StoreError> {
    for (id, record) in notes::list::<FileRecord>(store, notes::FILES).await? {
        if record.is_expired() {
            remove_pieces(store, &id, record.pieces).await?;
            store.delete_kv(notes::FILES, &id).await?;
        }
    }
    Ok(())
}
