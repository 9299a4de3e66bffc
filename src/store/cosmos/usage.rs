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
use super::items::{Counted, OutcomeItem, UsageItem, partition};
use super::units::Operation;
use super::{Inner, SHARDS_AT_A_TIME};
use crate::job::BatchId;
use crate::outcome::{Ending, Outcome};
use crate::store::{StoreError, Totals};

const ADD: Purpose = Purpose(Operation::Usage, "writing the usage of this worker");
const SUM: Purpose = Purpose(Operation::Usage, "reading usage");
const COUNT: Purpose = Purpose(Operation::Totals, "counting outcomes");

const COUNTED_A_PAGE: u32 = 1000;
const USAGE_WRITES_IN_FLIGHT: usize = 4;

type Key = (BatchId, String, String, String);

struct Row {
    item: UsageItem,
    /// How often it changed, and how many of the changes are in the database.
    changes: u64,
    written: u64,
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
            let row = self.changing(&mut rows, key);
            *row.item.endings.entry(o.ending).or_default() += 1;
            row.item.attempts += u64::from(o.attempts);
            row.item.usage += o.usage;
        }
    }

    /// Counts an outcome as withdrawn. What it cost was paid, and stays.
    pub(super) fn withdraw(&self, batch: &BatchId, item: &OutcomeItem<'_>) {
        let hour = item.finished_at.chars().take(13).collect();
        let key = (batch.clone(), item.deployment.to_string(), item.model.to_string(), hour);
        self.changing(&mut self.rows(), key).item.withdrawn += 1;
    }

    fn changing<'r>(&self, rows: &'r mut HashMap<Key, Row>, key: Key) -> &'r mut Row {
        let row = match rows.entry(key) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(empty) => {
                let item = self.empty_item(empty.key());
                empty.insert(Row { item, changes: 0, written: 0 })
            }
        };
        row.changes += 1;
        row
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
            withdrawn: 0,
            attempts: 0,
            usage: Default::default(),
        }
    }

    /// The sums to write, each with the number of changes that it stands for.
    fn changed(&self) -> Vec<(Key, UsageItem, u64)> {
        let rows = self.rows();
        let changed = rows.iter().filter(|(_, row)| row.written < row.changes);
        changed.map(|(key, row)| (key.clone(), row.item.clone(), row.changes)).collect()
    }

    fn mark_written(&self, key: &Key, changes: u64) {
        if let Some(row) = self.rows().get_mut(key) {
            row.written = changes;
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
        let changed = self.running.changed();
        let write = async |n: usize| {
            let (key, item, changes): &(Key, UsageItem, u64) = &changed[n];
            let batch = item.batch_id.to_string();
            let upsert = || self.usage.upsert_item(batch.clone(), &item.id, item, None);
            match self.calls.write(ADD, upsert).await.and_then(|answer| answer.made(ADD)) {
                Ok(_) => self.running.mark_written(key, *changes),
                Err(error) => {
                    let batch = &item.batch_id;
                    tracing::warn!(%error, batch.id = %batch, "the running usage is behind");
                }
            }
        };
        let writes = stream::iter(0..changed.len()).map(write);
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
        let mut withdrawn = 0;
        while let Some(items) = pages.next(&self.calls).await? {
            for item in items {
                withdrawn += item.withdrawn;
                for (ending, jobs) in item.endings {
                    *totals.endings.entry(ending).or_default() += jobs;
                }
                totals.attempts += item.attempts;
                totals.usage += item.usage;
            }
        }
        let dead = totals.of(Ending::Dead).saturating_sub(withdrawn);
        totals.endings.insert(Ending::Dead, dead);
        totals.endings.retain(|_, jobs| *jobs > 0);
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
                if let Some(ending) = item.ending {
                    *totals.endings.entry(ending).or_default() += 1;
                }
                totals.attempts += item.attempts;
                totals.usage += item.usage;
            }
        }
        Ok(totals)
    }
}
