//! The API's own records in the store: names of the kinds, reading and changing.

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use store::{KvRecord, Store, StoreError};

/// Uploaded files: [`super::file_record::FileRecord`].
pub(super) const FILES: &str = "api-files";
/// Batches: [`super::record::BatchRecord`].
pub(super) const BATCHES: &str = "api-batches";
/// Batches whose jobs are not all in the queue: [`super::lease::IntakeLease`].
pub(super) const INTAKES: &str = "api-intakes";

/// Attempts at a compare-and-swap: others may change a record between our read and our write, but
/// not this often in a row.
const MAX_ATTEMPTS: usize = 32;

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
    store.get_kv(kind, id).await?.map(|json| read(&json)).transpose()
}

/// Reads all records of a kind, newest first.
pub(super) async fn list<T: DeserializeOwned>(
    store: &dyn Store,
    kind: &str,
) -> Result<Vec<(String, T)>, StoreError> {
    let mut notes = store.list_kv(kind).await?;
    notes.sort_unstable_by(|a, b| b.id.cmp(&a.id));
    notes.into_iter().map(|note| Ok((note.id, read(&note.json)?))).collect()
}

pub(super) async fn create(
    store: &dyn Store,
    kind: &str,
    id: &str,
    record: &impl Serialize,
) -> Result<(), StoreError> {
    let note = KvRecord { kind: kind.into(), id: id.into(), json: write(record)? };
    // False: our first attempt succeeded without its answer reaching us; nobody else has the name.
    store.put_kv(&note, None).await.map(drop)
}

/// Updates a record by compare-and-swap; `change` returns whether there is anything to write, and
/// may be called repeatedly. Returns the record as it is then.
pub(super) async fn update<T: Serialize + DeserializeOwned>(
    store: &dyn Store,
    (kind, id): (&str, &str),
    mut edit: impl FnMut(&mut T) -> bool,
) -> Result<Option<T>, StoreError> {
    for _ in 0..MAX_ATTEMPTS {
        let Some(was) = store.get_kv(kind, id).await? else { return Ok(None) };
        let mut record: T = read(&was)?;
        if !edit(&mut record) {
            return Ok(Some(record));
        }
        let note = KvRecord { kind: kind.into(), id: id.into(), json: write(&record)? };
        if store.put_kv(&note, Some(&was)).await? {
            return Ok(Some(record));
        }
    }
    Err(StoreError::Unavailable(format!("'{id}' was changed by others on every attempt").into()))
}

/// Checks that `id` may be one of ours; others are not looked up, since the store limits names.
fn is_id(id: &str) -> bool {
    id.len() <= 80 && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn read<T: DeserializeOwned>(json: &str) -> Result<T, StoreError> {
    serde_json::from_str(json).map_err(|error| StoreError::Refused(error.into()))
}

fn write(record: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|error| StoreError::Refused(error.into()))
}
