//! The store on Azure Cosmos DB: five containers of one database.
//!
//! | container | partition key | an item |
//! | --- | --- | --- |
//! | `outcomes` | `/pk` | one outcome, its id the job's; or what a withdrawn one cost; or a batch's budget |
//! | `batches` | `/id` | one batch |
//! | `usage` | `/batchId` | one worker's sums for a batch, deployment, model and hour |
//! | `shares` | `/pk` | one worker's word to its siblings; expires |
//! | `payloads` | `/id` | a part of what is too big for its own place; a job's body expires |
//!
//! A logical partition holds 20 GB and 10,000 RU/s, so a batch is spread over many: `pk` is
//! `BATCH|SHARD`, the shard comes of the job id, and the number of shards stands in the batch.
//!
//! **What a batch came to is counted from its outcomes**, never from a counter beside them: two
//! items of different partitions can't be written as one, so a killed process would leave such a
//! counter wrong for ever. Counting costs about as many request units as reading; so there is
//! [`CosmosStore::running_totals`] too, which is cheap, for watching.
//!
//! Types of the SDK never leave this folder. `settings` makes the client, `calls` makes every call
//! (counted, repeated), `pace` says when a write may go; the other files are one kind of item each.

mod batches;
mod briefs;
mod budgets;
mod calls;
mod error;
mod init;
mod items;
mod notes;
mod pace;
mod payloads;
mod record;
mod settings;
mod shares;
mod stream;
mod units;
mod usage;
mod withdraw;
mod write_ids;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use azure_data_cosmos::ContainerClient;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use jiff::Timestamp;
use uuid::Uuid;

pub use self::init::init;
pub use self::settings::{Consistency, Credential, Settings};
pub use self::units::{Operation, RequestUnits};
use super::{
    Batch, BatchState, Brief, Expense, Note, Order, PAYLOAD_LIFE, Recorded, Running, Store,
    StoreError, Totals,
};
use domain::budget::{Budget, Claim, Limit};
use domain::job::{BatchId, JobId};
use domain::outcome::Outcome;
use domain::share::Word;

/// Shards that are read side by side.
const SHARDS_AT_A_TIME: usize = 8;

/// The store; clones share it.
#[derive(Clone)]
pub struct CosmosStore {
    inner: Arc<Inner>,
}

struct Inner {
    calls: calls::Calls,
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
    running: usage::OwnSums,
}

impl CosmosStore {
    /// Opens the database, whose containers must exist.
    ///
    /// # Errors
    /// Says what is missing, not allowed or not reachable.
    pub async fn connect(settings: &Settings) -> Result<Self, StoreError> {
        let database = settings.client().await?.database_client(settings.database.clone());
        let container = async |name: &'static str| {
            let container = database.container_client(name, None).await;
            container.map_err(|e| error::store_error("opening a container", e))
        };
        let inner = Inner {
            calls: calls::Calls {
                units: RequestUnits::default(),
                pace: pace::Pace::new(settings.writes_in_flight.get()),
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
            running: usage::OwnSums::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// What this process has spent.
    pub fn request_units(&self) -> &RequestUnits {
        &self.inner.calls.units
    }

    /// Writes that were refused for want of request units, and tried again.
    pub fn throttles(&self) -> u64 {
        self.inner.calls.pace.throttles()
    }

    /// A batch's totals by the workers' own sums: cheap, and short of what a killed worker had
    /// recorded last.
    ///
    /// # Errors
    /// As [`Store::totals`].
    pub async fn running_totals(&self, batch: &BatchId) -> Result<Totals, StoreError> {
        Ok(self.running(batch, Timestamp::MAX).await?.totals())
    }
}

impl Inner {
    fn shards_cache(&self) -> MutexGuard<'_, HashMap<BatchId, u32>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Items are named by the job's id.
fn ids(batch: &BatchId, custom_ids: &[&str]) -> Vec<JobId> {
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
        self.inner.look_up(batch, &ids(batch, custom_ids)).await
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

    async fn withdraw_dead(
        &self,
        batch: &BatchId,
        custom_ids: &[&str],
    ) -> Result<Vec<Option<Recorded>>, StoreError> {
        if custom_ids.is_empty() {
            return Ok(Vec::new());
        }
        self.inner.withdraw_dead(batch, &ids(batch, custom_ids)).await
    }

    async fn outcomes(
        &self,
        batch: &BatchId,
        order: Order,
    ) -> Result<BoxStream<'static, Result<Outcome, StoreError>>, StoreError> {
        Arc::clone(&self.inner).stream(batch, order).await
    }

    async fn briefs(
        &self,
        batch: &BatchId,
    ) -> Result<BoxStream<'static, Result<Brief, StoreError>>, StoreError> {
        Arc::clone(&self.inner).stream_briefs(batch).await
    }

    async fn totals(&self, batch: &BatchId) -> Result<Totals, StoreError> {
        self.inner.totals(batch).await
    }

    async fn running(&self, batch: &BatchId, since: Timestamp) -> Result<Running, StoreError> {
        self.inner.running(batch, since).await
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

    async fn limit_budget(&self, batch: &BatchId, limit: &Limit) -> Result<Budget, StoreError> {
        self.inner.limit_budget(batch, limit).await
    }

    async fn budget(&self, batch: &BatchId) -> Result<Option<Budget>, StoreError> {
        self.inner.budget(batch).await
    }

    async fn claim(
        &self,
        batch: &BatchId,
        claim: &Claim,
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
        self.inner.put_payload(name, &bytes, Some(PAYLOAD_LIFE)).await
    }

    async fn get_payload(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        self.inner.get_payload(name).await
    }

    async fn delete_payload(&self, name: &str) -> Result<(), StoreError> {
        self.inner.delete_payload(name).await
    }

    async fn put_word(&self, word: &Word) -> Result<(), StoreError> {
        self.inner.put_word(word).await
    }

    async fn words(&self) -> Result<Vec<Word>, StoreError> {
        self.inner.words().await
    }

    async fn remove_word(&self, instance: Uuid) -> Result<(), StoreError> {
        self.inner.remove_word(instance).await
    }

    async fn put_note(&self, note: &Note, was: Option<&str>) -> Result<bool, StoreError> {
        self.inner.put_note(note, was).await
    }

    async fn note(&self, kind: &str, id: &str) -> Result<Option<String>, StoreError> {
        self.inner.note(kind, id).await
    }

    async fn notes(&self, kind: &str) -> Result<Vec<Note>, StoreError> {
        self.inner.notes(kind).await
    }

    async fn remove_note(&self, kind: &str, id: &str) -> Result<(), StoreError> {
        self.inner.remove_note(kind, id).await
    }

    fn expense(&self) -> Option<Expense> {
        let units = self.request_units();
        let spent = Operation::ALL.map(|operation| (operation.as_str(), units.of(operation)));
        Some(Expense {
            request_units: units.total(),
            by_operation: spent.into_iter().filter(|(_, charge)| *charge > 0.0).collect(),
            throttled: self.throttles(),
        })
    }
}
