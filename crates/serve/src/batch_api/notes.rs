//! The API's own records in the store: what each kind is called, and how one is read and changed.

use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use store::{Note, Store, StoreError};

/// Uploaded files: [`super::files::FileRecord`].
pub(super) const FILES: &str = "api-files";
/// Batches: [`super::record::BatchRecord`].
pub(super) const BATCHES: &str = "api-batches";
/// Batches whose jobs are not all in the queue: [`super::intake::Lease`].
pub(super) const INTAKES: &str = "api-intakes";

/// Others may change a record between our look and our write; so often in a row they don't.
const TRIES: usize = 32;

/// A new name. Names in their order are in the order of their making.
pub(super) fn new_id(prefix: &str) -> String {
    let millis = Timestamp::now().as_millisecond();
    let random = Uuid::new_v4().simple().to_string();
    format!("{prefix}{millis:012x}{}", &random[..20])
}

/// Seconds since 1970, as the API tells times.
pub(super) fn now() -> i64 {
    Timestamp::now().as_second()
}

/// A record as it was written; `None` if there is none, or it is none of ours.
pub(super) async fn load<T: DeserializeOwned>(
    store: &dyn Store,
    kind: &str,
    id: &str,
) -> Result<Option<T>, StoreError> {
    if !is_id(id) {
        return Ok(None);
    }
    store.note(kind, id).await?.map(|json| read(&json)).transpose()
}

/// All records of a kind, the newest first.
pub(super) async fn list<T: DeserializeOwned>(
    store: &dyn Store,
    kind: &str,
) -> Result<Vec<(String, T)>, StoreError> {
    let mut notes = store.notes(kind).await?;
    notes.sort_unstable_by(|a, b| b.id.cmp(&a.id));
    notes.into_iter().map(|note| Ok((note.id, read(&note.json)?))).collect()
}

pub(super) async fn create(
    store: &dyn Store,
    kind: &str,
    id: &str,
    record: &impl Serialize,
) -> Result<(), StoreError> {
    let note = Note { kind: kind.into(), id: id.into(), json: write(record)? };
    // False: a first try went through unheard, since the name is nobody else's.
    store.put_note(&note, None).await.map(drop)
}

/// Changes a record as it stands now; `change` says whether there is anything to write, and may be
/// asked again. Returns the record as it is then.
pub(super) async fn change<T: Serialize + DeserializeOwned>(
    store: &dyn Store,
    (kind, id): (&str, &str),
    mut change: impl FnMut(&mut T) -> bool,
) -> Result<Option<T>, StoreError> {
    for _ in 0..TRIES {
        let Some(was) = store.note(kind, id).await? else { return Ok(None) };
        let mut record: T = read(&was)?;
        if !change(&mut record) {
            return Ok(Some(record));
        }
        let note = Note { kind: kind.into(), id: id.into(), json: write(&record)? };
        if store.put_note(&note, Some(&was)).await? {
            return Ok(Some(record));
        }
    }
    Err(StoreError::Unavailable(format!("'{id}' is being changed all the time").into()))
}

/// What is none of our names is not asked for: the store's names have limits of their own.
fn is_id(id: &str) -> bool {
    id.len() <= 80 && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn read<T: DeserializeOwned>(json: &str) -> Result<T, StoreError> {
    serde_json::from_str(json).map_err(|error| StoreError::Refused(error.into()))
}

fn write(record: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|error| StoreError::Refused(error.into()))
}
