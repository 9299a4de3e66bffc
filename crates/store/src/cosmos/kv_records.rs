//! Key-value records, which are neither batch nor outcome: items of `shares` that expire only if they
//! say so, one partition a kind.

use async_trait::async_trait;
use azure_data_cosmos::feed::FeedScope;
use azure_data_cosmos::options::{ItemWriteOptions, Precondition};

use super::CosmosStore;
use super::calls::{CallPurpose, PointResult, QueryPages, decode_item, page_of};
use super::items::KvItem;
use super::request_units::CosmosOperation;
use crate::{KvRecord, KvStore, StoreError};

const GET: CallPurpose = CallPurpose(CosmosOperation::Notes, "reading a key-value record");
const PUT: CallPurpose = CallPurpose(CosmosOperation::Notes, "writing a key-value record");
const LIST: CallPurpose = CallPurpose(CosmosOperation::Notes, "listing key-value records");
const REMOVE: CallPurpose = CallPurpose(CosmosOperation::Notes, "deleting a key-value record");

const RECORDS_A_PAGE: u32 = 1000;

#[async_trait]
impl KvStore for CosmosStore {
    async fn put_kv(&self, note: &KvRecord, was: Option<&str>) -> Result<bool, StoreError> {
        let item = KvItem::new(note);
        let (pk, id) = (item.pk.clone(), note.id.as_str());
        let Some(was) = was else {
            let create = || self.inner.shares.create_item(pk.clone(), id, &item, None);
            return self.inner.calls.call_unpaced(PUT, create).await?.written(PUT);
        };
        let read = || self.inner.shares.read_item(pk.clone(), id, None);
        let PointResult::Done(response) = self.inner.calls.call_unpaced(GET, read).await? else {
            return Ok(false);
        };
        let etag = response.headers().etag().cloned();
        let found: KvItem = decode_item(GET, response)?;
        if found.json != was {
            return Ok(false);
        }
        let options = etag.map(|etag| {
            ItemWriteOptions::default().with_precondition(Precondition::if_match(etag))
        });
        let replace = || self.inner.shares.replace_item(pk.clone(), id, &item, options.clone());
        match self.inner.calls.call_unpaced(PUT, replace).await? {
            PointResult::NotFound(_) => Ok(false),
            answer => answer.written(PUT),
        }
    }

    async fn get_kv(&self, kind: &str, id: &str) -> Result<Option<String>, StoreError> {
        let pk = KvItem::partition(kind);
        let read = || self.inner.shares.read_item(pk.clone(), id, None);
        match self.inner.calls.call_unpaced(GET, read).await? {
            PointResult::Done(response) => Ok(Some(decode_item::<KvItem>(GET, response)?.json)),
            PointResult::NotFound(_) | PointResult::Conflict | PointResult::PreconditionFailed => {
                Ok(None)
            }
        }
    }

    async fn list_kv(&self, kind: &str) -> Result<Vec<KvRecord>, StoreError> {
        let scope = FeedScope::partition(KvItem::partition(kind));
        let mut pages: QueryPages<KvItem> = QueryPages::new(
            &self.inner.shares,
            "SELECT * FROM c".into(),
            scope,
            page_of(RECORDS_A_PAGE),
            LIST,
        );
        let mut notes = Vec::new();
        while let Some(items) = pages.next(&self.inner.calls).await? {
            let note = |item: KvItem| KvRecord {
                kind: kind.into(),
                id: item.id,
                json: item.json,
                ttl: None,
            };
            notes.extend(items.into_iter().map(note));
        }
        Ok(notes)
    }

    async fn delete_kv(&self, kind: &str, id: &str) -> Result<(), StoreError> {
        let pk = KvItem::partition(kind);
        let delete = || self.inner.shares.delete_item(pk.clone(), id, None);
        self.inner.calls.call_unpaced(REMOVE, delete).await.map(drop)
    }
}
