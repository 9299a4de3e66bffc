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
mod worker_usage;
mod write_ids;
mod write_pacer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use azure_data_cosmos::ContainerClient;
use jiff::Timestamp;

pub use self::init::init;
pub use self::request_units::{CosmosOperation, RequestUnits};
pub use self::settings::{CosmosConsistency, CosmosCredential, CosmosSettings};
use super::{BatchTotals, StoreCharges, StoreError, StoreMeter};
use domain::job::BatchId;
use domain::mutex::lock;

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
    worker_usage: worker_usage::WorkerUsage,
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
            worker_usage: worker_usage::WorkerUsage::new(),
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
    /// As [`crate::OutcomeReader::totals`].
    pub async fn worker_totals(&self, batch: &BatchId) -> Result<BatchTotals, StoreError> {
        Ok(self.inner.running_totals(batch, Timestamp::MAX).await?.totals())
    }
}

impl CosmosInner {
    fn shards_cache(&self) -> MutexGuard<'_, HashMap<BatchId, u32>> {
        lock(&self.shards)
    }
}

impl StoreMeter for CosmosStore {
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
