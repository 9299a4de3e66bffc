//! Tokens by worker, batch, deployment, model and hour: the cheap figure, and the true one.
//!
//! Every process adds up what it recorded and writes its own sums over its own items: no two write
//! the same item, so none is hot and no sum is read before it is written. Readers add the items up;
//! a batch has a handful of them. But a process that is killed between an outcome and this sum
//! leaves the sum short. So this is the *running* figure, for watching; what a batch came to is
//! counted from the outcomes themselves, which can't be short.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use azure_data_cosmos::feed::FeedScope;
use futures_util::{StreamExt, TryStreamExt, stream};
use uuid::Uuid;

use super::calls::{Pages, Purpose, page_of};
use super::items::{Counted, UsageItem, partition};
use super::units::Operation;
use super::{Inner, SHARDS_AT_A_TIME};
use crate::job::BatchId;
use crate::outcome::Outcome;
use crate::store::{StoreError, Totals};

const ADD: Purpose = Purpose(Operation::Usage, "writing the usage of this worker");
const SUM: Purpose = Purpose(Operation::Usage, "reading usage");
const COUNT: Purpose = Purpose(Operation::Totals, "counting outcomes");

const COUNTED_A_PAGE: u32 = 1000;
const USAGE_WRITES_IN_FLIGHT: usize = 4;

type Key = (BatchId, String, String, String);

struct Row {
    item: UsageItem,
    /// Not yet written as it stands.
    dirty: bool,
}

/// This process's own sums.
pub(super) struct Running {
    worker: String,
    rows: Mutex<HashMap<Key, Row>>,
    /// One writes at a time: an older sum must never overtake a newer one.
    flushing: tokio::sync::Mutex<()>,
}

impl Running {
    pub(super) fn new() -> Self {
        let worker = Uuid::new_v4().simple().to_string();
        Self { worker, rows: Mutex::default(), flushing: tokio::sync::Mutex::default() }
    }

    /// Adds outcomes that were recorded, each of them once.
    pub(super) fn add<'a>(&self, outcomes: impl Iterator<Item = &'a Outcome>) {
        let mut rows = self.rows();
        for o in outcomes {
            // "2026-11-23T16" of an RFC 3339 time.
            let hour = o.finished_at.to_string()[..13].to_owned();
            let key = (o.batch_id.clone(), o.deployment.clone(), o.model.clone(), hour);
            let row = match rows.entry(key) {
                Entry::Occupied(row) => row.into_mut(),
                Entry::Vacant(empty) => {
                    let item = self.empty_item(empty.key());
                    empty.insert(Row { item, dirty: true })
                }
            };
            row.dirty = true;
            *row.item.endings.entry(o.ending).or_default() += 1;
            row.item.attempts += u64::from(o.attempts);
            row.item.usage += o.usage;
        }
    }

    fn empty_item(&self, (batch, deployment, model, hour): &Key) -> UsageItem {
        UsageItem {
            // Names of deployments may hold what an id may not; nobody looks items up by this.
            id: Uuid::new_v4().simple().to_string(),
            batch_id: batch.clone(),
            worker: self.worker.clone(),
            deployment: deployment.clone(),
            model: model.clone(),
            hour: hour.clone(),
            endings: Default::default(),
            attempts: 0,
            usage: Default::default(),
        }
    }

    fn take_dirty(&self) -> Vec<(Key, UsageItem)> {
        let mut rows = self.rows();
        let dirty = rows.iter_mut().filter(|(_, row)| row.dirty).map(|(key, row)| {
            row.dirty = false;
            (key.clone(), row.item.clone())
        });
        dirty.collect()
    }

    fn mark_dirty(&self, key: &Key) {
        if let Some(row) = self.rows().get_mut(key) {
            row.dirty = true;
        }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<Key, Row>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Writes the sums that changed. Who waits here mostly finds it done by the one before.
    ///
    /// A failure is no failure of recording: the outcomes are durable, and the sum goes with the
    /// next call.
    pub(super) async fn flush_usage(&self) {
        let _one = self.running.flushing.lock().await;
        let dirty = self.running.take_dirty();
        let write = async |n: usize| {
            let (key, item): &(Key, UsageItem) = &dirty[n];
            let batch = item.batch_id.to_string();
            let upsert = || self.usage.upsert_item(batch.clone(), &item.id, item, None);
            if let Err(error) = self.calls.write(ADD, upsert).await {
                self.running.mark_dirty(key);
                tracing::warn!(%error, batch.id = %item.batch_id, "the running usage is behind");
            }
        };
        let writes = stream::iter(0..dirty.len()).map(write);
        writes.buffer_unordered(USAGE_WRITES_IN_FLIGHT).collect::<()>().await;
    }

    pub(super) async fn running_totals(&self, batch: &BatchId) -> Result<Totals, StoreError> {
        let mut pages: Pages<UsageItem> = Pages::new(
            &self.usage,
            "SELECT * FROM c".into(),
            FeedScope::partition(batch.to_string()),
            page_of(COUNTED_A_PAGE),
            SUM,
        );
        let mut totals = Totals::default();
        while let Some(items) = pages.next(&self.calls).await? {
            for item in items {
                for (ending, jobs) in item.endings {
                    *totals.endings.entry(ending).or_default() += jobs;
                }
                totals.attempts += item.attempts;
                totals.usage += item.usage;
            }
        }
        Ok(totals)
    }

    pub(super) async fn totals(&self, batch: &BatchId) -> Result<Totals, StoreError> {
        let Some(shards) = self.known_shards(batch).await? else { return Ok(Totals::default()) };
        let sums = (0..shards).map(|shard| self.totals_of_shard(batch, shard));
        let add = async |mut totals: Totals, part: Totals| {
            for (ending, jobs) in part.endings {
                *totals.endings.entry(ending).or_default() += jobs;
            }
            totals.attempts += part.attempts;
            totals.usage += part.usage;
            Ok(totals)
        };
        stream::iter(sums).buffer_unordered(SHARDS_AT_A_TIME).try_fold(Totals::default(), add).await
    }

    async fn totals_of_shard(&self, batch: &BatchId, shard: u32) -> Result<Totals, StoreError> {
        let mut pages: Pages<Counted> = Pages::new(
            &self.outcomes,
            "SELECT c.ending, c.attempts, c.usage FROM c".into(),
            FeedScope::partition(partition(batch, shard)),
            page_of(COUNTED_A_PAGE),
            COUNT,
        );
        let mut totals = Totals::default();
        while let Some(items) = pages.next(&self.calls).await? {
            for item in items {
                *totals.endings.entry(item.ending).or_default() += 1;
                totals.attempts += item.attempts;
                totals.usage += item.usage;
            }
        }
        Ok(totals)
    }
}
