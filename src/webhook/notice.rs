//! Pending notices, as notes in the store: kept until they are delivered.
//!
//! Two kinds of notes: pending notices, and the ids of delivered ones. An id is recorded before its
//! notice is removed, so a crash in between leaves a notice that is found to be delivered.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use store::{KvRecord, Store, StoreError, parse_record};

const PENDING_KIND: &str = "webhook";
const DELIVERED_KIND: &str = "webhook-heard";

/// Message that is sent again and again until it is delivered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WebhookNotice {
    /// Same for every attempt and every maker, so that the receiver can detect duplicates.
    pub id: Uuid,
    /// Body as it is sent: JSON.
    pub body: String,
    pub made_at: Timestamp,
    /// Not sent before this time.
    pub due: Timestamp,
    /// Number of attempts so far.
    #[serde(rename = "tries")]
    pub attempts: u32,
}

impl WebhookNotice {
    fn note(&self) -> KvRecord {
        // A struct of texts and numbers is always JSON.
        let json = serde_json::to_string(self).unwrap_or_default();
        KvRecord { kind: PENDING_KIND.into(), id: self.id.to_string(), json, ttl: None }
    }
}

/// Stores a notice until it is delivered. False if its id exists, delivered or not: that one stays.
pub(super) async fn add(store: &dyn Store, notice: &WebhookNotice) -> Result<bool, StoreError> {
    if store.get_kv(DELIVERED_KIND, &notice.id.to_string()).await?.is_some() {
        return Ok(false);
    }
    store.put_kv(&notice.note(), None).await
}

/// Returns the undelivered notices, in no order.
pub(super) async fn undelivered(store: &dyn Store) -> Result<Vec<WebhookNotice>, StoreError> {
    store.list_kv(PENDING_KIND).await?.iter().map(|note| parse_record(&note.json)).collect()
}

/// Updates a notice if it is unchanged since it was read: of several writers one gets true, and
/// sends it. After a false the update may still have been applied; it is then sent at its new time.
pub(super) async fn update_if_unchanged(
    store: &dyn Store,
    seen: &WebhookNotice,
    now: &WebhookNotice,
) -> Result<bool, StoreError> {
    store.put_kv(&now.note(), Some(&seen.note().json)).await
}

/// Returns whether it was delivered, by any worker; if so, removes the pending notice.
pub(super) async fn was_delivered(
    store: &dyn Store,
    notice: &WebhookNotice,
) -> Result<bool, StoreError> {
    let id = notice.id.to_string();
    let heard = store.get_kv(DELIVERED_KIND, &id).await?.is_some();
    if heard {
        store.delete_kv(PENDING_KIND, &id).await?;
    }
    Ok(heard)
}

/// Records that it was delivered, for ever: batches keep their states for ever as well.
pub(super) async fn mark_delivered(
    store: &dyn Store,
    notice: &WebhookNotice,
) -> Result<(), StoreError> {
    let id = notice.id.to_string();
    let json = serde_json::json!({ "tries": notice.attempts }).to_string();
    // If it is there already, somebody else recorded the same.
    store
        .put_kv(&KvRecord { kind: DELIVERED_KIND.into(), id: id.clone(), json, ttl: None }, None)
        .await?;
    store.delete_kv(PENDING_KIND, &id).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use state::sqlite::Database;
    use store::local::LocalStore;

    fn notice(id: u128) -> WebhookNotice {
        let at = "2026-11-24T05:12:07.113Z".parse().unwrap();
        let body = r#"{"text":"夜 \"x\""}"#.to_owned();
        WebhookNotice { id: Uuid::from_u128(id), body, made_at: at, due: at, attempts: 0 }
    }

    #[tokio::test]
    async fn a_notice_is_kept_until_it_is_heard_and_its_name_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(Database::open(directory.path()).unwrap());
        let (one, two) = (notice(1), notice(2));
        assert!(add(&store, &one).await.unwrap());
        assert!(add(&store, &two).await.unwrap());
        let tried = WebhookNotice { attempts: 1, ..one.clone() };
        assert!(!add(&store, &tried).await.unwrap(), "the first of a name stays");
        assert!(update_if_unchanged(&store, &one, &tried).await.unwrap());
        assert!(!update_if_unchanged(&store, &one, &tried).await.unwrap(), "not as it was seen");
        assert!(!was_delivered(&store, &two).await.unwrap());
        mark_delivered(&store, &two).await.unwrap();
        assert_eq!(undelivered(&store).await.unwrap(), [tried]);
        assert!(!add(&store, &two).await.unwrap());
        assert!(was_delivered(&store, &two).await.unwrap());
    }

    #[tokio::test]
    async fn of_those_who_take_a_notice_at_the_same_time_one_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(Database::open(directory.path()).unwrap());
        let seen = notice(1);
        add(&store, &seen).await.unwrap();
        let take = async |tries| {
            update_if_unchanged(&store, &seen, &WebhookNotice { attempts: tries, ..seen.clone() })
                .await
                .unwrap()
        };
        let taken = futures_util::future::join_all((1..9).map(take)).await;
        assert_eq!(taken.into_iter().filter(|taken| *taken).count(), 1);
    }
}
