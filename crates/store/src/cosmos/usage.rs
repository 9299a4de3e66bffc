//! Tokens by worker, batch, deployment, model, service tier and hour: the cheap figure, and the true one.
//!
//! Every process adds up what it recorded and writes its own sums over its own items: no two write
//! the same item, so none is hot and no sum is read before it is written. Readers add the items up;
//! a batch has a handful of them. But a process that is killed between an outcome and this sum
//! leaves the sum short. So this is the *running* figure, for watching; a batch's totals are
//! counted from the outcomes themselves, which can't be short.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use azure_data_cosmos::feed::FeedScope;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use uuid::Uuid;

use super::calls::{CallPurpose, QueryPages, page_of};
use super::error::BadItem;
use super::items::{OutcomeItem, TotalsFields, UsageItem, partition_key};
use super::request_units::CosmosOperation;
use super::{CosmosInner, SHARDS_AT_A_TIME};
use crate::{BatchTotals, DeploymentTotals, MinuteTotals, RunningTotals, StoreError};
use domain::job::BatchId;
use domain::outcome::{Outcome, OutcomeStatus};

const ADD: CallPurpose = CallPurpose(CosmosOperation::Usage, "writing the usage of this worker");
const SUM: CallPurpose = CallPurpose(CosmosOperation::Usage, "reading usage");
const COUNT: CallPurpose = CallPurpose(CosmosOperation::Totals, "counting outcomes");

const COUNTED_A_PAGE: u32 = 1000;
const USAGE_WRITES_IN_FLIGHT: usize = 4;

/// Batch, deployment, model, service tier, hour.
type WorkerSumKey = (BatchId, String, String, Option<Box<str>>, String);

/// Deployment, model, service tier.
type DeploymentKey = (String, String, Option<Box<str>>);

struct WorkerSum {
    item: UsageItem,
    /// Number of changes, and how many of them are in the database.
    changes: u64,
    written: u64,
}

/// This process's own sums.
pub(super) struct WorkerUsage {
    worker: String,
    rows: Mutex<HashMap<WorkerSumKey, WorkerSum>>,
    /// One writes at a time: an older sum must never overtake a newer one.
    flushing: tokio::sync::Mutex<()>,
}

impl WorkerUsage {
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
            let (deployment, model) = (o.deployment.clone(), o.model.clone());
            let key = (o.batch_id.clone(), deployment, model, o.service_tier.clone(), hour);
            let row = self.touch(&mut rows, key);
            let (minute, ended) = MinuteTotals::of(o);
            let minute_of_hour = u8::try_from(minute.rem_euclid(60)).unwrap_or_default();
            *row.item.minutes.entry(minute_of_hour).or_default() += ended;
            *row.item.endings.entry(o.ending).or_default() += 1;
            row.item.attempts += u64::from(o.attempts);
            row.item.usage += o.usage;
        }
    }

    /// Counts an outcome as withdrawn. Its cost was paid, and stays.
    pub(super) fn count_withdrawn(&self, batch: &BatchId, item: &OutcomeItem<'_>) {
        let hour = item.finished_at.chars().take(13).collect();
        let (deployment, model) = (item.deployment.to_string(), item.model.to_string());
        let tier = item.service_tier.as_deref().map(Box::from);
        let key = (batch.clone(), deployment, model, tier, hour);
        self.touch(&mut self.rows(), key).item.withdrawn += 1;
    }

    fn touch<'r>(
        &self,
        rows: &'r mut HashMap<WorkerSumKey, WorkerSum>,
        key: WorkerSumKey,
    ) -> &'r mut WorkerSum {
        let row = match rows.entry(key) {
            Entry::Occupied(row) => row.into_mut(),
            Entry::Vacant(empty) => {
                let item = self.empty_item(empty.key());
                empty.insert(WorkerSum { item, changes: 0, written: 0 })
            }
        };
        row.changes += 1;
        row
    }

    fn empty_item(
        &self,
        (batch, deployment, model, service_tier, hour): &WorkerSumKey,
    ) -> UsageItem {
        UsageItem {
            // Deployment names may hold what an id may not; nobody looks items up by this.
            id: Uuid::new_v4().simple().to_string(),
            batch_id: batch.clone(),
            worker: self.worker.clone(),
            deployment: deployment.clone(),
            model: model.clone(),
            service_tier: service_tier.clone(),
            hour: hour.clone(),
            minutes: Default::default(),
            endings: Default::default(),
            withdrawn: 0,
            attempts: 0,
            usage: Default::default(),
        }
    }

    /// Returns the sums to write, each with its number of changes.
    fn changed(&self) -> Vec<(WorkerSumKey, UsageItem, u64)> {
        let rows = self.rows();
        let changed = rows.iter().filter(|(_, row)| row.written < row.changes);
        changed.map(|(key, row)| (key.clone(), row.item.clone(), row.changes)).collect()
    }

    fn mark_written(&self, key: &WorkerSumKey, changes: u64) {
        if let Some(row) = self.rows().get_mut(key) {
            row.written = changes;
        }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<WorkerSumKey, WorkerSum>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CosmosInner {
    /// Writes the sums that changed. A caller that waits here mostly finds that done already.
    ///
    /// An error does not fail the recording: the outcomes are durable, and the sum goes with the
    /// next call.
    pub(super) async fn flush_usage(&self) {
        let _one = self.worker_usage.flushing.lock().await;
        let changed = self.worker_usage.changed();
        let write = async |n: usize| {
            let (key, item, changes): &(WorkerSumKey, UsageItem, u64) = &changed[n];
            let batch = item.batch_id.to_string();
            let upsert = || self.usage.upsert_item(batch.clone(), &item.id, item, None);
            match self.calls.write(ADD, upsert).await.and_then(|answer| answer.written(ADD)) {
                Ok(_) => self.worker_usage.mark_written(key, *changes),
                Err(error) => {
                    let batch = &item.batch_id;
                    tracing::warn!(%error, batch.id = %batch, "could not write this worker's usage sums; running totals lag until the next write");
                }
            }
        };
        let writes = stream::iter(0..changed.len()).map(write);
        writes.buffer_unordered(USAGE_WRITES_IN_FLIGHT).collect::<()>().await;
    }

    pub(super) async fn running_totals(
        &self,
        batch: &BatchId,
        since: Timestamp,
    ) -> Result<RunningTotals, StoreError> {
        let mut pages: QueryPages<UsageItem> = QueryPages::new(
            &self.usage,
            "SELECT * FROM c".into(),
            FeedScope::partition(batch.to_string()),
            page_of(COUNTED_A_PAGE),
            SUM,
        );
        let since = since.as_second().div_euclid(60);
        let mut minutes: BTreeMap<i64, MinuteTotals> = BTreeMap::new();
        let mut sums: BTreeMap<DeploymentKey, (BatchTotals, u64)> = BTreeMap::new();
        while let Some(items) = pages.next(&self.calls).await? {
            for item in items {
                let hour = hour_start(&item)?;
                for (minute, ended) in item.minutes {
                    let minute = hour + i64::from(minute);
                    if minute >= since {
                        *minutes.entry(minute).or_default() += ended;
                    }
                }
                let key = (item.deployment, item.model, item.service_tier);
                let (totals, withdrawn) = sums.entry(key).or_default();
                let UsageItem { endings, usage, attempts, .. } = item;
                *totals += &BatchTotals { endings, usage, attempts };
                *withdrawn += item.withdrawn;
            }
        }
        Ok(RunningTotals { sums: sums.into_iter().map(deployment_totals).collect(), minutes })
    }

    pub(super) async fn totals(&self, batch: &BatchId) -> Result<BatchTotals, StoreError> {
        let Some(shards) = self.known_shards(batch).await? else {
            return Ok(BatchTotals::default());
        };
        let sums = (0..shards).map(|shard| self.totals_of_shard(batch, shard));
        let add = async |mut totals: BatchTotals, part: BatchTotals| {
            totals += &part;
            Ok(totals)
        };
        stream::iter(sums)
            .buffer_unordered(SHARDS_AT_A_TIME)
            .try_fold(BatchTotals::default(), add)
            .await
    }

    async fn totals_of_shard(
        &self,
        batch: &BatchId,
        shard: u32,
    ) -> Result<BatchTotals, StoreError> {
        let mut pages: QueryPages<TotalsFields> = QueryPages::new(
            &self.outcomes,
            "SELECT c.ending, c.attempts, c.usage FROM c".into(),
            FeedScope::partition(partition_key(batch, shard)),
            page_of(COUNTED_A_PAGE),
            COUNT,
        );
        let mut totals = BatchTotals::default();
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

/// Returns the Unix minute in which the item's hour begins.
fn hour_start(item: &UsageItem) -> Result<i64, BadItem> {
    let bad = || BadItem::Field { id: item.id.clone(), field: "hour" };
    let begin: Timestamp = format!("{}:00:00Z", item.hour).parse().map_err(|_| bad())?;
    Ok(begin.as_second().div_euclid(60))
}

fn deployment_totals(
    ((deployment, model, service_tier), (mut totals, withdrawn)): (
        DeploymentKey,
        (BatchTotals, u64),
    ),
) -> DeploymentTotals {
    let dead = totals.of(OutcomeStatus::Dead).saturating_sub(withdrawn);
    totals.endings.insert(OutcomeStatus::Dead, dead);
    totals.endings.retain(|_, jobs| *jobs > 0);
    DeploymentTotals { deployment, model, service_tier, totals }
}
