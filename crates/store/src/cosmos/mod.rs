//! The store on Azure Cosmos DB: five containers of one database.
//!
//! | container | partition key | an item |
//! | --- | --- | --- |
//! | `outcomes` | `/pk` | one outcome, its id the job's; a withdrawn one's cost; a batch's budget |
//! | `batches` | `/id` | one batch |
//! | `usage` | `/batchId` | one worker's sums for a batch, deployment, model, tier and hour |
//! | `shares` | `/pk` | one worker's heartbeat, which expires; or a key-value record |
//! | `payloads` | `/id` | a part of a body too big for its item or message; a job's expires |
//!
//! A logical partition holds 20 GB and 10,000 RU/s, so a batch is spread over many: `pk` is
//! `BATCH|SHARD`, the shard is derived from the job id, and the batch stores its number of shards.
//!
//! **A batch's totals are counted from its outcomes**, never from a counter beside them: two items
//! of different partitions can't be written as one, so a killed process would leave such a counter
//! wrong for ever. Counting costs about as many request units as reading; so there is
//! [`CosmosStore::worker_totals`] too, which is cheap, for watching.
//!
//! Types of the SDK never leave this folder. `settings` makes the client, `calls` makes every call
//! (counted, retried), `write_pacer` times the writes; most other files are one kind of item each.

mod batches;
mod budgets;
mod calls;
mod error;
mod heartbeats;
mod init;
mod items;
mod kv_records;
mod outcome_summaries;
mod payloads;
mod record;
mod request_units;
mod settings;
mod stream;
mod usage;
mod withdraw;
mod write_ids;
mod write_pacer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use azure_data_cosmos::ContainerClient;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use uuid::Uuid;

pub use self::init::init;
pub use self::request_units::{CosmosOperation, RequestUnits};
pub use self::settings::{CosmosConsistency, CosmosCredential, CosmosSettings};
use super::{
    Batch, BatchState, BatchTotals, KvRecord, OutcomeSummary, PAYLOAD_TTL, Recorded, RunningTotals,
    SortOrder, Store, StoreCharges, StoreError,
};
use domain::budget::{Budget, BudgetClaim, BudgetLimit};
use domain::heartbeat::Heartbeat;
use domain::job::{BatchId, JobId};
use domain::outcome::Outcome;

/// Shards that are read side by side.
const SHARDS_AT_A_TIME: usize = 8;

/// The store; clones share it.
#[derive(Clone)]
pub struct CosmosStore {
    inner: Arc<CosmosInner>,
}

struct CosmosInner {
    calls: calls::CallExecutor,
    outcomes: ContainerClient,
    batches: ContainerClient,
    usage: ContainerClient,
    payloads: ContainerClient,
    shares: ContainerClient,
    writes_in_flight: usize,
    /// Shards of a batch that begins now.
    new_shards: u32,
    shards: Mutex<HashMap<BatchId, u32>>,
    write_ids: write_ids::WriteIds,
    worker_usage: usage::WorkerUsage,
}

impl CosmosStore {
    /// Opens the database, whose containers must exist.
    ///
    /// # Errors
    /// Says what is missing, not allowed or not reachable.
    pub async fn connect(settings: &CosmosSettings) -> Result<Self, StoreError> {
        let database = settings.client().await?.database_client(settings.database.clone());
        let container = async |name: &'static str| {
            let container = database.container_client(name, None).await;
            container.map_err(|e| error::store_error("opening a container", e))
        };
        let inner = CosmosInner {
            calls: calls::CallExecutor {
                units: RequestUnits::default(),
                pacer: write_pacer::WritePacer::new(settings.writes_in_flight.get()),
                patience: settings.patience(),
            },
            outcomes: container(items::OUTCOMES).await?,
            batches: container(items::BATCHES).await?,
            usage: container(items::USAGE).await?,
            payloads: container(items::PAYLOADS).await?,
            shares: container(items::SHARES).await?,
            writes_in_flight: settings.writes_in_flight.get(),
            new_shards: settings.shards.get(),
            shards: Mutex::default(),
            write_ids: write_ids::WriteIds::default(),
            worker_usage: usage::WorkerUsage::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Request units that this process has spent.
    pub fn request_units(&self) -> &RequestUnits {
        &self.inner.calls.units
    }

    /// Writes that were throttled for lack of request units, and retried.
    pub fn throttled_writes(&self) -> u64 {
        self.inner.calls.pacer.throttled_writes()
    }

    /// Returns a batch's totals from the workers' own sums: cheap, but without the last outcomes of
    /// a killed worker.
    ///
    /// # Errors
    /// As [`Store::totals`].
    pub async fn worker_totals(&self, batch: &BatchId) -> Result<BatchTotals, StoreError> {
        Ok(self.running_totals(batch, Timestamp::MAX).await?.totals())
    }
}

impl CosmosInner {
    fn shards_cache(&self) -> MutexGuard<'_, HashMap<BatchId, u32>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the items' ids, which are the jobs'.
fn job_ids(batch: &BatchId, custom_ids: &[&str]) -> Vec<JobId> {
    custom_ids.iter().map(|custom_id| JobId::new(batch, custom_id)).collect()
}

#[async_trait]
impl Store for CosmosStore {
    async fn record(&self, outcomes: Arc<Vec<Outcome>>) -> Result<Vec<Recorded>, StoreError> {
        if outcomes.is_empty() {
            return Ok(Vec::new());
        }
        self.inner.record(&outcomes).await
    }

    async fn look_up(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        if custom_ids.is_empty() {
            return Ok(Vec::new());
        }
        self.inner.look_up(batch, &job_ids(batch, custom_ids)).await
    }

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

    async fn reopen_dead(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        if custom_ids.is_empty() {
            return Ok(Vec::new());
        }
        self.inner.reopen_dead(batch, &job_ids(batch, custom_ids)).await
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

    async fn put_batch(&self, batch: &Batch) -> Result<(), StoreError> {
        self.inner.put_batch(batch).await
    }

    async fn change_state(
        &self,
        id: &BatchId,
        from: &[BatchState],
        to: BatchState,
        reason: Option<&str>,
    ) -> Result<Option<Batch>, StoreError> {
        self.inner.change_state(id, from, to, reason).await
    }

    async fn limit_budget(
        &self,
        batch: &BatchId,
        limit: &BudgetLimit,
    ) -> Result<Budget, StoreError> {
        self.inner.limit_budget(batch, limit).await
    }

    async fn budget(&self, batch: &BatchId) -> Result<Option<Budget>, StoreError> {
        self.inner.budget(batch).await
    }

    async fn claim(
        &self,
        batch: &BatchId,
        claim: &BudgetClaim,
    ) -> Result<Option<(bool, Budget)>, StoreError> {
        self.inner.claim(batch, claim).await
    }

    async fn batch(&self, id: &BatchId) -> Result<Option<Batch>, StoreError> {
        self.inner.batch(id).await
    }

    async fn batches(&self) -> Result<Vec<Batch>, StoreError> {
        self.inner.list_batches().await
    }

    async fn put_payload(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.put_payload(name, &bytes, Some(PAYLOAD_TTL)).await
    }

    async fn get_payload(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.inner.get_payload(name).await
    }

    async fn delete_payload(&self, name: &str) -> Result<(), StoreError> {
        self.inner.delete_payload(name).await
    }

    async fn put_heartbeat(&self, word: &Heartbeat) -> Result<(), StoreError> {
        self.inner.put_heartbeat(word).await
    }

    async fn heartbeats(&self) -> Result<Vec<Heartbeat>, StoreError> {
        self.inner.heartbeats().await
    }

    async fn delete_heartbeat(&self, instance: Uuid) -> Result<(), StoreError> {
        self.inner.delete_heartbeat(instance).await
    }

    async fn put_kv(&self, note: &KvRecord, was: Option<&str>) -> Result<bool, StoreError> {
        self.inner.put_kv(note, was).await
    }

    async fn get_kv(&self, kind: &str, id: &str) -> Result<Option<String>, StoreError> {
        self.inner.get_kv(kind, id).await
    }

    async fn list_kv(&self, kind: &str) -> Result<Vec<KvRecord>, StoreError> {
        self.inner.list_kv(kind).await
    }

    async fn delete_kv(&self, kind: &str, id: &str) -> Result<(), StoreError> {
        self.inner.delete_kv(kind, id).await
    }

    fn charges(&self) -> Option<StoreCharges> {
        let units = self.request_units();
        let spent = CosmosOperation::ALL.map(|operation| (operation.as_str(), units.of(operation)));
        Some(StoreCharges {
            request_units: units.total(),
            by_operation: spent.into_iter().filter(|(_, charge)| *charge > 0.0).collect(),
            throttled: self.throttled_writes(),
        })
    }
}
