//! Totals of a batch: the running figure from the workers' own sums, and the true one.
//!
//! Every process adds up what it recorded and writes its own sums over its own items: no two write
//! the same item, so none is hot and no sum is read before it is written. Readers add the items up;
//! a batch has a handful of them. But a process that is killed between an outcome and this sum
//! leaves the sum short. So this is the *running* figure, for watching; a batch's totals are
//! counted from the outcomes themselves, which can't be short.

use std::collections::BTreeMap;

use azure_data_cosmos::feed::FeedScope;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;

use super::calls::{CallPurpose, QueryPages, page_of};
use super::error::BadItem;
use super::items::{TotalsFields, UsageItem, partition_key};
use super::request_units::CosmosOperation;
use super::worker_usage::WorkerSumKey;
use super::{CosmosInner, SHARDS_AT_A_TIME};
use crate::{BatchTotals, DeploymentTotals, FinishCounts, MinuteTotals, RunningTotals, StoreError};
use domain::job::BatchId;
use domain::outcome::OutcomeStatus;

const ADD: CallPurpose = CallPurpose(CosmosOperation::Usage, "writing the usage of this worker");
const SUM: CallPurpose = CallPurpose(CosmosOperation::Usage, "reading usage");
const COUNT: CallPurpose = CallPurpose(CosmosOperation::Totals, "counting outcomes");

const COUNTED_A_PAGE: u32 = 1000;
const USAGE_WRITES_IN_FLIGHT: usize = 4;

/// Deployment, model, service tier.
type DeploymentKey = (String, String, Option<Box<str>>);

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
                let UsageItem { endings, usage, attempts, finishes, .. } = item;
                *totals += &BatchTotals { endings, usage, attempts, finishes };
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
            "SELECT c.ending, c.attempts, c.usage, c.finish FROM c".into(),
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
                totals.finishes += FinishCounts::of(item.ending, item.finish);
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
