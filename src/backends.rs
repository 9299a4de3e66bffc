//! The one place where a configuration becomes a queue and a store.
//!
//! Whoever gets them sees the two seams only; which backend is behind them is not told.

use std::sync::Arc;

use crate::config::{self, Config};
use queue::local::LocalQueue;
use queue::service_bus::admin::{Admin, Prepared};
use queue::service_bus::{self, SettingsError};
use queue::{Queue, QueueError};
use state::sqlite::{Database, SqliteError};
use state::{StateDir, StateError};
use store::cosmos::{self, CosmosStore};
use store::local::LocalStore;
use store::{Store, StoreError};
use telemetry;

/// What Service Bus has by default; room for workers that are stopped in the middle of a job.
const USUAL_MAX_DELIVERIES: u32 = 10;

/// Why a backend can't be had.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Sqlite(#[from] SqliteError),
    #[error("queue.service_bus: {0}")]
    ServiceBus(#[from] SettingsError),
    #[error("queue.service_bus.credential: the identity can't be used here: {0}")]
    Identity(#[from] azure_core::Error),
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl BackendError {
    /// Whether waiting may help; all else is a matter of configuration.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Queue(error) => matches!(error, QueueError::Unavailable(_)),
            Self::Store(error) => matches!(error, StoreError::Unavailable(_)),
            Self::State(_) | Self::Sqlite(_) | Self::ServiceBus(_) | Self::Identity(_) => false,
        }
    }
}

/// A queue and a store, open.
pub struct Backends {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    /// Keeps a `run`, which would take over our locks, out of the directory that we share.
    _shared: Option<StateDir>,
}

/// Opens both. Needs a running tokio.
///
/// # Errors
/// Says which backend it is and what is wrong.
pub async fn open(config: &Config) -> Result<Backends, BackendError> {
    let shared = uses_state_dir(config).then(|| StateDir::share(&config.state.dir)).transpose()?;
    // One for both, so that they share their commits.
    let database = shared.is_some().then(|| Database::open(&config.state.dir)).transpose()?;
    let queue = queue_in(config, database.clone())?;
    let store = store_in(config, database).await?;
    Ok(Backends { queue, store, _shared: shared })
}

/// The queue alone. Service Bus is connected to when it is first used.
///
/// # Errors
/// As [`open`].
pub fn open_queue(config: &Config) -> Result<Arc<dyn Queue>, BackendError> {
    queue_in(config, None)
}

/// The queue, in this database if it is the embedded one.
fn queue_in(config: &Config, database: Option<Database>) -> Result<Arc<dyn Queue>, BackendError> {
    Ok(match &config.queue {
        config::Queue::Local => {
            let database = database.map_or_else(|| Database::open(&config.state.dir), Ok)?;
            let queue = LocalQueue::new(database, config.lock_duration());
            telemetry::observed(Arc::new(queue), telemetry::Labels::local())
        }
        config::Queue::ServiceBus(settings) => {
            let credential = settings.credential.as_ref().map(|c| c.credential()).transpose()?;
            let labels = telemetry::Labels::service_bus(&settings.queue);
            telemetry::observed(service_bus::open(settings, credential)?, labels)
        }
    })
}

/// The Service Bus queue's settings and counts, where that is the queue.
///
/// # Errors
/// As [`open`].
pub fn open_admin(config: &Config) -> Result<Option<Admin>, BackendError> {
    let config::Queue::ServiceBus(settings) = &config.queue else { return Ok(None) };
    let credential = settings.credential.as_ref().map(|c| c.credential()).transpose()?;
    Ok(Some(Admin::new(settings, credential)?))
}

/// The store alone.
///
/// # Errors
/// As [`open`].
pub async fn open_store(config: &Config) -> Result<Arc<dyn Store>, BackendError> {
    store_in(config, None).await
}

/// The store, in this database if it is the embedded one.
async fn store_in(
    config: &Config,
    database: Option<Database>,
) -> Result<Arc<dyn Store>, BackendError> {
    Ok(match &config.store {
        config::Store::Local => {
            let database = database.map_or_else(|| Database::open(&config.state.dir), Ok)?;
            Arc::new(LocalStore::new(database))
        }
        config::Store::Cosmos(settings) => Arc::new(CosmosStore::connect(settings).await?),
    })
}

/// What [`init`] did, a line each.
#[derive(Debug, Default)]
pub struct Ready {
    /// What is there now.
    pub done: Vec<String>,
    /// What is left to others.
    pub left: Vec<String>,
}

/// Creates what is missing where that is ours to create.
///
/// # Errors
/// As [`open`].
pub async fn init(config: &Config) -> Result<Ready, BackendError> {
    let mut done = Vec::new();
    let mut left = Vec::new();
    if uses_state_dir(config) {
        drop(Database::open(&config.state.dir)?);
        done.push(format!("state file {}", config.state.dir.join("promptmill.db").display()));
    }
    if let config::Store::Cosmos(settings) = &config.store {
        cosmos::init(settings).await?;
        done.push(format!(
            "Cosmos DB database '{}' at {} with its containers",
            settings.database, settings.endpoint
        ));
    }
    if let Some(admin) = open_admin(config)? {
        let max_deliveries = config.worker.max_deliveries.max(USUAL_MAX_DELIVERIES);
        for queue in admin.prepare(max_deliveries).await {
            match queue {
                Prepared::Found(name) => done.push(format!("Service Bus queue '{name}'")),
                Prepared::Created(name) => {
                    done.push(format!("Service Bus queue '{name}', created now"));
                }
                Prepared::ToCreate { name, why } => left.push(format!(
                    "see that the Service Bus queue '{name}' is there, with duplicate detection, a \
                     lock duration of 5 minutes, a max delivery count of {max_deliveries} and \
                     dead-lettering on expiration: it can't be seen to from here ({why})"
                )),
            }
        }
    }
    Ok(Ready { done, left })
}

fn uses_state_dir(config: &Config) -> bool {
    matches!(config.queue, config::Queue::Local) || matches!(config.store, config::Store::Local)
}
