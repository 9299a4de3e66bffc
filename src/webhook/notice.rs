//! What is to be told, as a note in the store: kept until it is heard.
//!
//! Two kinds of notes: what is still to be told, and the names of what was heard. A name is written down
//! before its notice is removed, so a crash in between leaves a notice that is found to be heard.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use store::{Note, Store, StoreError};

const TO_TELL: &str = "webhook";
const HEARD: &str = "webhook-heard";

/// A message that is told again and again until it is heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// The same however often it is made and told, so that who hears it twice can tell.
    pub id: Uuid,
    /// As it is told: JSON.
    pub body: String,
    pub made_at: Timestamp,
    /// Before this time nobody tells it.
    pub due: Timestamp,
    /// How often it was told so far.
    pub tries: u32,
}

impl Notice {
    fn note(&self) -> Note {
        // A struct of texts and numbers is always JSON.
        let json = serde_json::to_string(self).unwrap_or_default();
        Note { kind: TO_TELL.into(), id: self.id.to_string(), json }
    }
}

/// Keeps a notice until it is heard. False if there is one of its name, heard or not: that one stays.
pub(super) async fn add(store: &dyn Store, notice: &Notice) -> Result<bool, StoreError> {
    if store.note(HEARD, &notice.id.to_string()).await?.is_some() {
        return Ok(false);
    }
    store.put_note(&notice.note(), None).await
}

/// The notices that were not heard, in no order.
pub(super) async fn waiting(store: &dyn Store) -> Result<Vec<Notice>, StoreError> {
    let read = |note: &Note| {
        serde_json::from_str(&note.json).map_err(|error| StoreError::Refused(error.into()))
    };
    store.notes(TO_TELL).await?.iter().map(read).collect()
}

/// Changes a notice if it is as it was seen. Of those who saw the same, one is told true: it is his to
/// tell. After a false it may have been changed all the same, and is then told at its new time.
pub(super) async fn change(
    store: &dyn Store,
    seen: &Notice,
    now: &Notice,
) -> Result<bool, StoreError> {
    store.put_note(&now.note(), Some(&seen.note().json)).await
}

/// Whether it was heard, by whomever it was told; then it is no longer there.
pub(super) async fn was_heard(store: &dyn Store, notice: &Notice) -> Result<bool, StoreError> {
    let id = notice.id.to_string();
    let heard = store.note(HEARD, &id).await?.is_some();
    if heard {
        store.remove_note(TO_TELL, &id).await?;
    }
    Ok(heard)
}

/// Notes that it was heard, for ever: batches keep their states for ever as well.
pub(super) async fn heard(store: &dyn Store, notice: &Notice) -> Result<(), StoreError> {
    let id = notice.id.to_string();
    let json = serde_json::json!({ "tries": notice.tries }).to_string();
    // If it is there already, somebody else noted the same.
    store.put_note(&Note { kind: HEARD.into(), id: id.clone(), json }, None).await?;
    store.remove_note(TO_TELL, &id).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use state::sqlite::Database;
    use store::local::LocalStore;

    fn notice(id: u128) -> Notice {
        let at = "2026-11-24T05:12:07.113Z".parse().unwrap();
        let body = r#"{"text":"夜 \"x\""}"#.to_owned();
        Notice { id: Uuid::from_u128(id), body, made_at: at, due: at, tries: 0 }
    }

    #[tokio::test]
    async fn a_notice_is_kept_until_it_is_heard_and_its_name_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(Database::open(directory.path()).unwrap());
        let (one, two) = (notice(1), notice(2));
        assert!(add(&store, &one).await.unwrap());
        assert!(add(&store, &two).await.unwrap());
        let tried = Notice { tries: 1, ..one.clone() };
        assert!(!add(&store, &tried).await.unwrap(), "the first of a name stays");
        assert!(change(&store, &one, &tried).await.unwrap());
        assert!(!change(&store, &one, &tried).await.unwrap(), "not as it was seen");
        assert!(!was_heard(&store, &two).await.unwrap());
        heard(&store, &two).await.unwrap();
        assert_eq!(waiting(&store).await.unwrap(), [tried]);
        assert!(!add(&store, &two).await.unwrap());
        assert!(was_heard(&store, &two).await.unwrap());
    }

    #[tokio::test]
    async fn of_those_who_take_a_notice_at_the_same_time_one_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(Database::open(directory.path()).unwrap());
        let seen = notice(1);
        add(&store, &seen).await.unwrap();
        let take =
            async |tries| change(&store, &seen, &Notice { tries, ..seen.clone() }).await.unwrap();
        let taken = futures_util::future::join_all((1..9).map(take)).await;
        assert_eq!(taken.into_iter().filter(|taken| *taken).count(), 1);
    }
}
