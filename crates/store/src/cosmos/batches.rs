//! Batch documents, and the number of shards, which each batch keeps for ever.

use std::cmp::Reverse;

use async_trait::async_trait;
use azure_core::http::Etag;
use azure_data_cosmos::feed::FeedScope;
use azure_data_cosmos::options::{ItemWriteOptions, Precondition};

use super::calls::{CallBackoff, CallPurpose, PointResult, QueryPages, decode_item, page_of};
use super::items::BatchItem;
use super::request_units::CosmosOperation;
use super::{CosmosInner, CosmosStore};
use crate::{Batch, BatchSenders, BatchState, BatchStore, StoreError};
use domain::job::BatchId;

const GET: CallPurpose = CallPurpose(CosmosOperation::Batches, "reading a batch");
const PUT: CallPurpose = CallPurpose(CosmosOperation::Batches, "writing a batch");
const LIST: CallPurpose = CallPurpose(CosmosOperation::Batches, "listing batches");

const BATCHES_A_PAGE: u32 = 100;

#[async_trait]
impl BatchStore for CosmosStore {
    async fn create_batch(&self, batch: &Batch) -> Result<bool, StoreError> {
        let id = batch.id.to_string();
        let item = BatchItem::new(batch, self.inner.new_shards);
        let create = || self.inner.batches.create_item(id.clone(), &id, &item, None);
        if self.inner.calls.write(PUT, create).await?.written(PUT)? {
            return Ok(true);
        }
        let announce = |known: &mut BatchItem| {
            let is_new = known.state.is_none();
            if is_new {
                *known =
                    BatchItem { senders: known.senders, ..BatchItem::new(batch, known.shards) };
            }
            is_new
        };
        // Jobs that nobody announced may have been worked before: it is not this caller's alone.
        self.inner.edit(&batch.id, announce).await?;
        Ok(false)
    }

    async fn add_senders(&self, id: &BatchId, senders: BatchSenders) -> Result<(), StoreError> {
        let add = |item: &mut BatchItem| {
            let is_more = item.senders < senders;
            item.senders = item.senders.max(senders);
            is_more
        };
        self.inner.edit(id, add).await.map(drop)
    }

    /// Creates the batch or overwrites its counts; its number of shards and its state stay.
    async fn put_batch(&self, batch: &Batch) -> Result<(), StoreError> {
        let id = batch.id.to_string();
        let mut others = CallBackoff::new(self.inner.calls.patience);
        loop {
            let read = || self.inner.batches.read_item(id.clone(), &id, None);
            let answer =
                if let PointResult::Done(response) = self.inner.calls.read(GET, read).await? {
                    let etag = response.headers().etag().cloned();
                    let known: BatchItem = decode_item(GET, response)?;
                    let mut item = BatchItem::new(batch, known.shards);
                    if known.state.is_some() {
                        (item.state, item.reason) = (known.state, known.reason);
                        item.senders = known.senders;
                    }
                    self.inner.replace(&id, &item, etag).await?
                } else {
                    let item = BatchItem::new(batch, self.inner.new_shards);
                    let create = || self.inner.batches.create_item(id.clone(), &id, &item, None);
                    self.inner.calls.write(PUT, create).await?
                };
            if answer.written(PUT)? {
                return Ok(());
            }
            others.wait_for_others(PUT.1).await?;
        }
    }

    async fn change_state(
        &self,
        id: &BatchId,
        from: &[BatchState],
        to: BatchState,
        reason: Option<&str>,
    ) -> Result<Option<Batch>, StoreError> {
        let change = |item: &mut BatchItem| {
            let is_from = item.state.is_some_and(|state| from.contains(&state));
            if is_from {
                (item.state, item.reason) = (Some(to), reason.map(str::to_owned));
            }
            is_from
        };
        let item = self.inner.edit(id, change).await?;
        Ok(item.map(BatchItem::into_batch).transpose()?.flatten())
    }

    async fn batch(&self, id: &BatchId) -> Result<Option<Batch>, StoreError> {
        let item = self.inner.batch_item(id).await?;
        Ok(item.map(BatchItem::into_batch).transpose()?.flatten())
    }

    async fn batches(&self) -> Result<Vec<Batch>, StoreError> {
        let (query, all) = ("SELECT * FROM c".into(), FeedScope::full_container());
        let mut pages: QueryPages<BatchItem> =
            QueryPages::new(&self.inner.batches, query, all, page_of(BATCHES_A_PAGE), LIST);
        let mut batches = Vec::new();
        while let Some(items) = pages.next(&self.inner.calls).await? {
            for item in items {
                batches.extend(item.into_batch()?);
            }
        }
        batches.sort_by_key(|batch| Reverse(batch.created_at));
        Ok(batches)
    }
}

impl CosmosInner {
    /// Changes a batch's item until nobody is in between; `change` returns whether there is
    /// anything to write. Returns the item as it is then; `None` if there is none.
    async fn edit(
        &self,
        id: &BatchId,
        change: impl Fn(&mut BatchItem) -> bool,
    ) -> Result<Option<BatchItem>, StoreError> {
        let id = id.to_string();
        let mut others = CallBackoff::new(self.calls.patience);
        loop {
            let read = || self.batches.read_item(id.clone(), &id, None);
            let PointResult::Done(response) = self.calls.read(GET, read).await? else {
                return Ok(None);
            };
            let etag = response.headers().etag().cloned();
            let mut item: BatchItem = decode_item(GET, response)?;
            // If our own write succeeded unnoticed, the next read finds it done.
            if !change(&mut item) || self.replace(&id, &item, etag).await?.written(PUT)? {
                return Ok(Some(item));
            }
            others.wait_for_others(PUT.1).await?;
        }
    }

    async fn replace(
        &self,
        id: &str,
        item: &BatchItem,
        etag: Option<Etag>,
    ) -> Result<PointResult, StoreError> {
        let options = etag.map(|etag| {
            ItemWriteOptions::default().with_precondition(Precondition::if_match(etag))
        });
        let replace = || self.batches.replace_item(id.to_owned(), id, item, options.clone());
        self.calls.write(PUT, replace).await
    }

    /// Returns the batch's number of shards, and fixes it now if it was not before.
    pub(super) async fn shards(&self, batch: &BatchId) -> Result<u32, StoreError> {
        let mut others = CallBackoff::new(self.calls.patience);
        loop {
            if let Some(shards) = self.known_shards(batch).await? {
                return Ok(shards);
            }
            let (id, item) = (batch.to_string(), BatchItem::unannounced(batch, self.new_shards));
            let create = || self.batches.create_item(id.clone(), &id, &item, None);
            if self.calls.write(PUT, create).await?.written(PUT)? {
                self.shards_cache().insert(batch.clone(), self.new_shards);
                return Ok(self.new_shards);
            }
            others.wait_for_others(GET.1).await?;
        }
    }

    /// Returns `None` for a batch that was never written.
    pub(super) async fn known_shards(&self, batch: &BatchId) -> Result<Option<u32>, StoreError> {
        if let Some(shards) = self.shards_cache().get(batch) {
            return Ok(Some(*shards));
        }
        let Some(item) = self.batch_item(batch).await? else { return Ok(None) };
        self.shards_cache().insert(batch.clone(), item.shards);
        Ok(Some(item.shards))
    }

    async fn batch_item(&self, id: &BatchId) -> Result<Option<BatchItem>, StoreError> {
        let id = id.to_string();
        let read = || self.batches.read_item(id.clone(), &id, None);
        match self.calls.read(GET, read).await? {
            PointResult::Done(response) => Ok(Some(decode_item(GET, response)?)),
            PointResult::NotFound(_) | PointResult::Conflict | PointResult::PreconditionFailed => {
                Ok(None)
            }
        }
    }
}
