//! Records that are nothing but a lease: whoever has it may do what the record is named for.

use std::time::Duration;

use jiff::Timestamp;
use uuid::Uuid;

use super::error::StoreError;
use super::kv_store::{KvRecord, KvStore};
use super::kv_update::parse_record;
use super::record_lease::RecordLease;

/// Attempts at a lease that others change between our read and our write.
const MAX_ATTEMPTS: usize = 8;

/// Takes or renews the lease `(kind, id)` for `owner`; the store may drop the record when the term
/// is over. Returns `None` if it is the owner's now, or the time until which another has it.
///
/// A lease that nobody has costs one write. `is_renewal` asks for the record first, which is cheaper
/// where there is one.
///
/// # Errors
/// If the store fails, or others change the record at every attempt.
pub async fn acquire_lease(
    store: &(impl KvStore + ?Sized),
    (kind, id): (&str, &str),
    owner: Uuid,
    term: Duration,
    is_renewal: bool,
) -> Result<Option<Timestamp>, StoreError> {
    for attempt in 0..MAX_ATTEMPTS {
        let was = match is_renewal || attempt > 0 {
            true => store.get_kv(kind, id).await?,
            false => None,
        };
        let mut lease: RecordLease =
            was.as_deref().map(parse_record).transpose()?.unwrap_or_default();
        if let Err(until) = lease.acquire(owner, Timestamp::now(), term) {
            return Ok(Some(until));
        }
        let json =
            serde_json::to_string(&lease).map_err(|error| StoreError::Refused(error.into()))?;
        let record = KvRecord { kind: kind.into(), id: id.into(), json, ttl: Some(term) };
        if store.put_kv(&record, was.as_deref()).await? {
            return Ok(None);
        }
    }
    let why = format!("the lease '{id}' was changed by others at every attempt");
    Err(StoreError::Unavailable(why.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local::LocalStore;
    use state::sqlite::Database;

    #[tokio::test]
    async fn of_many_who_want_a_lease_one_gets_it_until_it_runs_out() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(Database::open(directory.path()).unwrap());
        let key = ("claims", "job");
        let term = Duration::from_secs(60);
        let takers = (1..=8).map(|n| acquire_lease(&store, key, Uuid::from_u128(n), term, false));
        let taken = futures_util::future::try_join_all(takers).await.unwrap();
        let owner = 1 + taken.iter().position(Option::is_none).unwrap() as u128;
        assert_eq!(taken.iter().filter(|held| held.is_none()).count(), 1);
        let renewed =
            acquire_lease(&store, key, Uuid::from_u128(owner), Duration::ZERO, true).await;
        assert_eq!(renewed.unwrap(), None, "its owner gives it up");
        let other = Uuid::from_u128(owner % 8 + 1);
        assert_eq!(acquire_lease(&store, key, other, term, false).await.unwrap(), None);
    }
}
