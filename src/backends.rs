//! Opens the queue and the store that a configuration names.
//!
//! Callers see the two seams only, not the backends behind them.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::config::{self, Config};
use domain::job::BatchId;
use queue::local::LocalQueue;
#[cfg(feature = "azure")]
use queue::service_bus::admin::{ProvisionResult, ServiceBusAdmin};
#[cfg(feature = "azure")]
use queue::service_bus::{self, ServiceBusSettingsError};
use queue::{Queue, QueueError};
use state::sqlite::{Database, SqliteError};
use state::{StateDir, StateError};
#[cfg(feature = "azure")]
use store::cosmos::{self, CosmosStore};
use store::local::LocalStore;
use store::{Store, StoreError};
use telemetry;

/// Default of Service Bus; leaves room for workers that are stopped in the middle of a job.
#[cfg(feature = "azure")]
const DEFAULT_MAX_DELIVERIES: u32 = 10;

/// A backend that can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    #[cfg(feature = "azure")]
    #[error("queue.service_bus: {0}")]
    ServiceBus(#[from] ServiceBusSettingsError),
    #[cfg(feature = "azure")]
    #[error("queue.service_bus.credential: the identity can't be used here: {0}")]
    Identity(#[from] identity::IdentityError),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A queue and a store, open.
pub struct Backends {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    /// Keeps a `run`, which would take over our locks, out of the directory that we share.
    _shared: Option<StateDir>,
}

/// Opens queue and store. Needs a running tokio.
///
/// # Errors
/// Names the backend and the fault.
pub async fn open(config: &Config) -> Result<Backends, BackendError> {
    let shared =
        uses_state_dir(config).then(|| StateDir::lock_shared(&config.state.dir)).transpose()?;
    // One for both, so that they share their commits.
    let database = shared.is_some().then(|| Database::open(&config.state.dir)).transpose()?;
    let queue = queue_in(config, database.clone())?;
    let store = store_in(config, database).await?;
    Ok(Backends { queue, store, _shared: shared })
}

/// The embedded queue and store for one process alone, whatever the configuration names for workers.
/// The state directory is locked for as long as this value lives.
pub struct LocalBackends {
    database: Database,
    store: Arc<LocalStore>,
    lease: Duration,
    dir: StateDir,
}

impl LocalBackends {
    /// Opens the state directory, which no other process may use meanwhile.
    ///
    /// # Errors
    /// Names the process that uses it, or the fault of its file.
    pub fn open(config: &Config) -> Result<Self, BackendError> {
        let dir = StateDir::lock_exclusive(&config.state.dir)?;
        let database = Database::open(dir.path())?;
        let store = Arc::new(LocalStore::new(database.clone()));
        Ok(Self { database, store, lease: config.lease_duration(), dir })
    }

    pub fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// Returns a queue that hands out this batch's jobs alone, with those that were leased when an
    /// earlier process died: no other can hold any.
    ///
    /// # Errors
    /// If the state file fails.
    pub async fn queue_of(&self, batch: &BatchId) -> Result<Arc<dyn Queue>, BackendError> {
        let queue = LocalQueue::new(self.database.clone(), self.lease).only_batch(batch.clone());
        queue.release_orphans().await?;
        Ok(telemetry::instrument_queue(Arc::new(queue), telemetry::QueueLabels::local()))
    }

    /// Returns the state directory, which also has room for temporary files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Opens the queue alone. Service Bus connects on first use.
///
/// # Errors
/// As [`open`].
pub fn open_queue(config: &Config) -> Result<Arc<dyn Queue>, BackendError> {
    queue_in(config, None)
}

/// Opens the queue, in this database if it is the embedded one.
fn queue_in(config: &Config, database: Option<Database>) -> Result<Arc<dyn Queue>, BackendError> {
    Ok(match &config.queue {
        config::QueueBackend::Local => {
            let database = database.map_or_else(|| Database::open(&config.state.dir), Ok)?;
            let queue = LocalQueue::new(database, config.lease_duration());
            telemetry::instrument_queue(Arc::new(queue), telemetry::QueueLabels::local())
        }
        #[cfg(feature = "azure")]
        config::QueueBackend::ServiceBus(settings) => {
            let credential = settings.credential.as_ref().map(|c| c.credential()).transpose()?;
            let labels = telemetry::QueueLabels::service_bus(&settings.queue);
            telemetry::instrument_queue(service_bus::open(settings, credential)?, labels)
        }
    })
}

/// Opens the admin client of the Service Bus queue; `None` if the queue is another.
///
/// # Errors
/// As [`open`].
#[cfg(feature = "azure")]
pub fn open_admin(config: &Config) -> Result<Option<ServiceBusAdmin>, BackendError> {
    let config::QueueBackend::ServiceBus(settings) = &config.queue else { return Ok(None) };
    let credential = settings.credential.as_ref().map(|c| c.credential()).transpose()?;
    Ok(Some(ServiceBusAdmin::new(settings, credential)?))
}

/// Opens the store alone.
///
/// # Errors
/// As [`open`].
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, BackendError> {
    store_in(config, None).await
}

/// Opens the store, in this database if it is the embedded one.
async fn store_in(
    config: &Config,
    database: Option<Database>,
) -> Result<Arc<dyn Store>, BackendError> {
    Ok(match &config.store {
        config::StoreBackend::Local => {
            let database = database.map_or_else(|| Database::open(&config.state.dir), Ok)?;
            Arc::new(LocalStore::new(database))
        }
        #[cfg(feature = "azure")]
        config::StoreBackend::Cosmos(settings) => Arc::new(CosmosStore::connect(settings).await?),
    })
}

/// Report of [`init`], a line each.
#[derive(Debug, Default)]
pub struct InitReport {
    /// Resources that are there now.
    pub done: Vec<String>,
    /// Steps that are left to others.
    pub manual_steps: Vec<String>,
}

/// Creates missing resources where we may.
///
/// # Errors
/// As [`open`].
pub async fn init(config: &Config) -> Result<InitReport, BackendError> {
    let mut report = InitReport::default();
    if uses_state_dir(config) {
        drop(Database::open(&config.state.dir)?);
        let file = config.state.dir.join("promptmill.db");
        report.done.push(format!("state file {}", file.display()));
    }
    #[cfg(feature = "azure")]
    init_azure(config, &mut report).await?;
    Ok(report)
}

#[cfg(feature = "azure")]
async fn init_azure(config: &Config, report: &mut InitReport) -> Result<(), BackendError> {
    if let config::StoreBackend::Cosmos(settings) = &config.store {
        cosmos::init(settings).await?;
        report.done.push(format!(
            "Cosmos DB database '{}' at {} with its containers",
            settings.database, settings.endpoint
        ));
    }
    if let Some(admin) = open_admin(config)? {
        let max_deliveries = config.worker.max_deliveries.max(DEFAULT_MAX_DELIVERIES);
        for queue in admin.provision(max_deliveries).await {
            match queue {
                ProvisionResult::Found(name) => {
                    report.done.push(format!("Service Bus queue '{name}'"))
                }
                ProvisionResult::Created(name) => {
                    report.done.push(format!("Service Bus queue '{name}', created now"));
                }
                ProvisionResult::ToCreate { name, why } => report.manual_steps.push(format!(
                    "create the Service Bus queue '{name}' with duplicate detection, a \
                     lock duration of 5 minutes, a max delivery count of {max_deliveries} and \
                     dead-lettering on expiration: it can't be created or checked from here ({why})"
                )),
            }
        }
    }
    Ok(())
}

fn uses_state_dir(config: &Config) -> bool {
    matches!(config.queue, config::QueueBackend::Local)
        || matches!(config.store, config::StoreBackend::Local)
}
