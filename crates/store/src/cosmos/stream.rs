//! A batch's outcomes as a stream, out of all its shards, in bounded memory.
//!
//! As stored: some shards at a time, page after page. By position: every shard gives its outcomes in
//! order, and the lowest head of all goes next; two pages of each shard are held for that.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::vec;

use async_trait::async_trait;
use azure_data_cosmos::feed::FeedScope;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt, TryStreamExt};
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::calls::{CallPurpose, PointResult, QueryPages, decode_item, page_of};
use super::error::BadItem;
use super::items::{OutcomeItem, partition_key, shard_of};
use super::request_units::CosmosOperation;
use super::{CosmosInner, CosmosStore, SHARDS_AT_A_TIME};
use crate::{BatchTotals, OutcomeReader, OutcomeSummary, RunningTotals, SortOrder, StoreError};
use domain::job::{BatchId, JobId};
use domain::outcome::Outcome;

const READ: CallPurpose = CallPurpose(CosmosOperation::Outcomes, "reading outcomes");

/// The service ends a page at 4 MB whatever is asked for.
const PAGE_ITEMS: u32 = 100;
/// Smaller, since all shards' pages are held at the same time.
const ORDERED_PAGE_ITEMS: u32 = 16;

type OwnedOutcomeItem = OutcomeItem<'static>;
pub(super) type OutcomeStream = BoxStream<'static, Result<Outcome, StoreError>>;

#[async_trait]
impl OutcomeReader for CosmosStore {
    async fn outcome(
        &self,
        batch: &BatchId,
        custom_id: &str,
    ) -> Result<Option<Outcome>, StoreError> {
        self.inner.outcome(batch, JobId::new(batch, custom_id)).await
    }

    async fn outcome_by_id(
        &self,
        batch: &BatchId,
        job: JobId,
    ) -> Result<Option<Outcome>, StoreError> {
        self.inner.outcome(batch, job).await
    }

    async fn outcomes(
        &self,
        batch: &BatchId,
        order: SortOrder,
    ) -> Result<BoxStream<'static, Result<Outcome, StoreError>>, StoreError> {
        Arc::clone(&self.inner).stream(batch, order).await
    }

    async fn outcome_summaries(
        &self,
        batch: &BatchId,
    ) -> Result<BoxStream<'static, Result<OutcomeSummary, StoreError>>, StoreError> {
        Arc::clone(&self.inner).stream_summaries(batch).await
    }

    async fn totals(&self, batch: &BatchId) -> Result<BatchTotals, StoreError> {
        self.inner.totals(batch).await
    }

    async fn running_totals(
        &self,
        batch: &BatchId,
        since: Timestamp,
    ) -> Result<RunningTotals, StoreError> {
        self.inner.running_totals(batch, since).await
    }
}

impl CosmosInner {
    pub(super) async fn stream(
        self: Arc<Self>,
        batch: &BatchId,
        order: SortOrder,
    ) -> Result<OutcomeStream, StoreError> {
        let Some(shards) = self.known_shards(batch).await? else {
            return Ok(stream::empty().boxed());
        };
        let (this, batch) = (Arc::clone(&self), batch.clone());
        let items = match order {
            SortOrder::AsStored => {
                let shard = move |n| items_of_shard(&this, &batch, n).boxed();
                stream::iter(0..shards).map(shard).flatten_unordered(SHARDS_AT_A_TIME).boxed()
            }
            SortOrder::ByPosition => {
                let shards = (0..shards).map(|n| ShardReader::open(&this, &batch, n)).collect();
                let merge = ShardMerge { shards, heads: BinaryHeap::new(), opened: false };
                stream::try_unfold(merge, ShardMerge::step).boxed()
            }
        };
        let join = move |item| {
            let this = Arc::clone(&self);
            async move { this.with_body(item).await }
        };
        Ok(items.and_then(join).boxed())
    }

    pub(super) async fn outcome(
        &self,
        batch: &BatchId,
        job: JobId,
    ) -> Result<Option<Outcome>, StoreError> {
        let Some(shards) = self.known_shards(batch).await? else { return Ok(None) };
        let (pk, id) = (partition_key(batch, shard_of(job, shards)), job.to_string());
        let read = || self.outcomes.read_item(pk.clone(), &id, None);
        match self.calls.read(READ, read).await? {
            PointResult::Done(response) => {
                self.with_body(decode_item(READ, response)?).await.map(Some)
            }
            PointResult::NotFound(_) | PointResult::Conflict | PointResult::PreconditionFailed => {
                Ok(None)
            }
        }
    }

    fn pages(&self, batch: &BatchId, shard: u32, order: SortOrder) -> QueryPages<OwnedOutcomeItem> {
        // The cost items of withdrawn outcomes have no ending.
        let (query, page) = match order {
            SortOrder::AsStored => ("SELECT * FROM c WHERE IS_DEFINED(c.ending)", PAGE_ITEMS),
            SortOrder::ByPosition => {
                let query = "SELECT * FROM c WHERE IS_DEFINED(c.ending) ORDER BY c.position";
                (query, ORDERED_PAGE_ITEMS)
            }
        };
        let scope = FeedScope::partition(partition_key(batch, shard));
        QueryPages::new(&self.outcomes, query.into(), scope, page_of(page), READ)
    }

    async fn with_body(&self, mut item: OwnedOutcomeItem) -> Result<Outcome, StoreError> {
        let payload = item.body_ref.take();
        let mut outcome = item.into_outcome()?;
        if let Some(name) = payload {
            let body = self.get_payload(&name).await?;
            outcome.body = Some(body.ok_or_else(|| BadItem::NoPayload(name.into_owned()))?);
        }
        Ok(outcome)
    }
}

fn items_of_shard(
    store: &Arc<CosmosInner>,
    batch: &BatchId,
    shard: u32,
) -> impl Stream<Item = Result<OwnedOutcomeItem, StoreError>> + use<> {
    let (store, pages) = (Arc::clone(store), store.pages(batch, shard, SortOrder::AsStored));
    let pages = stream::try_unfold((store, pages), async |(store, mut pages)| {
        let page = pages.next(&store.calls).await?;
        Ok::<_, StoreError>(page.map(|page| (page, (store, pages))))
    });
    pages.map_ok(|page| stream::iter(page.into_iter().map(Ok))).try_flatten()
}

/// One shard's outcomes in order, a page read ahead.
struct ShardReader {
    pages: mpsc::Receiver<Result<Vec<OwnedOutcomeItem>, StoreError>>,
    page: vec::IntoIter<OwnedOutcomeItem>,
}

impl ShardReader {
    /// Starts the reading task; it ends with the shard's last page, or when this is dropped.
    fn open(store: &Arc<CosmosInner>, batch: &BatchId, shard: u32) -> Self {
        let (send, pages) = mpsc::channel(1);
        let mut source = store.pages(batch, shard, SortOrder::ByPosition);
        let store = Arc::clone(store);
        tokio::spawn(async move {
            while let Some(page) = source.next(&store.calls).await.transpose() {
                let last = page.is_err();
                if send.send(page).await.is_err() || last {
                    return;
                }
            }
        });
        Self { pages, page: Vec::new().into_iter() }
    }

    async fn next(&mut self) -> Result<Option<OwnedOutcomeItem>, StoreError> {
        loop {
            if let Some(item) = self.page.next() {
                return Ok(Some(item));
            }
            match self.pages.recv().await.transpose()? {
                Some(page) => self.page = page.into_iter(),
                None => return Ok(None),
            }
        }
    }
}

/// A shard's next outcome. Its order is that of (position, id): ids decide between outcomes of
/// the same position, so that two exports of one batch are equal.
struct ShardHead {
    item: OwnedOutcomeItem,
    shard: usize,
}

impl ShardHead {
    fn key(&self) -> (u64, &str) {
        (self.item.position, &self.item.id)
    }
}

impl PartialEq for ShardHead {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for ShardHead {}

impl PartialOrd for ShardHead {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ShardHead {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

struct ShardMerge {
    shards: Vec<ShardReader>,
    heads: BinaryHeap<Reverse<ShardHead>>,
    opened: bool,
}

impl ShardMerge {
    async fn step(mut self) -> Result<Option<(OwnedOutcomeItem, Self)>, StoreError> {
        if !self.opened {
            self.opened = true;
            for shard in 0..self.shards.len() {
                self.fill(shard).await?;
            }
        }
        let Some(Reverse(ShardHead { item, shard })) = self.heads.pop() else { return Ok(None) };
        self.fill(shard).await?;
        Ok(Some((item, self)))
    }

    async fn fill(&mut self, shard: usize) -> Result<(), StoreError> {
        let item = self.shards[shard].next().await?;
        self.heads.extend(item.map(|item| Reverse(ShardHead { item, shard })));
        Ok(())
    }
}
