//! Key-value records as values: read, and changed by compare-and-swap until nobody is in between.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::StoreError;
use super::kv_store::{KvRecord, KvStore};

/// Attempts at a compare-and-swap: others may change a record between our read and our write, but
/// not this often in a row.
const MAX_ATTEMPTS: usize = 32;

/// Reads a record's value; `None` if there is none.
///
/// # Errors
/// If the store fails, or the record is not of this form.
pub async fn load_record<T: DeserializeOwned>(
    store: &(impl KvStore + ?Sized),
    (kind, id): (&str, &str),
) -> Result<Option<T>, StoreError> {
    store.get_kv(kind, id).await?.map(|json| parse_record(&json)).transpose()
}

/// Reads a record's JSON as a value.
///
/// # Errors
/// If it is not of this form.
pub fn parse_record<T: DeserializeOwned>(json: &str) -> Result<T, StoreError> {
    serde_json::from_str(json).map_err(|error| StoreError::Refused(error.into()))
}

/// Creates a record that nobody else would create: `id` is new.
///
/// # Errors
/// If the store fails.
pub async fn create_record(
    store: &(impl KvStore + ?Sized),
    key: (&str, &str),
    value: &impl Serialize,
) -> Result<(), StoreError> {
    // False: our first attempt succeeded without its answer reaching us.
    store.put_kv(&record_of(key, value)?, None).await.map(drop)
}

/// Updates a record. `edit` gets its value, or `None` if there is none; it returns whether there is
/// anything to write, and may be called repeatedly. Returns the value as it is then.
///
/// # Errors
/// If `edit` or the store fails, or others change the record at every attempt.
pub async fn update_record<T, E>(
    store: &(impl KvStore + ?Sized),
    (kind, id): (&str, &str),
    mut edit: impl FnMut(&mut Option<T>) -> Result<bool, E>,
) -> Result<Option<T>, E>
where
    T: Serialize + DeserializeOwned,
    E: From<StoreError>,
{
    for _ in 0..MAX_ATTEMPTS {
        let was = store.get_kv(kind, id).await?;
        let mut value: Option<T> = was.as_deref().map(parse_record).transpose()?;
        let is_changed = edit(&mut value)?;
        let Some(changed) = value.as_ref().filter(|_| is_changed) else { return Ok(value) };
        if store.put_kv(&record_of((kind, id), changed)?, was.as_deref()).await? {
            return Ok(value);
        }
    }
    let why = format!("the record '{id}' was changed by others at every attempt");
    Err(StoreError::Unavailable(why.into()).into())
}

fn record_of((kind, id): (&str, &str), value: &impl Serialize) -> Result<KvRecord, StoreError> {
    let json = serde_json::to_string(value).map_err(|error| StoreError::Refused(error.into()))?;
    Ok(KvRecord { kind: kind.into(), id: id.into(), json, ttl: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::LocalStore;
    use state::sqlite::Database;

    #[tokio::test]
    async fn no_change_is_lost_where_many_change_one_record() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(Database::open(directory.path()).unwrap());
        let add = |value: &mut Option<u32>| {
            *value.get_or_insert_default() += 1;
            Ok::<_, StoreError>(true)
        };
        let changes = (0..8).map(|_| update_record(&store, ("count", "a"), add));
        for changed in futures_util::future::join_all(changes).await {
            assert!(changed.unwrap().is_some());
        }
        assert_eq!(load_record(&store, ("count", "a")).await.unwrap(), Some(8));
        let leave = |value: &mut Option<u32>| Ok::<_, StoreError>(value.is_some());
        assert_eq!(update_record(&store, ("count", "none"), leave).await.unwrap(), None);
        assert!(load_record::<String>(&store, ("count", "a")).await.is_err());
    }
}
