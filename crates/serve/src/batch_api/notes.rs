//! The API's own records in the store: names of the kinds, reading and changing.

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use store::{Store, StoreError, create_record, load_record, parse_record, update_record};

/// Uploaded files: [`super::file_record::FileRecord`].
pub(super) const FILES: &str = "api-files";
/// Batches: [`super::record::BatchRecord`].
pub(super) const BATCHES: &str = "api-batches";
/// Batches whose jobs are not all in the queue: [`super::lease::IntakeLease`].
pub(super) const INTAKES: &str = "api-intakes";

/// Returns a new id. Ids sort by creation time.
pub(super) fn new_id(prefix: &str) -> String {
    let millis = Timestamp::now().as_millisecond();
    let random = Uuid::new_v4().simple().to_string();
    format!("{prefix}{millis:012x}{}", &random[..20])
}

/// Returns the time in seconds since 1970, as the API writes times.
pub(super) fn now() -> i64 {
    Timestamp::now().as_second()
}

/// Reads a record; `None` if there is none, or if `id` is not one of our ids.
pub(super) async fn load<T: DeserializeOwned>(
    store: &dyn Store,
    kind: &str,
    id: &str,
) -> Result<Option<T>, StoreError> {
    if !is_id(id) {
        return Ok(None);
    }
    load_record(store, (kind, id)).await
}

/// Reads all records of a kind, newest first.
pub(super) async fn list<T: DeserializeOwned>(
    store: &dyn Store,
    kind: &str,
) -> Result<Vec<(String, T)>, StoreError> {
    let mut notes = store.list_kv(kind).await?;
    notes.sort_unstable_by(|a, b| b.id.cmp(&a.id));
    notes.into_iter().map(|note| Ok((note.id, parse_record(&note.json)?))).collect()
}

/// Creates a record under a new id.
pub(super) async fn create(
    store: &dyn Store,
    kind: &str,
    id: &str,
    record: &impl Serialize,
) -> Result<(), StoreError> {
    create_record(store, (kind, id), record).await
}

/// Updates a record; `edit` returns whether there is anything to write, and may be called
/// repeatedly. Returns the record as it is then; `None` if there is none.
pub(super) async fn update<T: Serialize + DeserializeOwned>(
    store: &dyn Store,
    key: (&str, &str),
    mut edit: impl FnMut(&mut T) -> bool,
) -> Result<Option<T>, StoreError> {
    update_record(store, key, |record| Ok(record.as_mut().is_some_and(&mut edit))).await
}

/// Checks that `id` may be one of ours; others are not looked up, since the store limits names.
fn is_id(id: &str) -> bool {
    id.len() <= 80 && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}
