//! The words by which worker instances share quotas: one small item each, all in one partition.
//!
//! One write and one read of one partition make an exchange. Neither waits for its turn among the
//! outcomes: a word that comes late costs its instance the share.

use azure_data_cosmos::feed::FeedScope;
use uuid::Uuid;

use super::Inner;
use super::calls::{Pages, Purpose, page_of};
use super::items::{WORDS, WordItem};
use super::units::Operation;
use crate::StoreError;
use domain::share::Word;

const PUT: Purpose = Purpose(Operation::Shares, "writing this worker's share");
const LIST: Purpose = Purpose(Operation::Shares, "reading the workers' shares");
const REMOVE: Purpose = Purpose(Operation::Shares, "removing this worker's share");

const WORDS_A_PAGE: u32 = 1000;

impl Inner {
    pub(super) async fn put_word(&self, word: &Word) -> Result<(), StoreError> {
        let (id, item) = (word.instance.to_string(), WordItem::new(word));
        let upsert = || self.shares.upsert_item(WORDS, &id, &item, None);
        self.calls.at_once(PUT, upsert).await?.made(PUT).map(drop)
    }

    pub(super) async fn words(&self) -> Result<Vec<Word>, StoreError> {
        let (query, scope) = ("SELECT * FROM c".into(), FeedScope::partition(WORDS));
        let mut pages: Pages<WordItem<'static>> =
            Pages::new(&self.shares, query, scope, page_of(WORDS_A_PAGE), LIST);
        let mut words = Vec::new();
        while let Some(items) = pages.next(&self.calls).await? {
            words.extend(items.into_iter().map(WordItem::into_word));
        }
        Ok(words)
    }

    pub(super) async fn remove_word(&self, instance: Uuid) -> Result<(), StoreError> {
        let id = instance.to_string();
        let delete = || self.shares.delete_item(WORDS, &id, None);
        self.calls.at_once(REMOVE, delete).await.map(drop)
    }
}
